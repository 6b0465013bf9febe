"""Reader of checkpoints: every byte is verified, and a damaged checkpoint is refused. Promises and files are in README.md.

A shard is a named group of arrays: the dense parameters, the experts of a layer. A shard that several ranks write has one file per
rank, `<shard>.<rank>.safetensors`, whose metadata say which part of the whole array each array is (parts.py).
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.format import (
    ANOTHER,
    PARTS,
    CheckpointError,
    DamagedCheckpoint,
    Identity,
    checkpoints,
    read_facts,
)
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.not_finite import find_not_finite
from pangu_sigma.checkpoint.parts import Files, Part, SavedArray, copy_part, decode_parts
from pangu_sigma.checkpoint.safetensors_file import map_arrays, metadata_of
from pangu_sigma.errors import argument
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, RankError, Ranks
from pangu_sigma.sealed import DamagedFile, verify

logger = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """Checkpoint on the disk. names: files of arrays. passed_over: messages on newer checkpoints that are damaged."""

    path: Path
    step: int
    state: dict[str, Any]
    identity: Identity
    names: list[str]
    passed_over: tuple[str, ...] = ()

    @cached_property
    def files(self) -> Files:
        """Arrays, which are mapped when they are first asked for; writing to an array changes memory only. Raises DamagedCheckpoint
        for files that are not what a save writes, and if a part of an array is in none of them."""
        try:
            files = {Path(name).stem: _read_arrays(self.path / name) for name in self.names}
            _check_whole(self.path, files)
        except (DamagedFile, ValueError, OSError) as error:
            raise DamagedCheckpoint(f"{error}; {ANOTHER}") from error
        return files

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
    path: Path, expected: Identity | None = None, ranks: Ranks = SINGLE_PROCESS, verified: bool = True
) -> Checkpoint:
    """Load the checkpoint in a folder, and verify its files.

    expected: identity of the run to resume; another vocabulary or routing hash is refused. Configurations and data may differ.
    ranks: every rank calls this function, verifies some of the files, and loads the same checkpoint.
    verified: False to compare sizes and no hashes, and to read no arrays before they are asked for.
    Raises DamagedCheckpoint on all ranks for damage, CheckpointError if the identity is not the expected one.
    """
    try:
        with ranks.fail_together(f"verifying {path}"):
            facts, recorded = read_facts(path)
            for name, fingerprint in list(recorded.items())[ranks.rank :: ranks.world]:
                verify(path / name, fingerprint, ANOTHER, verified)
    except (RankError, DamagedFile) as error:
        raise DamagedCheckpoint(str(error)) from error
    if expected is not None:
        _refuse_other(path, facts.identity, expected)
    arrays = [name for name in recorded if name.endswith(".safetensors")]
    found = Checkpoint(path, facts.step, facts.state, facts.identity, arrays)
    if verified:
        _ = found.files
    return found


def newest_checkpoint(
    root: Path, expected: Identity | None = None, ranks: Ranks = SINGLE_PROCESS, verified: bool = True
) -> Checkpoint | None:
    """Load the newest whole checkpoint of a root; None if it has none. Damaged ones are passed over, which is logged.

    Arguments: as in `load_checkpoint`; without `verified`, whole is what has its seal and files of the right sizes.
    Raises DamagedCheckpoint if none is whole, CheckpointError if the identity is not the expected one.
    """
    problems: list[str] = []
    for path in _listed(root, ranks):
        try:
            found = load_checkpoint(path, expected, ranks, verified)
        except DamagedCheckpoint as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning("%s; %s is used in its place", problem, path.name)
        found.passed_over = tuple(problems)
        return found
    if not problems:
        return None
    fix = f"name another run, or train this one anew: pangu-sigma train {root.parent} --start-over"
    raise DamagedCheckpoint("\n".join([f"no usable checkpoint in {root}:", *problems, fix]))


def _listed(root: Path, ranks: Ranks) -> list[Path]:
    """Return the checkpoints of a root as rank 0 sees them: another rank may be shown an old list. All ranks call this."""
    names = "\n".join(path.name for path in checkpoints(root))
    return [root / name for name in ranks.texts(names)[0].split()]


def way_on(root: Path, ranks: Ranks) -> str:
    """Return the advice to the user of a run whose values are not finite: the checkpoint to go back to. All ranks call this."""
    healthy, ill = last_healthy(root, ranks)
    if healthy is None:
        return f"No checkpoint in {root} has only finite values: start again in another folder, with {argument('--output')}."
    remove = f"remove {', '.join(map(str, ill))}, and " if ill else ""
    again = "start the same command again, which goes on from it."
    return f"The last checkpoint whose values are all finite is {healthy}: {remove}{again}"


def last_healthy(root: Path, ranks: Ranks) -> tuple[Path | None, list[Path]]:
    """Return the newest checkpoint that is intact, with finite values alone, or None, and those after it, which are not.

    All ranks call this; each checks some of the files.
    """
    ill: list[Path] = []
    for path in _listed(root, ranks):
        with suppress(CheckpointError):
            files = load_checkpoint(path, ranks=ranks).files
            own = {name: files[name] for name in list(files)[ranks.rank :: ranks.world]}
            if not ranks.any(bool(find_not_finite(own))):
                return path, ill
        ill.append(path)
    return None, ill


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
