"""Rows of every size, and a file store that is refused room on a full disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pangu_sigma.bench import scale, stored_experts

pytestmark = pytest.mark.usefixtures("graph_mode")

MODEL = {"hidden": 16, "ffn": 24, "heads": 2, "dense_layers": 0, "rre_layers": 2}


def test_every_size_is_held_against_the_smallest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scale, "GROWING_MODEL", MODEL | {"seq_length": 16, "slot_rows": 64})
    monkeypatch.setattr(scale, "STORED", (4, 8))
    monkeypatch.setattr(scale, "ACTIVE", 2)
    monkeypatch.setattr(scale, "in_files", lambda: [])
    [row] = scale.run(peers=False)
    assert "8 stored" in row.case
    assert "4 stored" in row.peer
    assert row.ratio is not None


def test_the_same_steps_in_files_and_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored_experts, "STORED_MODEL", MODEL | {"experts_per_domain": 1})
    monkeypatch.setattr(stored_experts, "STORED_LENGTH", 16)
    runs = [stored_experts.start(3, folder, 0.01) for folder in (None, str(tmp_path / "store"))]
    losses = [[run.advance() for _ in range(4)] for run in runs]
    assert losses[0] == losses[1]
    assert 0 < stored_experts.resident()["gib"] <= stored_experts.resident()["peak_gib"]


def test_without_room_on_the_disk_there_is_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 30))
    assert scale.in_files() == []
    assert "GiB for the file store" in caplog.text
    assert list(tmp_path.iterdir()) == []
