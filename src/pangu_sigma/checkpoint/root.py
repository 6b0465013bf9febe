"""Folder of a run's checkpoints (root): list checkpoints, and remove old ones and what was left behind.

A checkpoint's folder is renamed to its name only when it is complete, and the newest by name is the newest.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from pangu_sigma.checkpoint.format import CHECKPOINT_NAME, OF_FORMAT_2, CheckpointError
from pangu_sigma.errors import in_words
from pangu_sigma.sealed import UNFINISHED

logger = logging.getLogger(__name__)


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
    remove_leftovers(root)


def prune(root: Path, keep: int, spared: Collection[int] = ()) -> None:
    """Rename all but the `keep` newest checkpoints and those of the steps `spared`, for `remove_leftovers`. A failed rename is only
    logged."""
    for old in [path for path in checkpoints(root) if step_of(path) not in spared][keep:]:
        try:
            set_aside_for_removal(old)
        except OSError as error:
            logger.warning("cannot remove old checkpoint %s: %s; remove it by hand to free its space", old, error)


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
