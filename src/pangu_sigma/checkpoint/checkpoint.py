"""Reader of checkpoints: every byte is verified, and a damaged checkpoint is refused. The promises are in README.md.

    <root>/step_00000400/<shard>.safetensors …  arrays
                         state.json             counters, random state, data cursor
                         manifest.json          size and content hash of those files, identity of the run, its own hash
    <root>/LATEST                               name of the newest whole checkpoint
    <root>/unhealthy_00000500/                  a state with values that are not finite; kept for inspection, never loaded

A shard is a named group of arrays: the dense parameters, the experts of a layer. A shard that several ranks write has one file per
rank, `<shard>.<rank>.safetensors`, whose metadata say which part of the whole array each array is (parts.py).
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.format import (
    ANOTHER,
    CHECKPOINT_NAME,
    MANIFEST,
    PARTS,
    STATE,
    UNHEALTHY,
    CheckpointError,
    DamagedCheckpoint,
    Identity,
    read_manifest,
)
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import Files, Part, SavedArray, copy_part, decode_parts
from pangu_sigma.checkpoint.root import ASIDE, candidates, latest_checkpoint
from pangu_sigma.checkpoint.safetensors_file import map_arrays, metadata_of
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, RankError, Ranks
from pangu_sigma.sealed import DamagedFile, verify

logger = logging.getLogger(__name__)

_WAIT = "train the run, or wait for its first one"


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint on the disk, with verified files and memory-mapped arrays; writing to an array changes memory only.

    passed_over: messages on damaged checkpoints that come before this one in the order of `candidates`.
    """

    step: int
    state: dict[str, Any]
    identity: Identity
    files: Files
    passed_over: tuple[str, ...] = ()

    def saved(self, shard: str) -> dict[str, list[SavedArray]]:
        """Return the saved parts of each array of a shard, by the array's name."""
        parts: dict[str, list[SavedArray]] = {}
        for file, arrays in self.files.items():
            if file.partition(".")[0] == shard:
                for name, array in arrays.items():
                    parts.setdefault(name, []).append(array)
        return parts

    def array(self, shard: str, name: str) -> LazyArray | None:
        """Return an array of a shard, joined from its saved parts; None if the checkpoint has no array of that name."""
        saved = self.saved(shard).get(name)
        return None if saved is None else whole_array(saved, name)


def load_checkpoint(
    path: Path,
    expected: Identity | None = None,
    ranks: Ranks = SINGLE_PROCESS,
    verified: bool = True,
) -> Checkpoint:
    """Load a checkpoint and verify its files.

    path: one checkpoint's directory, where damage is an error; or a root, where the newest whole checkpoint is loaded. A warning
        then names the checkpoint in LATEST if that one is damaged or missing.
    expected: identity of the run to resume; another vocabulary or routing hash is refused. Configurations and data may differ.
    ranks: every rank calls this function, verifies some of the files, and loads the same checkpoint.
    verified: False to compare sizes and no hashes, which reads headers only; in a root the newest checkpoint by name is loaded.
    Raises CheckpointError if there is no whole checkpoint, or if its identity is not the expected one.
    """
    if CHECKPOINT_NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        return _load_directory(path, expected, ranks, verified)
    if verified:
        return _newest_whole(path, expected, ranks)
    newest = latest_checkpoint(path)
    if newest is None:
        raise CheckpointError(f"{path}: holds no checkpoint; {_WAIT}")
    return _load_directory(newest, expected, ranks, verified)


def newest_identity(root: Path) -> Identity | None:
    """Return the identity in the newest checkpoint with an undamaged manifest, the only file read; None if a root has none."""
    for directory in candidates(root) if root.is_dir() else ():
        try:
            return Identity(**read_manifest(directory)["identity"])
        except DamagedCheckpoint as error:
            logger.warning("%s; asking the checkpoint before it", error)
    return None


def _newest_whole(root: Path, expected: Identity | None, ranks: Ranks) -> Checkpoint:
    if (root / UNHEALTHY).exists():
        raise CheckpointError(f"{root} holds values that are not finite, and is no checkpoint; name one beside it")
    problems: list[str] = []
    for directory in candidates(root):
        try:
            return replace(_load_directory(directory, expected, ranks), passed_over=tuple(problems))
        except DamagedCheckpoint as error:
            logger.warning("%s; trying the checkpoint before it", error)
            problems.append(str(error))
    if not problems:
        raise CheckpointError(f"no usable checkpoint in {root}: it holds none yet\n{_WAIT}")
    found = "\n".join(problems)
    fix = f"name another run, or train this one anew: pangu-sigma train {root.parent} --start-over"
    raise DamagedCheckpoint(f"no usable checkpoint in {root}: {found}\n{fix}")


def _load_directory(path: Path, expected: Identity | None, ranks: Ranks, verified: bool = True) -> Checkpoint:
    try:
        with ranks.fail_together(f"verifying {path}"):
            manifest = read_manifest(path)
            for name, recorded in list(manifest["files"].items())[ranks.rank :: ranks.world]:
                verify(path / name, recorded, ANOTHER, verified)
    except (RankError, DamagedFile) as error:
        raise DamagedCheckpoint(str(error)) from error
    step, named = manifest["step"], CHECKPOINT_NAME.fullmatch(path.name.removeprefix(ASIDE))
    if named and int(named[1]) != step:
        raise DamagedCheckpoint(
            f"{path / MANIFEST}: is of step {step}, which its folder's name does not say; {ANOTHER}"
        )
    identity = Identity(**manifest["identity"])
    if expected is not None:
        _refuse_other(path, identity, expected)
    names = [name.removesuffix(".safetensors") for name in manifest["files"] if name.endswith(".safetensors")]
    try:
        files = {name: _read_arrays(path / f"{name}.safetensors") for name in names}
        _check_whole(path, files)
        state = json.loads((path / STATE).read_bytes())
    except (DamagedFile, ValueError, OSError, RecursionError) as error:
        # the file has its hash, and is not what a save writes
        raise DamagedCheckpoint(f"{error}; {ANOTHER}") from error
    return Checkpoint(step, state, identity, files)


def _read_arrays(file: Path) -> dict[str, SavedArray]:
    """Map the arrays of a file. Raises ValueError when one is not the part that the metadata say."""
    parts, arrays = decode_parts(metadata_of(file).get(PARTS, "{}")), {}
    for name, values in map_arrays(file).items():
        part = parts.get(name) or Part.everything(values.shape)
        if not part.fits(values.shape):
            raise ValueError(f"{file}: {name} of shape {values.shape} is not the part that the file says")
        arrays[name] = SavedArray(part, values)
    return arrays


def _check_whole(path: Path, files: Files) -> None:
    """Raise DamagedFile if the parts of an array that the files hold do not make up the whole array."""
    lacking: dict[tuple[str, str], int] = {}
    for file, arrays in files.items():
        for name, (part, values) in arrays.items():
            array = file.partition(".")[0], name
            lacking[array] = lacking.get(array, math.prod(part.whole)) - values.size
    for (shard, name), count in lacking.items():
        if count:
            raise DamagedFile(f"{path}: {name} of shard {shard} lacks {count} values: the file of a rank is missing")


def _refuse_other(path: Path, found: Identity, expected: Identity) -> None:
    data = "use the prepared data folder (its tokenizer) that the checkpoint was trained with"
    keys = "use the checkpoint's routing.table, routing.seed, domains and vocabulary"
    for what, key, fix in (("vocabulary", "vocabulary_hash", data), ("routing table", "routing_hash", keys)):
        has, wants = getattr(found, key), getattr(expected, key)
        if has != wants:
            raise CheckpointError(f"{path}: made with another {what}: its {key} is {has}, this run's is {wants}; {fix}")


def whole_array(saved: list[SavedArray], name: str) -> LazyArray:
    """Join the saved parts of a checkpoint's array; each row can be read alone. name: array's name in messages.

    Raises CheckpointError, when values are read, if a part of the array is in no file.
    """
    if len(saved) == 1 and saved[0].is_whole:
        return LazyArray.of(saved[0].values, name)
    whole, row = saved[0].part.whole, partial(_row, saved, name)
    return LazyArray(whole, saved[0].values.dtype, lambda: map(row, range(whole[0])), name, row=row)


def _row(saved: list[SavedArray], name: str, number: int) -> np.ndarray:
    whole = saved[0].part.whole
    row = np.empty((1, *whole[1:]), saved[0].values.dtype)
    wanted = Part(whole, ((number, number + 1),), (0,) * (len(whole) - 1))
    copied = sum(copy_part(array, row, wanted) for array in saved)
    if copied != row.size:
        raise CheckpointError(f"{name}[{number}] has {copied} of {row.size} values; a file is missing; {ANOTHER}")
    return row[0]
