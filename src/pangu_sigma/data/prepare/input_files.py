"""Input files, with their hashes; pass `hash`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pangu_sigma.data.manifest import Source
from pangu_sigma.errors import DataError, argument

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputFile:
    """Input file, with its hash, size and modification time."""

    path: Path
    sha256: str
    size: int
    changed: int

    @property
    def source(self) -> Source:
        """Source of the text of a file of which nothing else is known."""
        return Source(name=self.path.name, version="", licence="the user's", sha256=self.sha256)

    def check_unchanged(self) -> None:
        """Raise DataError if the file has changed since it was hashed."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise DataError(f"{argument('--input')} {self.path}: {error.strerror}; check the path") from error
        if (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
            raise DataError(
                f"{argument('--input')} {self.path}: was changed while it was read; call prepare-data when it is complete"
            )


def hash_file(number: int, path: Path) -> Iterator[pa.Table]:
    """Hash a file: yield the values of its `InputFile`. Raises DataError if it cannot be read."""
    status = path.stat()
    logger.info("hashing %s (%.1f MiB)", path, status.st_size / (1 << 20))
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise DataError(f"{argument('--input')} {path}: {error.strerror}; check the path") from error
    yield pa.table({"sha256": [sha256], "size": [status.st_size], "changed": [status.st_mtime_ns]})


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
