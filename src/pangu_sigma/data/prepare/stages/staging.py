"""Life of a stage: made or found, kept or removed. The stage of `output` is in the folder `.{output.name}.stage` beside it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_sigma.data.prepare.stages.stage import Stage, StageError
from pangu_sigma.errors import DataError
from pangu_sigma.writable import folder_lock, refuse_link

logger = logging.getLogger(__name__)


@contextmanager
def staged(output: Path, removed: bool) -> Iterator[Stage]:
    """Make the stage of a preparation of `output`, or find it there; it is removed after the block if `removed`.

    It stays if the block fails, in whatever way: the next preparation keeps the passes whose text and settings are the same. Raises
    DataError for errors of the file system, NotWritable if another process works on the stage or a link is in its place, and
    StageError for a stage that lacks a file.
    """
    folder = output.with_name(f".{output.name}.stage")
    refuse_link(folder)
    remark = f"what is done stays in {folder} for the same command; remove it if there will be none"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder_lock(folder):
            yield Stage(folder)
            if not removed:
                logger.info("%s", remark)
        if removed:
            shutil.rmtree(folder, ignore_errors=True)
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
