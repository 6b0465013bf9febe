"""Checkpoints that are written behind a training are those that it would have written at once."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.failing_files import refused_at
from helpers.threads import on_ranks

from experiments.chaos.launched import eventually
from pangu_sigma.checkpoint import saver
from pangu_sigma.checkpoint import saver as saving
from pangu_sigma.checkpoint.checkpoint import (
    CheckpointError,
    Identity,
    UnhealthyState,
    checkpoints,
    keep_only,
    load_checkpoint,
    newest_checkpoint,
)
from pangu_sigma.checkpoint.parts import Files, Part, SavedArray
from pangu_sigma.checkpoint.saver import Saver, bytes_of

IDENTITY = Identity("vocabulary", "routing", {}, "data")


def arrays(seed: int = 0) -> Files:
    """Arrays that a training would change where they are."""
    rng = np.random.default_rng(seed)
    dense = {"w": rng.normal(size=(40, 30)).astype(np.float32), "scale": np.array(1.0, np.float32)}
    experts = {"w1": rng.normal(size=(4, 50, 7)).astype(np.float32), "w1.moment": np.ones((4, 50, 7), np.uint16)}
    return {
        "dense": {name: SavedArray.whole(a) for name, a in dense.items()},
        "experts_layer_0": {name: SavedArray.whole(a) for name, a in experts.items()},
    }


def train(files: Files) -> None:
    """Change every array where it is."""
    for held in files.values():
        for array in held.values():
            array.values[...] += 1


def bits(files: Files) -> dict[str, bytes]:
    return {f"{file}/{name}": a.values.tobytes() for file, held in files.items() for name, a in held.items()}


def opened(root: Path, behind: bool = True, keep: int = 1000, **options) -> Saver:
    return Saver(root, IDENTITY, keep, behind=behind, **options)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The thread writes nothing until this is set."""
    event = threading.Event()
    write = saving.write_arrays

    def waiting(*arguments):
        assert event.wait(30)
        return write(*arguments)

    monkeypatch.setattr(saving, "write_arrays", waiting)
    return event


def test_what_is_saved_is_the_state_at_the_step_however_late_it_is_written(tmp_path: Path, held: threading.Event):
    files = arrays()
    with opened(tmp_path) as behind:
        before = bits(files)
        behind.begin(1, files, {"step": 1})
        train(files)
        assert not behind.is_ready
        held.set()
        eventually(lambda: behind.is_ready, 30)
        assert checkpoints(tmp_path) == []
        behind.proceed()
        eventually(lambda: behind.is_ready, 30)
        assert checkpoints(tmp_path) == [tmp_path / "step_00000001"]
        behind.proceed()
        assert not behind.is_ready
    loaded = newest_checkpoint(tmp_path, IDENTITY)
    assert bits(loaded.files) == before != bits(files)
    assert (loaded.step, loaded.state) == (1, {"step": 1})


def test_every_saved_state_is_the_one_that_is_saved_at_once(tmp_path: Path):
    files, count = arrays(), 40
    with opened(tmp_path / "behind", keep=count) as behind, opened(tmp_path / "at once", False, keep=count) as at_once:
        for step in range(count):
            at_once.save(step, files, {"step": step})
            behind.begin(step, files, {"step": step})
            train(files)
    for step in range(count):
        one, other = (tmp_path / kind / f"step_{step:08d}" for kind in ("behind", "at once"))
        assert [p.name for p in sorted(one.iterdir())] == [p.name for p in sorted(other.iterdir())]
        for file in one.iterdir():
            assert file.read_bytes() == (other / file.name).read_bytes(), file


def test_a_second_save_waits_for_the_first_and_uses_its_memory_again(tmp_path: Path, held: threading.Event):
    """So there is never more than one copy."""
    files = arrays()
    with opened(tmp_path) as behind:
        behind.begin(1, files, {})
        first = bits(behind._copy)
        copies = {id(a.values) for held_ in behind._copy.values() for a in held_.values()}
        threading.Timer(0.2, held.set).start()
        train(files)
        behind.begin(2, files, {})
        assert held.is_set(), "it waited"
        assert checkpoints(tmp_path) == [tmp_path / "step_00000001"]
        assert {id(a.values) for held_ in behind._copy.values() for a in held_.values()} == copies
        assert bytes_of(behind._copy) == bytes_of(files)
        behind.save(3, files, {})
        assert behind._pending is None
    assert bits(load_checkpoint(tmp_path / "step_00000001").files) == first
    assert bits(load_checkpoint(tmp_path / "step_00000002").files) == bits(files)


def test_an_error_in_the_thread_is_that_of_a_save_at_once(tmp_path: Path):
    files = arrays()
    with opened(tmp_path) as behind:
        behind.save(1, files, {})
        for call in range(4, 10):
            refused = pytest.raises(CheckpointError, match=r"cannot save checkpoint .*step_00000002: .*No space")
            with refused_at(call, errno.ENOSPC)(), refused:
                behind.begin(2, files, {})
                behind.wait()
            assert behind._pending is None
            assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001"]
        behind.begin(3, files, {})
    assert newest_checkpoint(tmp_path).step == 3


def test_an_error_after_all_ranks_have_written_is_told_by_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(tmp_path) as behind:
        behind.begin(1, arrays(), {})
        eventually(lambda: behind.is_ready, 30)
        monkeypatch.setattr("pangu_sigma.checkpoint.saver.seal_folder", full)
        behind.proceed()
        eventually(lambda: behind.is_ready, 30)
        with pytest.raises(CheckpointError, match=r"cannot save checkpoint .*No space"):
            behind.proceed()
        assert not behind.is_ready and list(tmp_path.iterdir()) == []


def test_a_state_that_is_not_healthy_is_one_behind_too(tmp_path: Path):
    files = arrays()
    with opened(tmp_path) as behind:
        behind.save(1, files, {})
        files["experts_layer_0"]["w1"].values[2] = np.nan
        behind.begin(2, files, {})
        eventually(lambda: behind.is_ready, 30)
        with pytest.raises(UnhealthyState, match=r"experts_layer_0: w1 has 350.*layer 0, expert 2"):
            behind.proceed()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001"]


def test_a_run_that_ends_with_an_error_still_has_what_was_on_its_way(tmp_path: Path, held: threading.Event):
    files = arrays()
    with pytest.raises(ZeroDivisionError), opened(tmp_path) as behind:
        behind.begin(1, files, {})
        threading.Timer(0.1, held.set).start()
        raise ZeroDivisionError
    assert newest_checkpoint(tmp_path).step == 1


def test_without_room_for_a_copy_it_is_written_at_once_which_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    files = arrays()
    monkeypatch.setattr(saver, "available_memory", lambda swap: bytes_of(files) + saver._SPARE - 1)
    with opened(tmp_path) as behind:
        for step in (1, 2):
            behind.begin(step, files, {})
            assert behind._pending is None
            assert newest_checkpoint(tmp_path).step == step
        assert behind._copy == {}
    assert caplog.text.count("train.async_save needs") == 1


def by_ranks(ranks, root: Path, behind: bool, after_begin=lambda ranks: None) -> Path:
    """Two checkpoints with parts of experts from each rank, filled with its number. Returns the folder of the later one."""
    rows = np.array([ranks.rank, ranks.rank + 3])
    values = np.full((2, 3), ranks.rank, np.float32)
    files = {f"experts_layer_0.{ranks.rank:05d}": {"w1": SavedArray(Part.of_rows((6, 3), rows), values)}}
    with opened(root, behind, ranks=ranks) as saver:
        saver.begin(7, files, {})
        values += 10
        after_begin(ranks)
        saver.wait()
        return saver.save(8, files, {})


def test_ranks_complete_it_together_when_the_last_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rank 1 writes late; no rank waits for it between steps, and all get its error."""
    late, write = threading.Event(), saving.write_arrays

    def waiting(path, *rest):
        if "00001" in path.name:
            assert late.wait(30)
            if "fail" in str(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(path, *rest)

    monkeypatch.setattr(saving, "write_arrays", waiting)

    def go_on(ranks):
        ranks.any(False)
        late.set()

    good = on_ranks(3, lambda ranks: by_ranks(ranks, tmp_path / "good", True, go_on))
    assert good == [tmp_path / "good" / "step_00000008"] * 3
    saved = load_checkpoint(tmp_path / "good" / "step_00000007")
    assert [array.values[0, 0] for array in saved.parts["experts_layer_0", "w1"]] == [0, 1, 2]
    assert sorted(path.suffix for path in saved.path.iterdir()) == [".json", ".json", *[".safetensors"] * 3]
    late.clear()
    errors = on_ranks(3, lambda ranks: by_ranks(ranks, tmp_path / "fail", True, go_on))
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert "another rank" in str(errors[0])
    assert "Input/output error" in str(errors[1])
    assert list((tmp_path / "fail").iterdir()) == []


def test_ranks_that_leave_with_an_error_do_not_wait_for_each_other_and_complete_nothing(
    tmp_path: Path, held: threading.Event
):

    def work(ranks):
        with opened(tmp_path, ranks=ranks) as saver:
            files = arrays() if ranks.first else {"experts_layer_1.00001": {"w1": SavedArray.whole(np.ones(3))}}
            saver.begin(7, files, {})
            threading.Timer(0.3, held.set).start()
            raise ZeroDivisionError

    start = time.monotonic()
    assert [type(error) for error in on_ranks(2, work)] == [ZeroDivisionError] * 2
    assert time.monotonic() - start < 10
    assert checkpoints(tmp_path) == []


def test_what_a_dead_rank_left_is_removed_at_the_next_save(tmp_path: Path):
    left = tmp_path / ".unfinished-step_00000007"
    left.mkdir()
    (left / "experts_layer_0.00001.safetensors").write_text("half")
    assert on_ranks(3, lambda ranks: by_ranks(ranks, tmp_path, True))[0].exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000007", "step_00000008"]


def test_a_step_that_is_spared_stays_and_can_be_all_that_is_kept(tmp_path: Path):
    files = arrays()
    with opened(tmp_path, keep=1) as saver:
        saver.spared = frozenset([2])
        for step in range(1, 6):
            saver.save(step, files, {"step": step})
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_00000002", "step_00000005"]
    keep_only(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002"]
    assert newest_checkpoint(tmp_path, IDENTITY).step == 2
    with pytest.raises(CheckpointError, match="step_00000004 is to be kept and is not there, so nothing was removed"):
        keep_only(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002"]
    assert newest_checkpoint(tmp_path, IDENTITY).step == 2
