"""`bench segments` computes the same layer in one segment and in several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.bench import moe, segments
from experiments.small import tiny


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"TOKENS": 64, "HIDDEN": 16, "FFN": 24, "EXPERTS": 2, "VOCABULARY": 50}.items():
        monkeypatch.setattr(moe, f"LAYER_{name}", size)


def test_segments_with_one_plan_are_the_layer_uncut(graph_mode: None, small: None):
    layer = moe.make_layer()
    same = replace(layer, experts_T=np.zeros_like(layer.experts_T))  # rolled, it is the same
    whole, halves = (segments.in_segments(same, n)() for n in (1, 2))
    assert (len(whole), len(halves)) == (2 + 4, 2 + 7)
    for mine, theirs in zip(whole[:2], halves[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    np.testing.assert_allclose(whole[2], np.concatenate([halves[2], halves[6]], axis=1), atol=1e-5)
    np.testing.assert_allclose(moe.ours(layer)()[0], segments.in_segments(layer, 1)()[0], atol=1e-6)


@pytest.mark.slow  # it compiles seven steps
def test_rows_have_every_field(graph_mode: None, small: None, monkeypatch: pytest.MonkeyPatch):
    step = {"model.hidden": 24, "model.ffn": 32, "model.heads": 2, "model.seq_length": 32}
    monkeypatch.setattr(segments, "tiny", lambda *keys, **base: tiny(step, *keys, **base))
    rows = [row.as_dict() for row in segments.run(peers=False)]
    ffn, step = "routed FFN fwd+bwd {} segments, 64x16x24, 2 experts", "step of {}"
    cases = ["16 experts, 2 own", "16 experts, 2 own + 2 common", "sigma_paper_tiny", "sigma_tiny"]
    assert [row["case"] for row in rows] == [ffn.format(2), ffn.format(4), *map(step.format, cases)]
    assert [row["peer"] for row in rows] == ["1 segment"] * 4 + ["dense"] * 2
    assert all(row["ratio"] > 0 and row["runs"] >= 9 for row in rows)
