"""Pass `hash`: input files → their hashes; and whether a file has changed since."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from pangu_sigma.errors import DataError, argument

logger = logging.getLogger(__name__)

Stamp = tuple[str, int, int]
"""Path, size and modification time of a file."""


def stamps_of(files: Sequence[Path]) -> list[Stamp]:
    """Return the stamps of input files. Raises DataError for a file that cannot be read."""
    try:
        return [(str(path), (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    except OSError as error:
        raise DataError(f"{argument('--input')} {error.filename}: {error.strerror}; check the path") from error


def refuse_changes(files: Sequence[Path], stamps: Sequence[Stamp]) -> None:
    """Raise DataError if a file has other stamps than those before it was read."""
    for path, *_ in sorted({*stamps_of(files)} - {*stamps}):
        raise DataError(
            f"{argument('--input')} {path}: was changed while it was read; call prepare-data when it is complete"
        )


def hash_file(number: int, path: Path) -> Iterator[pa.Table]:
    """Hash a file. Raises DataError if it cannot be read."""
    try:
        logger.info("hashing %s (%.1f MiB)", path, path.stat().st_size / (1 << 20))
        yield pa.table({"sha256": [sha256_of(path)]})
    except OSError as error:
        raise DataError(f"{argument('--input')} {path}: {error.strerror}; check the path") from error


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
