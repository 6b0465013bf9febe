"""`bench checkpoint` times saves of the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.bench import checkpoint as bench
from experiments.peers import peers_python
from pangu_sigma.checkpoint.saver import bytes_of


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SAVED_LAYERS", "SAVED_EXPERTS", "SAVED_HIDDEN", "SAVED_FFN"):
        monkeypatch.setattr(bench, name, 2)


def test_rows_hold_the_stall_against_a_save_at_once_and_absent_peers_are_named(small, monkeypatch, tmp_path):
    monkeypatch.setenv("PANGU_SIGMA_PEERS", "/absent/python")
    rows = bench.run(peers=True)
    assert [row.peer for row in rows] == [bench.AT_ONCE, bench.DCP_ASYNC, bench.DCP, "stall, of a save at once"]
    assert [row.ratio is None for row in rows] == [False, True, True, True]
    assert {row.bench for row in rows} == {"ckpt"}
    assert rows[0].runs >= 9
    assert rows[-1].limit == 10
    assert rows[-1].ours > 0
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_without_room_on_the_disk_there_are_no_rows(small, monkeypatch, caplog):
    monkeypatch.setattr(bench.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1}))
    assert bench.run(peers=False) == []
    assert "has less than" in caplog.text


def test_the_state_is_that_of_experts(small):
    files = bench.saved_state()
    assert list(files) == ["experts_layer_0", "experts_layer_1"]
    assert set(files["experts_layer_0"]) == {
        f"{w}{kind}" for w in ("w1", "w2") for kind in ("", ".moment", ".variance")
    }
    assert bytes_of(files) == 2 * 6 * 8 * 4
    assert all(np.isfinite(a.values).all() for arrays in files.values() for a in arrays.values())


def test_torch_saves_the_same_bytes(small, tmp_path):
    python = peers_python()
    if python is None:
        pytest.skip("the environment of the peers is not installed")
    files = bench.saved_state()
    with bench.dcp(python, files, tmp_path / "torch") as worker:
        assert worker.started == {"bytes": bytes_of(files)}
        answer = worker.step()
    assert answer["stall"] > 0
    assert answer["save"] > 0
