"""Folders of checkpoints, and their reader: every byte is verified, and a damaged checkpoint is refused. See README.md.

A checkpoint's folder is renamed to its name only when it is complete, and the newest by name is the newest. A shard is a named
group of arrays: the dense parameters, the experts of a layer. A shard that several ranks write has one file per rank,
`<shard>.<rank>.safetensors`, whose metadata say which part of the whole array each array is (parts.py).
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.not_finite import NotFinite, describe
from pangu_sigma.checkpoint.parts import Files, Part, SavedArray, copy_part, parts_from
from pangu_sigma.checkpoint.safetensors_file import map_arrays, metadata_of
from pangu_sigma.errors import UserError, argument
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, RankError, Ranks
from pangu_sigma.sealed import ITS_VERSION, UNFINISHED, DamagedFile, read_seal, verify

logger = logging.getLogger(__name__)

FORMAT = 3
"""Format version of a checkpoint; others are refused."""
STATE = "state.json"
"""File of the facts of a checkpoint (`Facts`)."""
CHECKPOINT_NAME = re.compile(r"step_(\d{8,18})")
ANOTHER = "use another checkpoint"


class CheckpointError(UserError, RuntimeError):
    """Error of a checkpoint that cannot be written or read; the message names the file, the problem and the fix."""


class DamagedCheckpoint(CheckpointError):
    """Error of a checkpoint in which a file differs from what was saved."""


class UnhealthyState(UserError, RuntimeError):
    """Error of a save whose weights or moments hold NaN or infinity: no checkpoint was made. All ranks raise it.

    step: step of the state. not_finite: arrays of all ranks with NaN or infinity. way_on: advice to the user, which names the
    checkpoint to go back to.
    """

    def __init__(self, step: int, not_finite: list[NotFinite], config: dict[str, Any], way_on: str):
        self.step, self.not_finite = step, not_finite
        super().__init__(
            f"the state after step {step} has values that are not finite and was not saved as a checkpoint: "
            f"{'; '.join(describe(not_finite, config))}. {way_on} If it comes back, lower train.optimizer.peak_lr, or use other "
            "data."
        )


@dataclass(frozen=True)
class Identity:
    """Vocabulary, routing table, configuration and data that a checkpoint belongs to.

    With another vocabulary or routing table the same weights have another meaning; with other data the run is another run.
    config: the resolved configuration as a plain tree (`Config.model_dump(mode="json")`).
    data_hash: content hash of the prepared data (`Manifest.content_hash`); None if unknown or not trained."""

    vocabulary_hash: str
    routing_hash: str
    config: dict[str, Any]
    data_hash: str | None = None

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Facts:
    """Everything that a checkpoint says besides its arrays. state: counters, random state, position in the data."""

    step: int
    identity: Identity
    state: dict[str, Any]
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_FACTS = TypeAdapter(Facts)


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
        for files that are not what a save writes."""
        try:
            return {Path(name).stem: _read_arrays(self.path / name) for name in self.names}
        except (DamagedFile, ValueError, OSError) as error:
            raise DamagedCheckpoint(f"{error}; {ANOTHER}") from error

    @cached_property
    def parts(self) -> dict[tuple[str, str], list[SavedArray]]:
        """Saved parts of each array, by shard and name. Raises DamagedCheckpoint as `files`, and if a part is missing."""
        parts: dict[tuple[str, str], list[SavedArray]] = {}
        for file, arrays in self.files.items():
            shard = file.partition(".")[0]  # the rest is the number of the rank
            for name, array in arrays.items():
                parts.setdefault((shard, name), []).append(array)
        for (shard, name), saved_arrays in parts.items():
            missing_count = math.prod(saved_arrays[0].part.whole) - sum(array.values.size for array in saved_arrays)
            if missing_count:
                raise DamagedCheckpoint(
                    f"{self.path}: {name} of shard {shard} lacks {missing_count} values: the file of a rank is missing; {ANOTHER}"
                )
        return parts

    def array(self, shard: str, name: str) -> LazyArray | None:
        """Return an array of a shard, joined from its saved parts; None if the checkpoint has no array of that name."""
        parts = self.parts.get((shard, name))
        return None if parts is None else whole_array(parts, name)


def whole_array(parts: list[SavedArray], name: str) -> LazyArray:
    """Join the saved parts of a checkpoint's array; each row can be read alone. name: array's name in messages."""
    if len(parts) == 1 and parts[0].is_whole:
        return LazyArray.of(parts[0].values, name)
    shape, dtype = parts[0].part.whole, parts[0].values.dtype

    def read_row(number: int) -> np.ndarray:
        values = np.empty((1, *shape[1:]), dtype)
        for array in parts:
            copy_part(array, values, Part.of_rows(shape, np.array([number])))
        return values[0]

    return LazyArray(shape, dtype, lambda: map(read_row, range(shape[0])), name, read_row)


def load_checkpoint(
    path: Path, expected: Identity | None = None, ranks: Ranks = SINGLE_PROCESS, verified: bool = True
) -> Checkpoint:
    """Load the checkpoint in a folder, and verify its files.

    expected: identity of the run to resume; another vocabulary or routing hash is refused. Configurations and data may differ.
    ranks: every rank calls this function, verifies its share of the files, and loads the same checkpoint.
    verified: False to compare the files' sizes and not their hashes, and to map no array before its first access.
    Raises DamagedCheckpoint on all ranks for damage, CheckpointError if the identity is not the expected one."""
    try:
        with ranks.fail_together(f"verifying {path}"):
            facts, fingerprints = _read_facts(path)
            for name, fingerprint in list(fingerprints.items())[ranks.rank :: ranks.world]:
                verify(path / name, fingerprint, ANOTHER, verified)
    except (RankError, DamagedFile) as error:
        raise DamagedCheckpoint(str(error)) from error
    if expected is not None:
        _refuse_other(path, facts.identity, expected)
    array_files = [name for name in fingerprints if name.endswith(".safetensors")]
    checkpoint = Checkpoint(path, facts.step, facts.state, facts.identity, array_files)
    if verified:
        _ = checkpoint.parts  # raises DamagedCheckpoint if a part is missing
    return checkpoint


def newest_checkpoint(
    root: Path, expected: Identity | None = None, ranks: Ranks = SINGLE_PROCESS, verified: bool = True
) -> Checkpoint | None:
    """Load the newest intact checkpoint in the folder `root`; return None if there are no checkpoints. Newer checkpoints that are
    damaged are passed over, which is logged.

    Arguments: as in `load_checkpoint`. Raises DamagedCheckpoint if all are damaged, CheckpointError if the identity is not the
    expected one."""
    problems: list[str] = []
    # rank 0 lists the checkpoints: a shared file system may show another rank an old list
    for name in ranks.texts("\n".join(path.name for path in checkpoints(root)))[0].split():
        try:
            checkpoint = load_checkpoint(root / name, expected, ranks, verified)
        except DamagedCheckpoint as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning("%s; %s is used in its place", problem, name)
        checkpoint.passed_over = tuple(problems)
        return checkpoint
    if not problems:
        return None
    fix = f"name another run, or train this one anew: pangu-sigma train {root.parent} --start-over"
    raise DamagedCheckpoint("\n".join([f"no usable checkpoint in {root}:", *problems, fix]))


def way_on(root: Path, ranks: Ranks) -> str:
    """Return the advice to the user of a run whose values are not finite: the checkpoint to go back to. All ranks call this."""
    # a save examines every value, so an intact checkpoint has finite values only
    try:
        healthy = newest_checkpoint(root, ranks=ranks)
    except (CheckpointError, OSError):
        healthy = None
    if healthy is None:
        return f"There is no whole checkpoint in {root}: start again in another folder, with {argument('--output')}."
    last = f"The last checkpoint whose values are all finite is {healthy.path}"
    return f"{last}: start the same command again, which goes on from it."


def _read_facts(folder: Path) -> tuple[Facts, dict[str, Any]]:
    """Read the facts of a checkpoint's folder. Returns the facts, and the size and hash of each file of the checkpoint by its name;
    only the file of the facts is verified. Raises CheckpointError for another format, DamagedFile for damage."""
    if (folder / "manifest.json").exists():  # only format 2 has this file
        raise CheckpointError(f"{folder} is of format 2, this version reads {FORMAT}: {ITS_VERSION}")
    file, fingerprints = folder / STATE, read_seal(folder, ANOTHER)["files"]
    try:
        verify(file, fingerprints[STATE], ANOTHER)
        content = file.read_bytes()
        version = json.loads(content)["format"]
        if version != FORMAT:
            raise CheckpointError(f"{file}: checkpoint format {version}, this version reads {FORMAT}; {ITS_VERSION}")
        facts = _FACTS.validate_json(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # the hash is right, but no save writes such a file
        raise DamagedFile(f"{file}: does not say what a save writes; {ANOTHER}") from error
    if CHECKPOINT_NAME.fullmatch(folder.name) and step_of(folder) != facts.step:
        raise DamagedFile(f"{file}: is of step {facts.step}, which its folder's name does not say; {ANOTHER}")
    return facts, fingerprints


def _read_arrays(file: Path) -> dict[str, SavedArray]:
    """Map the arrays of a file, each with its part of the whole array."""
    parts, arrays = parts_from(metadata_of(file)), map_arrays(file)
    return {name: SavedArray(parts.get(name) or Part.everything(a.shape), a) for name, a in arrays.items()}


def _refuse_other(path: Path, checkpoint: Identity, run: Identity) -> None:
    """Raise CheckpointError if the checkpoint in the folder `path` has another vocabulary or routing table than the run."""
    data = "use the prepared data folder (its tokenizer) that the checkpoint was trained with"
    keys = "use the checkpoint's routing.table, routing.seed, domains and vocabulary"
    for title, key, fix in (("vocabulary", "vocabulary_hash", data), ("routing table", "routing_hash", keys)):
        of_checkpoint, of_run = getattr(checkpoint, key), getattr(run, key)
        if of_checkpoint != of_run:
            text = f"made with another {title}: its {key} is {of_checkpoint}, this run's is {of_run}; {fix}"
            raise CheckpointError(f"{path}: {text}")


def checkpoints(root: Path) -> list[Path]:
    """Return the folders of a root's checkpoints, newest first, damaged ones included; none if the root is not there."""
    paths = root.iterdir() if root.exists() else ()
    return sorted((path for path in paths if CHECKPOINT_NAME.fullmatch(path.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def keep_only(root: Path, step: int) -> None:
    """Remove all checkpoints except the one of a step. If there is none of that step, remove nothing and raise CheckpointError."""
    if not (root / f"step_{step:08d}").exists():  # a link to nothing is no checkpoint
        raise CheckpointError(
            f"{root}: step_{step:08d} is to be kept and is not there, so nothing was removed; take it from a copy, or train "
            "again in another folder"
        )
    prune(root, 0, [step])


def prune(root: Path, keep: int | None = None, spared: Collection[int] = ()) -> None:
    """Remove old checkpoints, and files that interrupted saves have left. No process may be saving. Errors are logged, not raised.

    keep: number of newest checkpoints to keep; None to keep all. spared: steps whose checkpoints are kept besides."""
    try:
        old = [] if keep is None else [path for path in checkpoints(root) if step_of(path) not in spared][keep:]
        for path in old:
            set_aside_for_removal(path)
    except OSError as error:
        logger.warning("cannot prune %s: %s; older checkpoints stay", root, error)
    for path in root.glob(f"{UNFINISHED}*"):
        try:
            is_folder = path.is_dir() and not path.is_symlink()  # of a link, the target is left alone
            shutil.rmtree(path) if is_folder else path.unlink()
        except OSError as error:
            logger.warning("cannot remove %s: %s; remove it by hand to free its space", path, error)


def set_aside_for_removal(folder: Path) -> None:
    """Rename a checkpoint, so that a crash in the middle of its removal leaves no folder that looks damaged."""
    folder.rename(folder.with_name(f"{UNFINISHED}pruned-{folder.name}"))
