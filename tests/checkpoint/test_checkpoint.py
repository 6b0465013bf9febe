"""A checkpoint is whole or refused, and a failed save leaves the one before it in force."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.failing_files import FileCalls, Killed, killed_at, refused_at
from helpers.saved import save_checkpoint
from helpers.threads import on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.checkpoint import checkpoint as checkpoint_module
from pangu_sigma.checkpoint.checkpoint import (
    Checkpoint,
    CheckpointError,
    DamagedCheckpoint,
    Identity,
    UnhealthyState,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    way_on,
)
from pangu_sigma.checkpoint.not_finite import NotFinite
from pangu_sigma.checkpoint.parts import Files, Part, SavedArray
from pangu_sigma.checkpoint.saver import Saver
from pangu_sigma.ranks.ranks import SINGLE_PROCESS
from pangu_sigma.sealed import fingerprint, sealed

IDENTITY = Identity("vocabulary-1", "routing-1", {"name": "tiny", "train": {"peak_lr": 1e-4}})


def files_of(step: int) -> Files:
    rng = np.random.default_rng(step)
    return whole_files({
        "dense": {"weight": rng.normal(size=(5, 3)).astype(np.float32), "loss_scale": np.array(65536.0, np.float32)},
        "experts": {"step": rng.integers(0, 9, 4).astype(np.int32), "none": np.empty((0, 2), np.float32)},
    })  # fmt: skip


def whole_files(files: dict[str, dict[str, np.ndarray]]) -> Files:
    return {file: {name: SavedArray.whole(a) for name, a in arrays.items()} for file, arrays in files.items()}


def save(root: Path, step: int, keep: int = 5) -> Path:
    state = {"step": step, "random": {"state": 2**100 + step}, "loss": 0.1 + 0.2}
    return save_checkpoint(root, step, files_of(step), state, IDENTITY, keep)


def assert_is(loaded: Checkpoint | None, step: int) -> None:
    assert loaded is not None and loaded.step == step
    assert loaded.state == {"step": step, "random": {"state": 2**100 + step}, "loss": 0.1 + 0.2}
    assert loaded.identity == IDENTITY
    for name, arrays in files_of(step).items():
        assert loaded.files[name].keys() == arrays.keys()
        for key, array in arrays.items():
            (part, found), (whole, saved) = loaded.files[name][key], array
            assert part == whole
            assert (found.dtype, found.shape, found.tobytes()) == (saved.dtype, saved.shape, saved.tobytes())


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_load_returns_what_was_saved_from_root_and_from_directory(tmp_path: Path):
    save(tmp_path, 200)
    folder = save(tmp_path, 400)
    assert folder == tmp_path / "step_00000400"
    assert_is(newest_checkpoint(tmp_path), 400)
    assert_is(load_checkpoint(tmp_path / "step_00000200", IDENTITY), 200)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("whole"), 400)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_refused(whole: Path, data: st.DataObject):
    file = data.draw(st.sampled_from(sorted(whole.iterdir())))
    content = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    original = file.read_bytes()
    try:
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=file.name):
            load_checkpoint(whole)
    finally:
        file.write_bytes(original)
    assert_is(load_checkpoint(whole), 400)


def swap(folder: Path) -> None:
    first, second = folder / "dense.safetensors", folder / "experts.safetensors"
    first.rename(folder / "third")
    second.rename(first)
    (folder / "third").rename(second)


DAMAGE = {
    "truncated": ("dense.safetensors", lambda folder: os.truncate(folder / "dense.safetensors", 40)),
    "deleted": ("experts.safetensors", lambda folder: (folder / "experts.safetensors").unlink()),
    "swapped": ("safetensors", swap),
    "empty": ("state.json", lambda folder: (folder / "state.json").write_bytes(b"")),
    "empty seal": ("seal.json", lambda folder: (folder / "seal.json").write_bytes(b"")),
    "seal of another kind": ("seal.json", lambda folder: (folder / "seal.json").write_text("[1, 2]")),
    "no seal": ("seal.json", lambda folder: (folder / "seal.json").unlink()),
    "all of it": ("seal.json", lambda folder: [file.unlink() for file in folder.iterdir()]),
}
"""The file that is named, and what is done to the folder."""


def damage(folder: Path, how: str) -> str:
    """Damage a checkpoint; returns the file that is to be named."""
    file, damaging = DAMAGE[how]
    damaging(folder)
    return file


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_an_error_in_a_directory_and_a_warned_fallback_in_a_root(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
):
    for step in (100, 200, 300):
        save(tmp_path, step)
    latest = tmp_path / "step_00000300"
    file = damage(latest, how)
    with pytest.raises(CheckpointError, match=f"{file}.*another checkpoint"):
        load_checkpoint(latest)
    for verified in (True, False) if how in ("truncated", "deleted") else (True,):
        caplog.clear()
        assert_is(newest_checkpoint(tmp_path, verified=verified), 200)
        assert file in caplog.text


def test_no_array_is_mapped_for_the_step_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 100)
    monkeypatch.setattr(checkpoint_module, "map_arrays", lambda file: pytest.fail(f"{file} is mapped"))
    assert newest_checkpoint(tmp_path, verified=False).step == 100


def test_fallback_passes_over_every_damaged_one_and_then_gives_up(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for step in (100, 200, 300):
        save(tmp_path, step)
    damage(tmp_path / "step_00000300", "truncated")
    damage(tmp_path / "step_00000200", "deleted")
    assert_is(newest_checkpoint(tmp_path), 100)
    assert caplog.text.count("; step_00000100 is used in its place") == 2
    caplog.clear()
    damage(tmp_path / "step_00000100", "empty")
    anew = rf"train this one anew: pangu-sigma train {tmp_path.parent} --start-over$"
    with pytest.raises(CheckpointError, match=rf"(?s)no usable checkpoint.*dense.*experts.*state\.json.*{anew}"):
        newest_checkpoint(tmp_path)
    assert caplog.text == "", "no checkpoint is used, and the error says all"


def test_a_run_with_values_that_are_not_finite_is_sent_back_to_the_newest_whole_checkpoint(tmp_path: Path):
    assert way_on(tmp_path, SINGLE_PROCESS).startswith(
        f"There is no whole checkpoint in {tmp_path}: start again in another"
    )
    healthy, damaged = save(tmp_path, 100), save(tmp_path, 200)
    damage(damaged, "truncated")
    again = f"The last checkpoint whose values are all finite is {healthy}: start the same command again"
    assert way_on(tmp_path, SINGLE_PROCESS).startswith(again)
    damage(healthy, "truncated")
    assert way_on(tmp_path, SINGLE_PROCESS).startswith(f"There is no whole checkpoint in {tmp_path}")


def test_what_is_not_a_checkpoint_is_not_one(tmp_path: Path):
    assert checkpoints(tmp_path / "nothing") == checkpoints(tmp_path) == []
    (tmp_path / "unhealthy_00000500").mkdir()
    (tmp_path / ".unfinished-step_00000500").mkdir()
    assert checkpoints(tmp_path) == []
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "step_00000100").mkdir()
    for verified in (True, False):
        with pytest.raises(DamagedCheckpoint, match=r"step_00000100/seal\.json: No such file"):
            newest_checkpoint(tmp_path, verified=verified)


def test_checkpoints_of_the_older_form_are_refused_by_name(tmp_path: Path):
    folder = save(tmp_path, 100)
    (folder / "seal.json").rename(folder / "manifest.json")
    with pytest.raises(CheckpointError, match=f"^{folder} is of format 2, this version reads 3: use .* it is 0.1.0"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("key", ["vocabulary_hash", "routing_hash"])
def test_another_identity_is_refused_naming_both_hashes_and_the_fix(tmp_path: Path, key: str):
    save(tmp_path, 100)
    save(tmp_path, 200)
    other = Identity(**{**vars(IDENTITY), key: "another"})
    with pytest.raises(CheckpointError, match=rf"{key} is {getattr(IDENTITY, key)}, this run's is another; use "):
        newest_checkpoint(tmp_path, other)


def test_another_format_is_refused_but_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 100)
    monkeypatch.setattr(checkpoint_module, "FORMAT", 4)
    with pytest.raises(CheckpointError, match="format 3, this version reads 4") as refused:
        newest_checkpoint(tmp_path)
    assert not isinstance(refused.value, DamagedCheckpoint)


def reseal(folder: Path, facts: object) -> None:
    """Write the facts of a checkpoint, and its seal with their hash."""
    (folder / "state.json").write_bytes(json.dumps(facts).encode())
    files = json.loads((folder / "seal.json").read_bytes())["files"]
    (folder / "seal.json").write_bytes(sealed({"files": files | {"state.json": fingerprint(folder / "state.json")}}))


@pytest.fixture
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk, which shows only where power fails."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def with_nan(step: int, *names: str) -> Files:
    """The files of a step in which these arrays have a NaN."""
    files = files_of(step)
    files["experts_layer_1"] = {"w1": SavedArray.whole(np.ones((4, 3), np.float32))}
    for name in names:
        values = next(arrays[name].values for arrays in files.values() if name in arrays)
        values[(-1,) * values.ndim] = np.nan
    return files


IDENTITY_WITH_DOMAINS = Identity(
    "vocabulary-1", "routing-1", {"domains": [{"name": "zh"}, {"name": "en"}], "model": {"experts_per_domain": 2}}
)


def test_a_weight_that_is_not_finite_is_named_and_never_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_checkpoint(tmp_path, 100, with_nan(100), {}, IDENTITY_WITH_DOMAINS, 1)
    for step, name in ((200, "weight"), (300, "w1")):
        with pytest.raises(UnhealthyState) as caught:
            save_checkpoint(tmp_path, step, with_nan(step, name), {}, IDENTITY_WITH_DOMAINS, 1)
    assert names(tmp_path) == ["step_00000100"], "no healthy one is pruned"
    error = caught.value
    assert (error.step, error.not_finite) == (300, [NotFinite("experts_layer_1", "w1", 1, (3, 2), (3,))])
    assert f"whose values are all finite is {tmp_path / 'step_00000100'}: start the same command again" in str(error)
    message = "experts_layer_1: w1 has 1, first at [3, 2] (layer 1, expert 3 of domain en)"
    assert message in str(error)
    assert caplog.records == [], "the error says it, and nothing says it twice"


def save_by_ranks(root: Path, step: int, world: int = 2) -> list[Path]:
    """Save a checkpoint whose experts each rank writes a part of; their values are the rank's number."""

    def work(ranks):
        rows = np.arange(ranks.rank, 2 * world, world)
        experts = SavedArray(Part.of_rows((2 * world, 3), rows), np.full((2, 3), ranks.rank, np.float32))
        files = files_of(step) if ranks.first else {}
        with Saver(root, IDENTITY, 1, ranks=ranks) as saver:
            return saver.save(step, files | {f"experts_layer_0.{ranks.rank:05d}": {"w1": experts}}, {})

    return on_ranks(world, work)


def test_ranks_whose_files_a_listing_does_not_show_are_in_the_checkpoint(tmp_path: Path, monkeypatch):
    """A shared file system may show a rank an old list of a folder that another rank has written in."""
    for name in ("glob", "iterdir"):
        listed = getattr(Path, name)

        def shown(self, *args, listed=listed):
            return [path for path in listed(self, *args) if ".00001" not in path.name and path.name[-2:] != "-1"]

        monkeypatch.setattr(Path, name, shown)
    for step in (100, 200):
        assert save_by_ranks(tmp_path, step) == [tmp_path / f"step_{step:08d}"] * 2
    saved = load_checkpoint(tmp_path / "step_00000200").array("experts_layer_0", "w1")
    assert saved.read()[:, 0].tolist() == [0, 1, 0, 1]


def test_a_checkpoint_that_lacks_the_part_of_a_rank_is_passed_over(tmp_path: Path, caplog):
    save_by_ranks(tmp_path, 200)
    folder = tmp_path / "step_00000200"
    shutil.copytree(save(tmp_path / "other", 100), tmp_path / "step_00000100")
    body = json.loads((folder / "seal.json").read_bytes())
    del body["manifest"], body["files"]["experts_layer_0.00001.safetensors"]
    (folder / "seal.json").write_bytes(sealed(body))
    lacking = f"{folder}: w1 of shard experts_layer_0 lacks 6 values: the file of a rank is missing"
    for verified in (True, False):
        with pytest.raises(DamagedCheckpoint, match=lacking):
            _ = load_checkpoint(folder, verified=verified).parts
    loaded = newest_checkpoint(tmp_path)
    assert_is(loaded, 100)
    assert [lacking in message for message in loaded.passed_over] == [True]
    assert lacking in caplog.text


@pytest.mark.usefixtures("no_flush")
def test_an_unhealthy_state_is_an_error_on_all_ranks_and_in_every_window_of_a_kill(tmp_path: Path):
    def work(ranks):
        values = np.ones((2, 3), np.float32)
        if ranks.rank == 2:
            values[1] = np.inf
        rows = np.array([ranks.rank, ranks.rank + 3])
        files = {f"experts_layer_0.{ranks.rank:05d}": {"w1": SavedArray(Part.of_rows((6, 3), rows), values)}}
        with Saver(tmp_path, IDENTITY, 1, ranks=ranks) as saver:
            return saver.save(7, files, {})

    for error in on_ranks(3, work):
        assert isinstance(error, UnhealthyState)
        assert error.not_finite == [NotFinite("experts_layer_0.00002", "w1", 3, (5, 0), (5,))]
    save(tmp_path / "counted", 100)
    with FileCalls()() as calls, pytest.raises(UnhealthyState):
        save_checkpoint(tmp_path / "counted", 200, with_nan(200, "w1"), {}, IDENTITY, 1)
    for call in range(len(calls.names)):
        root = tmp_path / str(call)
        save(root, 100)
        with killed_at(call)(), pytest.raises(Killed):
            save_checkpoint(root, 200, with_nan(200, "w1"), {}, IDENTITY, 1)
        assert_is(newest_checkpoint(root), 100)
        save(root, 300, keep=2)
        assert names(root) == ["step_00000100", "step_00000300"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    damage(save(tmp_path, 100), "truncated")
    save(tmp_path, 100)
    assert_is(newest_checkpoint(tmp_path), 100)
    assert names(tmp_path) == ["step_00000100"]


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(tmp_path: Path, caplog):
    save(tmp_path, 100)
    save(tmp_path, 200).rename(tmp_path / "step_00000300")
    with pytest.raises(DamagedCheckpoint, match=r"step_00000300/state\.json: is of step 200, which its folder's name"):
        load_checkpoint(tmp_path / "step_00000300")
    assert_is(newest_checkpoint(tmp_path), 100)


def test_a_link_in_the_place_of_an_unfinished_save_is_removed(tmp_path: Path):
    """What it points to is neither read nor changed."""
    root, outside = tmp_path / "checkpoints", tmp_path / "outside"
    save(root, 100)
    outside.mkdir()
    (outside / "file").write_text("mine")
    for step, target in ((200, outside), (300, tmp_path / "nothing")):
        (root / f".unfinished-step_{step:08d}").symlink_to(target)
        assert_is(load_checkpoint(save(root, step)), step)
    assert names(outside) == ["file"]
    assert names(root) == ["step_00000100", "step_00000200", "step_00000300"]


SCENES = {"first": (), "one more": (100, 200), "again": (100, 200, 300)}
"""Checkpoints that are there before step 300 is saved."""


def scene(root: Path, steps: tuple[int, ...]) -> Path:
    for step in steps:
        save(root, step, keep=2)
    return root


def calls_of(tmp_path: Path, steps: tuple[int, ...]) -> range:
    """Numbers of the calls by which a save of step 300 changes files."""
    root = scene(tmp_path / "counted", steps)
    with FileCalls()() as calls:
        save(root, 300, keep=2)
    assert {"write", "fsync", "replace", "mkdir", "open for writing"} <= set(calls.names)
    return range(len(calls.names))


def assert_the_next_save_is_as_ever(root: Path) -> None:
    before = [f"step_{newest_checkpoint(root).step:08d}"] if checkpoints(root) else []
    save(root, 400, keep=2)
    assert_is(newest_checkpoint(root), 400)
    assert names(root) == [*before, "step_00000400"]


@pytest.mark.usefixtures("no_flush")
@pytest.mark.parametrize("steps", SCENES.values(), ids=SCENES)
def test_a_kill_at_any_call_leaves_a_whole_checkpoint_and_never_loses_one_that_has_its_name(tmp_path: Path, steps):
    for call in calls_of(tmp_path, steps):
        root = scene(tmp_path / str(call), steps)
        before = newest_checkpoint(root).step if steps else None
        with killed_at(call)(), pytest.raises(Killed):
            save(root, 300, keep=2)
        there = (root / "step_00000300").exists()
        assert bool(checkpoints(root)) == (before is not None or there)
        if before == 300 and not there:
            before = 200  # between two renames, when a checkpoint of the same step is replaced: no training does that
        if checkpoints(root):
            assert_is(newest_checkpoint(root), 300 if there else before)
        assert_the_next_save_is_as_ever(root)


@pytest.mark.usefixtures("no_flush")
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("steps", SCENES.values(), ids=SCENES)
def test_a_disk_that_fails_at_any_call_is_a_clean_error_and_the_next_save_is_as_ever(tmp_path: Path, steps, for_good):
    refused = 0
    for call in calls_of(tmp_path, steps):
        root = scene(tmp_path / str(call), steps)
        with refused_at(call, errno.ENOSPC if for_good else errno.EIO, for_good)():
            try:
                save(root, 300, keep=2)
            except CheckpointError as error:
                refused += 1
                assert "cannot save checkpoint" in str(error)
            else:
                assert checkpoints(root)[0].name == "step_00000300"
        if steps or (root / "step_00000300").exists():
            there = (root / "step_00000300").exists()
            assert_is(newest_checkpoint(root), 300 if there else [step for step in steps if step < 300][-1])
        assert_the_next_save_is_as_ever(root)
    assert refused > 20


def test_a_root_that_cannot_be_a_folder_is_a_clean_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="writable"):
        save(tmp_path / "file", 100)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("format"),
        lambda facts: facts.pop("identity"),
        lambda facts: facts["identity"].update(more=1),
        lambda facts: facts.update(step="200"),
    ],
)
def test_facts_with_their_hash_that_no_save_wrote_are_refused(tmp_path: Path, change):
    folder = save(tmp_path, 200)
    facts = json.loads((folder / "state.json").read_text())
    change(facts)
    reseal(folder, facts)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json: does not say what a save writes"):
        load_checkpoint(folder)
