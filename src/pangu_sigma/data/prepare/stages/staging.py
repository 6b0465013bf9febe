"""Life of a stage: made or found, kept or removed. The stage of `output` is in the folder `.{output.name}.stage` beside it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_sigma.data.manifest import MANIFEST_FILE
from pangu_sigma.data.prepare.stages.stage import Stage, StageError
from pangu_sigma.data.prepared import QUARANTINE_NAME
from pangu_sigma.errors import DataError
from pangu_sigma.sealed import commit, write_atomically
from pangu_sigma.writable import folder_lock, refuse_link

logger = logging.getLogger(__name__)


def _folder_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.stage")


def moving_of(output: Path) -> Path:
    """Return the folder of the stage with the domains of an extension that are being moved to `output`."""
    return _folder_of(output) / "moving"


def end_move(output: Path) -> bool:
    """Move the domains of a complete extension to `output`, with its unusable lines; after a kill the next call ends the move.

    Returns False if there is none. Raises DataError for errors of the file system.
    """
    moving, file = moving_of(output), output / QUARANTINE_NAME
    if not moving.exists():
        return False
    try:
        lines, before = (moving / QUARANTINE_NAME).read_bytes(), file.read_bytes() if file.exists() else b""
        if not before.endswith(lines):  # as after a kill
            write_atomically(file, before + lines)
        for manifest in sorted(moving.glob(f"*/{MANIFEST_FILE}")):
            commit(manifest.parent, output / manifest.parent.name)
        shutil.rmtree(moving)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror}; call again when it can be written") from error
    return True


@contextmanager
def staged(output: Path, removed: bool) -> Iterator[Stage]:
    """Make the stage of a preparation of `output`, or find it there; it is removed after the block if `removed`.

    It stays if the block fails, in whatever way: the next preparation keeps the passes whose text and settings are the same. Raises
    DataError for errors of the file system, NotWritable if another process works on the stage or a link is in its place, and
    StageError for a stage that lacks a file.
    """
    folder = _folder_of(output)
    refuse_link(folder)
    remark = f"what is done stays in {folder} for the same command; remove it if there will be none"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder_lock(folder):
            yield Stage(folder)
            if removed:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                logger.info("%s", remark)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and folder in Path(error.filename or "").parents:
            raise StageError(f"{error.filename}: is missing, damaged; remove {folder} and call again") from error
        stays = f"; {remark}" if folder.exists() else ""
        raise DataError(
            f"cannot write {output}: {error.strerror or error}; nothing was changed there{stays}"
        ) from error
    except Exception:
        logger.info("%s", remark)
        raise
