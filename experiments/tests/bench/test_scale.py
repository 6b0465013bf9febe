"""Rows of every size, and a file store that is refused room on a full disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.bench import scale, stored_experts

pytestmark = pytest.mark.usefixtures("graph_mode")

MODEL = {"hidden": 16, "ffn": 24, "heads": 2, "dense_layers": 0, "rre_layers": 2}


@pytest.mark.slow
def test_every_size_is_held_against_the_smallest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scale, "GROWING_MODEL", MODEL | {"seq_length": 16, "slot_rows": 64})
    monkeypatch.setattr(scale, "STORED", (4, 8))
    monkeypatch.setattr(scale, "ACTIVE", 2)
    monkeypatch.setattr(scale, "in_files", lambda update: [])
    [row] = scale.run(peers=False)
    assert "8 stored" in row.case
    assert "4 stored" in row.peer
    assert row.ratio is not None


@pytest.mark.slow
def test_the_same_steps_in_files_and_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored_experts, "STORED_MODEL", MODEL | {"experts_per_domain": 1})
    monkeypatch.setattr(stored_experts, "STORED_LENGTH", 16)
    runs = [stored_experts.start(3, folder, 0.01, "step") for folder in (None, str(tmp_path / "store"))]
    losses = [[run.advance() for _ in range(4)] for run in runs]
    assert losses[0] == losses[1]
    assert 0 < stored_experts.resident()["gib"] <= stored_experts.resident()["peak_gib"]


def test_the_memory_of_the_file_store_is_held_against_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    class Answers:
        started = {"parameters": 2_000_000_000}  # noqa: RUF012

        def __enter__(self) -> Answers:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def step(self) -> dict[str, float]:
            return {"peak_gib": 6.5}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    monkeypatch.setattr(scale, "_worker", lambda domains, folder, update: Answers())
    monkeypatch.setattr(scale, "available_memory", lambda: 18 << 30)
    caplog.set_level("INFO")
    rows = {row.peer: row for row in scale.in_files("worker")}
    assert (rows["peak resident memory"].ours, rows["peak resident memory"].limit) == (6.5, scale.MOST_GIB)
    assert rows["peak resident memory"].ok is False
    assert "2.00 B parameters in files" in rows["in memory"].case
    assert "ours 6.50 GiB, peak resident memory" in caplog.text


def test_without_room_on_the_disk_there_is_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    monkeypatch.setattr(scale, "available_memory", lambda: 18 << 30)
    assert scale.in_files("step") == []
    assert "GiB for the file store" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_without_room_in_memory_there_is_no_case(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(scale, "available_memory", lambda: 16 << 30)
    assert scale.in_files("step") == []
    assert "need 17 GiB of memory, and 16.0 GiB are free; skipped" in caplog.text
