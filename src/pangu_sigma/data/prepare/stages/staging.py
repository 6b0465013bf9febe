"""Life of a stage: made or found, kept or removed, and its complete folder put in the place of an earlier one.

The stage of `output` is in the folder `.{output.name}.stage` beside it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_sigma.data.prepare.stages.stage import Stage, StageError
from pangu_sigma.errors import DataError
from pangu_sigma.sealed import sync
from pangu_sigma.writable import folder_lock

logger = logging.getLogger(__name__)

_REPLACED = "replaced"
"""Name in the stage of the folder that is replaced."""


def _folder_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.stage")


def _refuse_links(folder: Path) -> None:
    """Raise StageError for a link in the place of a folder of stages, or in it: what it names would be read, written or removed."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink() and path.name != _REPLACED:  # data.path may be a link, which is replaced as such
            raise StageError(
                f"{path}: is a link, and a stage has none; remove {folder} and call again, or choose another data.path"
            )


@contextmanager
def staged(output: Path, removed: bool) -> Iterator[Stage]:
    """Make the stage of a preparation of `output`, or find it there; it is removed after the block if `removed`.

    It stays if the block fails, in whatever way: the next preparation keeps the passes whose text and settings are the same. Raises
    DataError for errors of the file system, NotWritable if another process works on the stage, StageError for a stage that has a
    link, or lacks a file.
    """
    folder = _folder_of(output)
    _refuse_links(folder)
    there = f"what is done stays in {folder} for the same command; remove it if there will be none"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder_lock(folder):
            yield Stage(folder)
            if removed:
                _remove(folder)
            else:
                logger.info("%s", there)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and folder in Path(error.filename or "").parents:
            raise StageError(f"{error.filename}: is missing, damaged; remove {folder} and call again") from error
        stays = f"; {there}" if folder.exists() else ""
        raise DataError(
            f"cannot write {output}: {error.strerror or error}; nothing was changed there{stays}"
        ) from error
    except Exception:
        logger.info("%s", there)
        raise


def _remove(folder: Path) -> None:
    """Remove the folder of stages. What cannot be removed does no harm, and must not hide how the preparation went."""
    shutil.rmtree(folder, ignore_errors=True)
    if any(folder.glob("*")):  # an open file of NFS has a name that begins with a dot
        logger.warning("%s: cannot be removed; remove it yourself", folder)


def give_back(output: Path) -> None:
    """Give back the name `output` to a folder that was just being replaced when the process was killed.

    Raises NotWritable if a process is replacing it now, StageError for a link in the stage, and DataError.
    """
    folder = _folder_of(output)
    old = next(folder.glob(f"*/{_REPLACED}"), None)
    if old is None or output.exists():
        return
    _refuse_links(folder)
    with folder_lock(folder):
        try:
            old.rename(output)
        except OSError as error:
            raise DataError(
                f"cannot write {output}: {error.strerror}; the data that were there are in {old}"
            ) from error


def replace_folder(fresh: Path, output: Path) -> None:
    """Give a complete folder the name `output`, in place of the folder that has it. Raises OSError."""
    for path in (*fresh.rglob("*"), fresh):
        sync(path)
    old = fresh.with_name(_REPLACED)
    if output.exists():
        output.rename(old)
    try:
        fresh.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise
    sync(output.parent)
