"""Sizes of rows are held against each other and against limits; ids are as frequent as in text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.bench import rows
from experiments.bench.synthetic import zipf

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_the_update_is_timed_at_every_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "UPDATED", {"few": 100, "more": 5_000})
    monkeypatch.setattr(rows, "TOKENS", 64)
    found = rows.optimizers(peers=False)
    assert found == [], "nothing to compare with"
    keys_T, grads_TW = next(rows.batches_of(100))
    assert keys_T.dtype == np.int64 and keys_T.max() < 100 and grads_TW.shape == (64, rows.WIDTH)
    assert zipf(100)[0] == pytest.approx(2 * zipf(100)[1])


@pytest.mark.slow
def test_steps_are_the_same_in_memory_and_in_files(tmp_path: Path):
    losses = [
        [run.advance() for _ in range(3)] for run in (rows.start(10_000, where) for where in (None, str(tmp_path)))
    ]
    assert losses[0] == losses[1]
    assert rows.start(0, None).advance() == losses[0][0], "rows begin at zero"
