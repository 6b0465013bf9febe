"""A checkpoint is whole or refused, and a failed save leaves the one before it in force."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.checkpoint import checkpoint as module
from pangu_sigma.checkpoint.checkpoint import CheckpointError, Identity, load_checkpoint, save_checkpoint
from pangu_sigma.checkpoint.parts import Files, SavedArray
from pangu_sigma.sealed import sealed

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


def assert_is(loaded: module.Checkpoint, step: int) -> None:
    assert loaded.step == step
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
    assert_is(load_checkpoint(tmp_path), 400)
    assert_is(load_checkpoint(tmp_path / "step_00000200", IDENTITY), 200)


def test_arrays_with_strides_keep_their_values(tmp_path: Path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_checkpoint(tmp_path, 1, whole_files({"a": {"turned": array.T, "part": array[:, ::2]}}), {}, IDENTITY, 1)
    loaded = load_checkpoint(tmp_path).files["a"]
    assert np.array_equal(loaded["turned"].values, array.T)
    assert np.array_equal(loaded["part"].values, array[:, ::2])


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


def damage_truncate(folder: Path) -> str:
    os.truncate(folder / "dense.safetensors", 40)
    return "dense.safetensors"


def damage_delete(folder: Path) -> str:
    (folder / "experts.safetensors").unlink()
    return "experts.safetensors"


def damage_swap(folder: Path) -> str:
    first, second = folder / "dense.safetensors", folder / "experts.safetensors"
    first.rename(folder / "third")
    second.rename(first)
    (folder / "third").rename(second)
    return "safetensors"


def damage_empty(folder: Path) -> str:
    (folder / "state.json").write_bytes(b"")
    return "state.json"


def damage_empty_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_bytes(b"")
    return "manifest.json"


def damage_manifest_of_another_kind(folder: Path) -> str:
    (folder / "manifest.json").write_text("[1, 2]")
    return "manifest.json"


def damage_no_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json"


def damage_everything(folder: Path) -> str:
    shutil.rmtree(folder)
    return "manifest.json"


DAMAGE = [value for name, value in list(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_damage_is_an_error_in_a_directory_and_a_warned_fallback_in_a_root(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage
):
    for step in (100, 200, 300):
        save(tmp_path, step)
    latest = tmp_path / "step_00000300"
    file = damage(latest)
    with pytest.raises(CheckpointError, match=f"{file}.*another checkpoint"):
        load_checkpoint(latest)
    with caplog.at_level(logging.WARNING):
        assert_is(load_checkpoint(tmp_path), 200)
    assert file in caplog.text


def test_fallback_passes_over_every_damaged_one_and_then_gives_up(tmp_path: Path):
    for step in (100, 200, 300):
        save(tmp_path, step)
    damage_truncate(tmp_path / "step_00000300")
    damage_delete(tmp_path / "step_00000200")
    assert_is(load_checkpoint(tmp_path), 100)
    damage_empty(tmp_path / "step_00000100")
    with pytest.raises(CheckpointError, match=r"(?s)no usable checkpoint.*dense.*experts.*state\.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [None, "", "step_x\n", "\x00\xff"])
def test_without_a_readable_latest_the_newest_whole_one_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
):
    save(tmp_path, 100)
    save(tmp_path, 200)
    (tmp_path / "LATEST").unlink()
    if content is not None:
        (tmp_path / "LATEST").write_text(content)
    assert_is(load_checkpoint(tmp_path), 200)
    assert "LATEST" in caplog.text


def test_a_later_checkpoint_of_an_abandoned_branch_is_not_a_fallback(tmp_path: Path):
    save(tmp_path, 100)
    save(tmp_path, 400)
    save(tmp_path, 200)  # resumed from 100
    damage_empty(tmp_path / "step_00000200")
    assert_is(load_checkpoint(tmp_path), 100)


@pytest.mark.parametrize("key", ["vocabulary_hash", "routing_hash"])
def test_another_identity_is_refused_naming_both_hashes_and_the_fix(tmp_path: Path, key: str):
    save(tmp_path, 100)
    save(tmp_path, 200)
    other = Identity(**{**vars(IDENTITY), key: "another"})
    with pytest.raises(CheckpointError, match=rf"{key} is {getattr(IDENTITY, key)}, this run's is another; use "):
        load_checkpoint(tmp_path, other)


def test_another_config_is_the_callers_business(tmp_path: Path):
    save(tmp_path, 100)
    assert_is(load_checkpoint(tmp_path, Identity("vocabulary-1", "routing-1", {})), 100)


def test_another_format_is_refused_but_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FORMAT", 2)
    save(tmp_path, 100)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2, this version reads 1"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("root", ["missing", "empty"])
def test_a_root_without_checkpoints_says_so(tmp_path: Path, root: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=root):
        load_checkpoint(tmp_path / root)


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (100, 200, 300, 400):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["LATEST", "step_00000300", "step_00000400"]


def test_prune_never_removes_what_latest_names(tmp_path: Path):
    for step in (100, 300, 400):
        save(tmp_path, step)
    save(tmp_path, 200, keep=1)  # resumed from 100; 300 and 400 belong to the abandoned branch
    assert names(tmp_path) == ["LATEST", "step_00000200", "step_00000300", "step_00000400"]
    assert_is(load_checkpoint(tmp_path), 200)


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    damage_truncate(save(tmp_path, 100))
    save(tmp_path, 100)
    assert_is(load_checkpoint(tmp_path), 100)
    assert names(tmp_path) == ["LATEST", "step_00000100"]


def test_leftovers_of_an_interrupted_save_are_never_loaded_and_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, 100)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_move_into_place", interrupt)
        save(tmp_path, 200)
    assert len(names(tmp_path)) == 3
    assert_is(load_checkpoint(tmp_path), 100)
    save(tmp_path, 300)
    assert names(tmp_path) == ["LATEST", "step_00000100", "step_00000300"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", range(9))
def test_a_crash_at_any_flush_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int):
    save(tmp_path, 100)
    calls = iter(range(100))
    sync = module.sync

    def crash(path: Path) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "sync", crash)
        try:
            save(tmp_path, 200)
        except KeyboardInterrupt:
            assert load_checkpoint(tmp_path).step in (100, 200)
        else:
            assert_is(load_checkpoint(tmp_path), 200)
    save(tmp_path, 300)
    assert_is(load_checkpoint(tmp_path), 300)


@pytest.mark.parametrize("limit", [0, 50, 400])
def test_a_disk_that_refuses_is_a_clean_error_and_keeps_the_old_one(tmp_path: Path, limit: int):
    save(tmp_path, 100)
    before = names(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # writes beyond `limit` bytes of a file fail
    try:
        with pytest.raises(CheckpointError, match=r"cannot save checkpoint .*step_00000200.*free space"):
            save(tmp_path, 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == before
    assert_is(load_checkpoint(tmp_path), 100)


def test_a_root_that_cannot_be_a_folder_is_a_clean_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="writable"):
        save(tmp_path / "file", 100)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_root_is_a_clean_error(tmp_path: Path):
    save(tmp_path, 100)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="writable"):
            save(tmp_path, 200)
        assert_is(load_checkpoint(tmp_path), 100)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": {"../x": {}}}, "name of a file"),
        ({"state": {"a": np.zeros(1)}}, "plain finite JSON"),
        ({"state": {"a": float("nan")}}, "plain finite JSON"),
        ({"keep": 0}, "keep=0"),
        ({"step": -1}, "step=-1"),
    ],
)
def test_arguments_that_cannot_be_saved_are_named(tmp_path: Path, arguments: dict, message: str):
    whole = {"root": tmp_path, "step": 1, "files": {}, "state": {}, "identity": IDENTITY, "keep": 1}
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(**{**whole, **arguments})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.pop("format"), "checkpoint format None"),
        (lambda body: body.pop("files"), "lists no files"),
        (
            lambda body: body["files"].update({"../../etc/passwd": {"bytes": 1, "xxh3_128": "0"}}),
            "is no file of this folder",
        ),
        (lambda body: body["files"].pop("state.json"), "names no step or no state.json"),
        (lambda body: body.update(step="3"), "names no step"),
        (lambda body: body["identity"].update(more=1), "is no manifest of a checkpoint"),
    ],
)
def test_a_manifest_with_its_own_hash_that_no_save_wrote_is_refused(tmp_path: Path, change, message: str):
    file = save(tmp_path, 200) / "manifest.json"
    body = json.loads(file.read_text())
    del body["manifest"]
    change(body)
    file.write_bytes(sealed(body))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(file.parent)
