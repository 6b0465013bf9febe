"""Folder of a run's checkpoints (root): list checkpoints, find the newest one, make one the newest, and prune.

LATEST is a hint. The folders that exist decide: a checkpoint's folder is renamed to its name only when it is complete.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pangu_sigma.checkpoint.format import CHECKPOINT_NAME, LATEST, MANIFEST, CheckpointError
from pangu_sigma.errors import remedy
from pangu_sigma.sealed import UNFINISHED, sync

logger = logging.getLogger(__name__)

NEXT_LATEST = f"{UNFINISHED}{LATEST}"
"""Name of the file that is renamed to LATEST."""
ASIDE = f"{UNFINISHED}replaced-"
"""Prefix of a checkpoint that is renamed while another one of the same step replaces it."""


def has_checkpoints(root: Path) -> bool:
    """Return True if a root holds checkpoints, damaged ones included, or a LATEST that names a checkpoint.

    A run may start at step 0 only if this is False; otherwise `load_checkpoint` returns the newest whole checkpoint or raises.
    Raises CheckpointError when the root cannot be read.
    """
    return bool(_checkpoints(root)) or (root / LATEST).exists()


def latest_checkpoint(root: Path) -> Path | None:
    """Return the folder of the newest checkpoint, by its name; None if a root has none."""
    return next(iter(candidates(root)), None) if has_checkpoints(root) else None


def candidates(root: Path) -> list[Path]:
    """Return the checkpoints of a root in the order in which loading tries them.

    The checkpoint that LATEST names comes first, then older checkpoints, newest first. A run that resumed further back has newer
    checkpoints too; they come last, and only if LATEST names a missing checkpoint. Without a readable LATEST all are returned,
    newest first. A save that is killed before it renames its new LATEST leaves that file under another name; it then counts as
    LATEST if the checkpoint that it names exists, because such a checkpoint is whole and healthy.
    """
    found = _checkpoints(root)
    names = [path.name.removeprefix(ASIDE) for path in found]
    name, coming = _named(root / LATEST), _named(root / NEXT_LATEST)
    if coming in names and coming != name:
        logger.warning("%s does not name %s, whose save was interrupted; trying that first", root / LATEST, coming)
        name = coming
    if name is None:
        if found:
            logger.warning("%s is missing or names none; using the newest whole checkpoint there", root / LATEST)
        return found
    older = [path for path in found if step_of(path) <= step_of(Path(name))]
    if name in names:
        return older
    if found:
        logger.warning(
            "%s names %s, which is not there (no %s); using the newest whole checkpoint before it, or after it if there is none",
            *(root / LATEST, name, f"{name}/{MANIFEST}"),
        )
    return [*older, *(path for path in found if path not in older)]


def make_latest(unfinished: Path, target: Path) -> None:
    """Make the folder of a complete save the newest checkpoint, in this order: write its name to NEXT_LATEST, by which a killed
    save is recognised; rename the folder `unfinished` to `target`; rename NEXT_LATEST to LATEST."""
    root = target.parent
    note = _note(root, target.name)
    try:
        _move_into_place(unfinished, target)
    except OSError:
        note.unlink(missing_ok=True)
        raise
    sync(root)
    note.replace(root / LATEST)
    sync(root)


def _note(root: Path, name: str) -> Path:
    note = root / NEXT_LATEST
    note.write_text(f"{name}\n", encoding="utf-8")
    sync(note)
    return note


def _move_into_place(unfinished: Path, target: Path) -> None:
    """Rename a folder to `target`. An earlier checkpoint of the same step is renamed before, and back if this fails."""
    if target.exists():
        aside = target.with_name(f"{ASIDE}{target.name}")
        target.rename(aside)
        try:
            unfinished.rename(target)
        except OSError:
            aside.rename(target)
            raise
    else:
        unfinished.rename(target)


def recover_interrupted_save(root: Path) -> None:
    """Complete a killed save if its folder has the checkpoint's name, else remove its files. No process may read or save then."""
    for aside in root.glob(f"{ASIDE}*"):
        if not (target := root / aside.name.removeprefix(ASIDE)).exists():
            aside.rename(target)
    name = _named(root / NEXT_LATEST)
    if name is not None and (root / name).exists():
        (root / NEXT_LATEST).replace(root / LATEST)
    remove_leftovers(root)


def keep_only(root: Path, step: int) -> None:
    """Make the checkpoint of a step the newest, and remove all other checkpoints. Raises OSError, and the error of `prune`."""
    prune(root, max(map(step_of, _checkpoints(root)), default=step), 0, [step])
    _note(root, f"step_{step:08d}").replace(root / LATEST)
    sync(root)
    remove_leftovers(root)


def prune(root: Path, step: int, keep: int, spared: Collection[int] = ()) -> None:
    """Prune all but the `keep` newest checkpoints up to `step`: rename them for `remove_leftovers`. A failed rename is only logged.

    keep: 0 to keep only those of the steps `spared`. spared: further steps whose checkpoints are kept.
    Raises CheckpointError, and prunes nothing, if `keep` is 0 and no checkpoint of the steps `spared` is there.
    """
    checkpoints = _checkpoints(root)
    old_ones = [path for path in checkpoints if step_of(path) <= step and step_of(path) not in spared]
    if keep == 0 and len(old_ones) == len(checkpoints):
        wanted = ", ".join(f"step_{number:08d}" for number in spared)
        raise CheckpointError(
            f"{root}: {wanted} is to be kept and is not there, so nothing was removed; take it from a copy, or train again in "
            "another folder"
        )
    for old in old_ones[keep:]:
        try:
            # Renamed first: a crash in the middle leaves a leftover, not a checkpoint that looks damaged.
            old.rename(root / f"{UNFINISHED}pruned-{old.name}")
        except OSError as error:
            logger.warning("cannot remove old checkpoint %s: %s; remove it by hand to free its space", old, error)


def remove_leftovers(root: Path) -> None:
    """Remove the files of interrupted saves and of replaced and pruned checkpoints. A failure is logged, not raised.

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


def _named(file: Path) -> str | None:
    """Return the checkpoint's name in LATEST or the next LATEST; None if it cannot be read or names no checkpoint."""
    with suppress(OSError):
        # a pipe has no end
        name = file.read_bytes()[:100].decode(errors="replace").strip() if file.is_file() else ""
        if CHECKPOINT_NAME.fullmatch(name):
            return name
    return None


def _checkpoints(root: Path) -> list[Path]:
    """List the checkpoint directories of a root, newest first, with those renamed for a replacement that never came; none if the
    root is not there."""
    try:
        found = {path.name: path for path in root.iterdir()}
    except OSError as error:
        if not root.exists():
            return []
        fix = remedy(error, "name the folder of an earlier run")
        raise CheckpointError(f"cannot read checkpoints in {root}: {error.strerror}; {fix}") from error
    whole = [
        path
        for name, path in found.items()
        if CHECKPOINT_NAME.fullmatch(usual := name.removeprefix(ASIDE)) and (usual == name or usual not in found)
    ]
    return sorted(whole, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's directory."""
    return int(path.name.removeprefix(ASIDE).removeprefix("step_"))
