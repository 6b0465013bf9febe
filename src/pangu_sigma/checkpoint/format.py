"""Folders of checkpoints: names of files, what a checkpoint says of itself, errors; and a run's folder of checkpoints (root).

A checkpoint's folder is renamed to its name only when it is complete, and the newest by name is the newest.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from pangu_sigma.checkpoint.not_finite import NotFinite, describe
from pangu_sigma.errors import UserError, in_words
from pangu_sigma.sealed import ITS_VERSION, SEAL, UNFINISHED, DamagedFile, read_seal, verify

logger = logging.getLogger(__name__)

FORMAT = 3
"""Format version of a checkpoint; others are refused."""
STATE = "state.json"
"""File of the facts of a checkpoint (`Facts`)."""
UNHEALTHY = "unhealthy.json"
"""File of the facts of a saved state with NaN or infinity, which has neither STATE nor a seal, and is not a checkpoint."""
PARTS = "parts"
"""Metadata key of a checkpoint's file: part of the whole array that each saved array is (parts.py); arrays not listed are whole."""
CHECKPOINT_NAME = re.compile(r"step_(\d{8,18})")
ANOTHER = "use another checkpoint"
OF_FORMAT_2 = (
    "is of format 2, this version reads 3: use 0.1.0 up to commit d8fd62a8, which wrote it, or begin in another folder"
)
"""What is said of checkpoints with LATEST and manifest.json."""


class CheckpointError(UserError, RuntimeError):
    """Error of a checkpoint that cannot be written or read; the message names the file, the problem and the fix."""


class DamagedCheckpoint(CheckpointError):
    """Error of a checkpoint in which a file differs from what was saved."""


class UnhealthyState(UserError, RuntimeError):
    """Error of a save whose weights or moments hold NaN or infinity: no checkpoint was made. All ranks raise it.

    step: step of the state. found: arrays of all ranks with NaN or infinity. folder: folder in which the state is kept for
    inspection; None if that failed. way_on: advice to the user, which names the checkpoint to go back to.
    """

    def __init__(self, step: int, found: list[NotFinite], config: dict[str, Any], folder: Path | None, way_on: str):
        self.step, self.found, self.folder = step, found, folder
        named = describe(found, config) + ([f"the state is kept in {folder} for looking at"] if folder else [])
        super().__init__(
            f"the state after step {step} has values that are not finite and was not saved as a checkpoint: {'; '.join(named)}. "
            f"{way_on} If it comes back, lower train.optimizer.peak_lr, or use other data."
        )


@dataclass(frozen=True)
class Identity:
    """Vocabulary, routing table, configuration and data that a checkpoint belongs to.

    With another vocabulary or routing table the same weights have another meaning; with other data the run is another run.
    config: the resolved configuration as a plain tree (`Config.model_dump(mode="json")`).
    data_hash: content hash of the prepared data (`Manifest.content_hash`); None if unknown or not trained.
    """

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


def read_facts(folder: Path) -> tuple[Facts, dict[str, Any]]:
    """Read the facts of a checkpoint's folder. Returns them and the fingerprints of all its files by name, unverified so far.

    Raises CheckpointError for another format, DamagedCheckpoint for damage.
    """
    if (folder / "manifest.json").exists():
        raise CheckpointError(f"{folder} {OF_FORMAT_2}")
    if (folder / UNHEALTHY).exists():
        raise DamagedCheckpoint(f"{folder} holds values that are not finite, and is no checkpoint; name one beside it")
    file = folder / STATE
    try:
        files = read_seal(folder, ANOTHER)["files"]
        if STATE not in files:
            raise DamagedFile(f"{folder / SEAL}: does not list {STATE}; {ANOTHER}")
        verify(file, files[STATE], ANOTHER)
        content = file.read_bytes()
        if (found := json.loads(content)["format"]) != FORMAT:
            raise CheckpointError(f"{file}: checkpoint format {found}, this version reads {FORMAT}; {ITS_VERSION}")
        facts = _FACTS.validate_json(content)
    except DamagedFile as error:
        raise DamagedCheckpoint(str(error)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # the file has its hash, and is not what a save writes
        raise DamagedCheckpoint(f"{file}: does not say what a save writes; {ANOTHER}") from error
    named = CHECKPOINT_NAME.fullmatch(folder.name)
    if named and int(named[1]) != facts.step:
        raise DamagedCheckpoint(f"{file}: is of step {facts.step}, which its folder's name does not say; {ANOTHER}")
    return facts, files


def checkpoints(root: Path) -> list[Path]:
    """Return the folders of a root's checkpoints, newest first, damaged ones included; none if the root is not there.

    Raises CheckpointError when the root cannot be read, or has checkpoints of an older format.
    """
    try:
        names = {path.name for path in root.iterdir()}
    except OSError as error:
        if not root.exists():
            return []
        raise CheckpointError(in_words(error, root, "name the folder of an earlier run")) from error
    if "LATEST" in names:
        raise CheckpointError(f"{root} {OF_FORMAT_2}")
    return sorted((root / name for name in names if CHECKPOINT_NAME.fullmatch(name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def keep_only(root: Path, step: int) -> None:
    """Remove all checkpoints but that of a step. Raises CheckpointError, and removes nothing, if that one is not there."""
    if not (kept := root / f"step_{step:08d}").exists():
        raise CheckpointError(
            f"{root}: {kept.name} is to be kept and is not there, so nothing was removed; take it from a copy, or train again in "
            "another folder"
        )
    prune(root, 0, [step])


def prune(root: Path, keep: int, spared: Collection[int] = ()) -> None:
    """Remove all but the `keep` newest checkpoints and those of the steps `spared`, and all leftovers. A failure is only logged."""
    for old in [path for path in checkpoints(root) if step_of(path) not in spared][keep:]:
        try:
            set_aside_for_removal(old)
        except OSError as error:
            logger.warning("cannot remove old checkpoint %s: %s; remove it by hand to free its space", old, error)
    remove_leftovers(root)


def set_aside_for_removal(checkpoint: Path) -> None:
    """Rename a checkpoint for `remove_leftovers`: a crash in the middle of its removal leaves no folder that looks damaged."""
    if checkpoint.exists():
        checkpoint.rename(checkpoint.with_name(f"{UNFINISHED}pruned-{checkpoint.name}"))


def remove_leftovers(root: Path) -> None:
    """Remove the files of interrupted saves and of pruned checkpoints; no process may save then. A failure is logged, not raised.

    A link in their place would receive the next save of that name: it is removed, and what it points to is left alone.
    """
    for path in root.glob(f"{UNFINISHED}*"):
        try:
            if path.is_symlink():
                logger.warning("removing the link %s to %s, where checkpoints are written", path, path.readlink())
                path.unlink()
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            logger.warning("cannot remove %s, left by an interrupted save: %s; remove it by hand", path, error)
