"""`bench decode` compares models of equal size, and decoders that answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.bench import decode
from experiments.peers import peers_python
from pangu_sigma.generate.decoder import Chunk


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "hidden": 64,
        "ffn": 32,
        "heads": 2,
        "dense_layers": 1,
        "rre_layers": 1,
        "seq_length": 128,
        "slot_rows": 64,
    }
    monkeypatch.setattr(decode, "SIZES", dict.fromkeys(decode.SIZES, sizes))
    for name, value in (("PROMPT", 32), ("QUERIES", 16), ("RUN", Path("absent"))):
        monkeypatch.setattr(decode, name, value)


def test_the_peer_has_as_many_weights_to_read_as_ours(small: None):
    """All that a token reads: ours has one expert of it, and the peer no table of queries, and a norm at its end."""
    python = peers_python()
    if python is None:
        pytest.skip("the environment of the peers is not installed")
    with decode._drawn("small") as model, decode._peer(python, model, 2, 8, 3) as worker:
        sizes = model.config.model
        ours = model.config.num_params()
        read = ours.active_per_token + (sizes.slot_rows + sizes.seq_length) * sizes.hidden
        assert worker.started["parameters"] == read
        assert worker.step() == {} == worker.step()


def test_precisions_of_the_bench_are_of_the_same_model(small: None):
    with decode._drawn("tiny") as model:
        logits = []
        for precision in ("float32", "float16", "int8", "int4"):
            decoder = model.decoder(1, precision)
            model._begin(decoder, 1, 20)
            logits.append(decoder.read([Chunk(0, [5, 7], 2)])[0])
        for less, most in zip(logits[1:], (1e-3, 3e-2, 0.5), strict=True):
            assert 0 < np.abs(less - logits[0]).max() < most * np.abs(logits[0]).max()


def test_rows_have_every_field_and_an_absent_peer_is_named(small: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PANGU_SIGMA_PEERS", "/absent/python")
    rows = [row.as_dict() for row in decode.run(peers=True)]
    assert all(row["ours"] > 0 for row in rows)
    peers = [row for row in rows if row["peer"] == "transformers"]
    assert len(peers) == 11 and all(row["peer_value"] is None and row["ratio"] is None for row in peers)
    assert {row["peer"] for row in rows if row["ratio"]} == {
        "ours, batch 1",
        "its products alone",
        "its weights alone",
        "float32, against float16",
        "float32, against int8",
        "float32, against int4",
        "without rows",
    }
    assert [row["peer"] for row in rows if row["limit"]] == ["time of a token around position 50"]
