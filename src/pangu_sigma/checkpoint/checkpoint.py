"""Checkpoints that are either whole or refused.

    <root>/step_00000400/<shard>.safetensors …  arrays
                         state.json             everything else: counters, random state, data cursor
                         manifest.json          size and content hash of those files, identity of the run, its own hash
    <root>/LATEST                               name of the newest whole checkpoint

A save writes a sibling directory, flushes it to the disk, renames it, and only then changes LATEST (also by a rename):
a crash at any moment leaves the previous checkpoint in force. A load checks every byte of every file before it hands
out an array. One run saves into a root at a time.

A shard is a named group of arrays: the dense parameters, the experts of a layer. The ranks of a run write into one directory,
which all of them must see: each its own arrays, and rank 0 the rest. A shard that several ranks write has a file of each,
`<shard>.<rank>.safetensors`, whose metadata say which part of the whole array each array is (parts.py), so that any number of ranks
can read what any other number wrote.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.parts import Files, Part, SavedArray, decode_parts, encode_parts
from pangu_sigma.checkpoint.safetensors_file import map_arrays, metadata_of, write_arrays
from pangu_sigma.errors import UserError
from pangu_sigma.parallel.ranks import ALONE, RankError, Ranks
from pangu_sigma.sealed import UNFINISHED, as_json, fingerprint, sealed, sync

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the layout above; a reader refuses another one."""

LATEST = "LATEST"
MANIFEST = "manifest.json"
STATE = "state.json"
RANK_NOTE = ".written-"
"""Prefix of files in which ranks tell rank 0 what they wrote."""
PARTS = "parts"
"""Key of a file's metadata: the parts that its arrays are; those that it does not name are whole."""

_CHECKPOINT_NAME = re.compile(r"step_(\d{8,})")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_READ_BYTES = 8 << 20


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file, what is wrong and the fix."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint one of whose files is not what was saved."""


@dataclass(frozen=True)
class Identity:
    """The vocabulary, routing table and configuration that a checkpoint belongs to.

    With another vocabulary or routing table the same weights mean something else.
    config: the resolved configuration as a plain tree (`Config.model_dump(mode="json")`).
    data_hash: `Manifest.content_hash` of the text that was trained on; None if it is not known.
    """

    vocabulary_hash: str
    routing_hash: str
    config: dict[str, Any]
    data_hash: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint; its arrays are mapped files, and writing to one changes memory only."""

    step: int
    state: dict[str, Any]
    identity: Identity
    files: Files

    def saved(self, shard: str) -> dict[str, list[SavedArray]]:
        """What the files of a shard hold of each of its arrays."""
        found: dict[str, list[SavedArray]] = {}
        for file, arrays in self.files.items():
            if file.partition(".")[0] == shard:
                for name, array in arrays.items():
                    found.setdefault(name, []).append(array)
        return found


def save_checkpoint(
    root: Path,
    step: int,
    files: Files,
    state: dict[str, Any],
    identity: Identity,
    keep: int,
    after_chunk: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write the checkpoint of `step`, make it the latest, then prune to the `keep` newest; returns its directory.

    A checkpoint of the same step is replaced. Checkpoints of later steps (of a run that was resumed further back) are neither
    counted nor removed.
    files: what this rank writes. state: values that JSON can hold.
    after_chunk: called as the arrays are written, so that arrays of mapped files need not stay in memory.
    ranks: all of them call this, each with the files that it writes; everything else is rank 0's.
    Raises CheckpointError, on all ranks, when the name of a file or a state value is not allowed, or the disk refuses; LATEST is
    then what it was.
    """
    _check_arguments(step, files, keep)
    encoded_state = _encode_state(state)
    target = root / f"step_{step:08d}"
    unfinished = root / f"{UNFINISHED}{target.name}"
    try:
        with ranks.together("making the folder of a checkpoint"):
            if ranks.first:
                root.mkdir(parents=True, exist_ok=True)
                _remove_leftovers(root)
                unfinished.mkdir()
        with ranks.together("writing a checkpoint"):
            written = _write_files(unfinished, files, after_chunk)
            if not ranks.first:
                (unfinished / f"{RANK_NOTE}{ranks.rank}").write_bytes(as_json(written))
        with ranks.together("completing a checkpoint"):
            if ranks.first:
                _write_manifest(unfinished, step, written, encoded_state, identity)
                _move_into_place(unfinished, target)
                _write_latest(root, target.name)
    except (OSError, RankError) as error:
        if ranks.first:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"cannot save checkpoint {target}: {error}; earlier checkpoints are unchanged; "
            "free space on that disk or make the folder writable, then resume"
        ) from error
    if ranks.first:
        _prune(root, step, keep)
    return target


def load_checkpoint(path: Path, expected: Identity | None = None, ranks: Ranks = ALONE) -> Checkpoint:
    """Read and verify a checkpoint.

    path: one checkpoint's directory, where damage is an error; or a root, where LATEST is read and, should that one be
        damaged, the newest whole one before it, with a warning that names the damaged file.
    expected: what the caller is about to continue; another vocabulary or routing hash is refused. Configs may differ.
    ranks: all of them call this. Each verifies some of the files, and all take the same checkpoint.
    Raises CheckpointError when there is no whole checkpoint or it is not the expected one.
    """
    if _CHECKPOINT_NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        return _load_directory(path, expected, ranks)
    problems = []
    for directory in _candidates(path):
        try:
            return _load_directory(directory, expected, ranks)
        except DamagedCheckpoint as error:
            logger.warning("%s; trying the checkpoint before it", error)
            problems.append(str(error))
    found = "\n".join(problems) or "it holds none"
    raise CheckpointError(
        f"no usable checkpoint in {path}: {found}\nname another folder, or start the run without resuming"
    )


def has_checkpoints(root: Path) -> bool:
    """True if a root has a checkpoint, whole or not, and whatever LATEST says."""
    return root.is_dir() and bool(_checkpoints(root))


def newest_identity(root: Path) -> Identity | None:
    """The identity in the newest checkpoint whose manifest is whole; other files are not read. None if there is none."""
    for directory in _candidates(root) if root.is_dir() else ():
        try:
            return Identity(**_read_manifest(directory)["identity"])
        except DamagedCheckpoint as error:
            logger.warning("%s; asking the checkpoint before it", error)
    return None


def _check_arguments(step: int, files: Files, keep: int) -> None:
    if step < 0 or keep < 1:
        raise CheckpointError(f"step={step} must be at least 0 and keep={keep} at least 1 (train.keep_checkpoints)")
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{name!r} cannot be the name of a file; use letters, digits, '_', '-' and '.'")


def _encode_state(state: dict[str, Any]) -> bytes:
    try:
        return as_json(state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{STATE}: {error}; state must be plain finite JSON values, put arrays in a file"
        ) from error


def _write_files(folder: Path, files: Files, after_chunk: Callable[[], None]) -> dict[str, Any]:
    """Write a rank's files and flush them to the disk. Returns their fingerprints by file name."""
    written = {}
    for name, arrays in files.items():
        file = folder / f"{name}.safetensors"
        parts = {name: array.part for name, array in arrays.items() if not array.is_whole}
        metadata = {PARTS: encode_parts(parts)} if parts else None
        write_arrays(file, {name: array.values for name, array in arrays.items()}, after_chunk, metadata)
        written[file.name] = fingerprint(file)
        sync(file)
    return written


def _write_manifest(folder: Path, step: int, written: dict[str, Any], state: bytes, identity: Identity) -> None:
    """Add what only rank 0 writes. written: by rank 0; what the others wrote is in the folder."""
    files = dict(written)
    for note in folder.glob(f"{RANK_NOTE}*"):
        files |= json.loads(note.read_bytes())
        note.unlink()
    (folder / STATE).write_bytes(state)
    files[STATE] = fingerprint(folder / STATE)
    body = {"format": FORMAT, "step": step, "files": files, "identity": asdict(identity)}
    (folder / MANIFEST).write_bytes(sealed(body))
    for path in (folder / STATE, folder / MANIFEST, folder):
        sync(path)


def _move_into_place(unfinished: Path, target: Path) -> None:
    """Rename; an earlier checkpoint of the same step steps aside first, under a name that the next save removes."""
    if target.exists():
        aside = target.with_name(f"{UNFINISHED}replaced-{target.name}")
        target.rename(aside)
        unfinished.rename(target)
        shutil.rmtree(aside)
    else:
        unfinished.rename(target)
    sync(target.parent)


def _write_latest(root: Path, name: str) -> None:
    fresh = root / f"{UNFINISHED}{LATEST}"
    fresh.write_text(f"{name}\n", encoding="utf-8")
    sync(fresh)
    fresh.replace(root / LATEST)
    sync(root)


def _prune(root: Path, step: int, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints up to `step`. A failure costs space, not the run."""
    for old in [path for path in _checkpoints(root) if _step_of(path) <= step][keep:]:
        try:
            # Renamed first: a crash in the middle leaves a leftover, not a checkpoint that looks damaged.
            doomed = old.rename(root / f"{UNFINISHED}pruned-{old.name}")
            shutil.rmtree(doomed)
        except OSError as error:
            logger.warning("cannot remove old checkpoint %s: %s; remove it by hand to free its space", old, error)


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(f"{UNFINISHED}*"):
        logger.info("removing %s, left by an interrupted save", path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _candidates(root: Path) -> list[Path]:
    """Checkpoints of a root in the order to try: the one LATEST names, then older ones, newest first."""
    found = _checkpoints(root)
    try:
        name = (root / LATEST).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        name = ""
    if _CHECKPOINT_NAME.fullmatch(name):
        latest = root / name
        return [latest, *(path for path in found if _step_of(path) < _step_of(latest))]
    if found:
        logger.warning("%s is missing or names no checkpoint; using the newest whole checkpoint there", root / LATEST)
    return found


def _checkpoints(root: Path) -> list[Path]:
    """Checkpoint directories of a root, newest first."""
    try:
        found = [path for path in root.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name)]
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoints in {root}: {error.strerror}; name the folder of an earlier run"
        ) from error
    return sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _load_directory(path: Path, expected: Identity | None, ranks: Ranks) -> Checkpoint:
    try:
        with ranks.together(f"verifying {path}"):
            manifest = _read_manifest(path)
            for name, recorded in list(manifest["files"].items())[ranks.rank :: ranks.world]:
                _verify(path / name, recorded)
    except RankError as error:
        raise DamagedCheckpoint(str(error)) from error
    identity = Identity(**manifest["identity"])
    if expected is not None:
        _refuse_other(path, identity, expected)
    names = [name.removesuffix(".safetensors") for name in manifest["files"] if name.endswith(".safetensors")]
    files = {name: _read_arrays(path / f"{name}.safetensors") for name in names}
    return Checkpoint(manifest["step"], json.loads((path / STATE).read_bytes()), identity, files)


def _read_arrays(file: Path) -> dict[str, SavedArray]:
    """The arrays of a file, mapped."""
    parts = decode_parts(metadata_of(file).get(PARTS, "{}"))
    return {
        name: SavedArray(parts.get(name) or Part.everything(values.shape), values)
        for name, values in map_arrays(file).items()
    }


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, whose bytes must be exactly those of its contents sealed with its own hash."""
    file = path / MANIFEST
    try:
        content = file.read_bytes()
        manifest = json.loads(content)
        body = {key: value for key, value in manifest.items() if key != "manifest"}
    except OSError as error:
        raise DamagedCheckpoint(f"{file}: {error.strerror}; use another checkpoint") from error
    except (ValueError, AttributeError) as error:
        raise DamagedCheckpoint(f"{file}: is not the JSON that was saved; use another checkpoint") from error
    if sealed(body) != content:
        raise DamagedCheckpoint(f"{file}: its content does not match its own hash; use another checkpoint")
    if body["format"] != FORMAT:
        raise CheckpointError(
            f"{file}: checkpoint format {body['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    return body


def _verify(file: Path, recorded: dict[str, Any]) -> None:
    try:
        found = fingerprint(file)
    except OSError as error:
        raise DamagedCheckpoint(f"{file}: {error.strerror}; use another checkpoint") from error
    for what in ("bytes", "xxh3_128"):
        if found[what] != recorded[what]:
            raise DamagedCheckpoint(
                f"{file}: {what} is {found[what]}, the manifest says {recorded[what]}; "
                "the file is damaged, use another checkpoint"
            )


def _refuse_other(path: Path, found: Identity, expected: Identity) -> None:
    for what, key, fix in (
        (
            "vocabulary",
            "vocabulary_hash",
            "use the prepared data folder (its tokenizer) that the checkpoint was trained with",
        ),
        ("routing table", "routing_hash", "use the checkpoint's routing.table, routing.seed, domains and vocabulary"),
    ):
        has, wants = getattr(found, key), getattr(expected, key)
        if has != wants:
            raise CheckpointError(f"{path}: made with another {what}: its {key} is {has}, this run's is {wants}; {fix}")
