"""A unit is done once, whole or not at all, and what a machine lost is noticed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pangu_sigma.data.prepare.stages.executors import LocalProcesses
from pangu_sigma.data.prepare.stages.stage import Stage, StageError, read_frame, read_frames, write_frame
from pangu_sigma.data.prepare.stages.staging import give_back, staged


def test_values_come_back_in_order_and_from_their_offsets(tmp_path):
    stage = Stage(tmp_path)
    with stage.writing("a/b") as file:
        offsets = [write_frame(file, value) for value in ("one", [2], None)]
    assert list(read_frames(tmp_path / "a/b")) == ["one", [2], None]
    with (tmp_path / "a/b").open("rb") as file:
        assert [read_frame(file, offset) for offset in reversed(offsets)] == [None, [2], "one"]


@pytest.mark.parametrize(
    "damage", [lambda data: bytes(len(data)), lambda data: data[:-1], lambda data: data[:5], lambda data: b""]
)
def test_a_file_that_was_not_written_to_the_disk_is_noticed(tmp_path, damage):
    stage = Stage(tmp_path)
    stage.save("read/a", "value" * 100)
    path = tmp_path / "read/a"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StageError, match="damaged"):
        stage.load("read/a")


class Harm:
    """A pickle of it makes a file when it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def others_write(path: Path) -> None:
    path.chmod(path.stat().st_mode | stat.S_IWGRP)


def of_somebody(path: Path) -> None:
    if os.geteuid():
        pytest.skip("makes a file somebody else's")
    os.chown(path, 65000, -1)


OTHERS = pytest.mark.parametrize(
    ("make", "said"),
    [(others_write, r"others can write it \("), (of_somebody, "belongs to user 65000, and you are")],
)


@OTHERS
def test_a_file_that_others_could_have_written_is_not_unpickled(tmp_path, make, said):
    stage, harm = Stage(tmp_path / "key"), Harm(tmp_path / "executed")
    stage.save("hash/000000", harm)
    make(stage.path("hash/000000"))
    with pytest.raises(StageError, match=rf"hash/000000: {said}.*: remove {stage.folder} and call again"):
        stage.load("hash/000000")
    assert not harm.file.exists()


@OTHERS
@pytest.mark.parametrize("which", [".out.stage", ".out.stage/key"])
def test_a_stage_that_others_could_have_made_is_refused(tmp_path, make, said, which):
    (tmp_path / ".out.stage/key").mkdir(parents=True)
    make(tmp_path / which)
    refused = pytest.raises(StageError, match=rf"{which}: {said}.*remove {tmp_path}/\.out\.stage and")
    with refused, staged("key", tmp_path / "out"):
        raise AssertionError("it was opened")


@pytest.mark.parametrize("which", ["", "key", "other", "key/read", "key/read/000000", "key/output/en/train.bin"])
def test_a_link_in_a_stage_is_refused_and_what_it_names_stays(tmp_path, which):
    (tmp_path / "mine/key").mkdir(parents=True)
    (tmp_path / "mine/file").write_text("mine")
    link = tmp_path / ".out.stage" / which
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "mine")
    refused = pytest.raises(StageError, match=rf"^{link}: is a link, .*; remove {tmp_path}/\.out\.stage and call again")
    with refused, staged("key", tmp_path / "out"):
        raise AssertionError("it was opened")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["file", "key"]


def test_a_linked_stage_gives_back_nothing(tmp_path):
    (tmp_path / "mine/key/replaced").mkdir(parents=True)
    (tmp_path / ".out.stage").symlink_to("mine")
    with pytest.raises(StageError, match=r"out\.stage: is a link"):
        give_back(tmp_path / "out")
    assert (tmp_path / "mine/key/replaced").is_dir()


def test_a_missing_file_of_a_stage_is_named_with_the_way_on(tmp_path):
    missing = tmp_path / ".out.stage/key/encode/000000"
    with (
        pytest.raises(
            StageError, match=rf"^{missing}: is missing, damaged; remove {tmp_path}/\.out\.stage and call again"
        ),
        staged("key", tmp_path / "out") as stage,
    ):
        stage.load("encode/000000")


def test_a_stage_is_the_users_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        with staged("key", tmp_path / "out") as stage:
            assert stage.once("hash/000000", lambda: 1) == 1
            assert stat.filemode((tmp_path / ".out.stage").stat().st_mode) == "drwx------"
    finally:
        os.umask(before)


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
