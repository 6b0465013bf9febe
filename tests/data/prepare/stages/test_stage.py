"""A unit is done once, whole or not at all, and what a machine lost is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pangu_sigma.data.prepare.stages.executors import LocalProcesses
from pangu_sigma.data.prepare.stages.stage import Stage, StageError, read_frame, read_frames, write_frame


def test_values_come_back_in_order_and_from_their_offsets(tmp_path):
    stage = Stage(tmp_path)
    with stage.writing("a/b") as file:
        offsets = [write_frame(file, value) for value in ("one", [2], None)]
    assert list(read_frames(tmp_path / "a/b")) == ["one", [2], None]
    with (tmp_path / "a/b").open("rb") as file:
        assert [read_frame(file, offset) for offset in reversed(offsets)] == [None, [2], "one"]


@pytest.mark.parametrize("damage", [lambda data: bytes(len(data)), lambda data: data[:-1], lambda data: data[:5]])
def test_a_file_that_was_not_written_to_the_disk_is_noticed(tmp_path, damage):
    stage = Stage(tmp_path)
    stage.save("read/a", "value" * 100)
    path = tmp_path / "read/a"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StageError, match="damaged"):
        stage.load("read/a")


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    stage = Stage(tmp_path)
    with pytest.raises(ZeroDivisionError), stage.writing("a") as file:
        file.write(b"half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_value_is_made_once(tmp_path):
    stage, made = Stage(tmp_path), list[int]()
    assert [stage.once("a", lambda: made.append(1) or len(made)) for _ in range(2)] == [1, 1]
    assert made == [1]


def double(name: str, item: int) -> tuple[str, int]:
    if item < 0:
        raise ValueError(item)
    with Path(os.environ["DONE"]).open("a") as file:
        file.write(f"{item}\n")
    return name, 2 * item


def test_a_pass_goes_on_with_the_units_that_have_no_result(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DONE", str(tmp_path / "done"))
    stage = Stage(tmp_path / "stage")
    with pytest.raises(ValueError, match="-3"):
        stage.map(LocalProcesses(), "p", double, [1, 2, -3, 4])
    caplog.set_level("INFO")
    results = stage.map(LocalProcesses(), "p", double, [1, 2, 3, 4])
    assert "p: 2 of 4 units are done already" in caplog.text
    assert (tmp_path / "done").read_text().split() == ["1", "2", "3", "4"]
    assert list(results) == [(f"p/{number:06}", 2 * number + 2) for number in range(4)]
    assert results[3] == ("p/000003", 8) and len(results) == 4
