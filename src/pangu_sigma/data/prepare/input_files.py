"""Input files, with their hashes; pass `hash`."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.data.manifest import Source
from pangu_sigma.errors import DataError, argument

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputFile:
    """Input file, with its hash, size and modification time. sources: those of its text, for the manifest."""

    path: Path
    sha256: str
    size: int
    changed: int
    sources: list[Source]

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


def hash_file(name: str, item: tuple[Path, list[Source] | None]) -> InputFile:
    """Hash a file, with its sources; None: it is the user's. Raises DataError if it cannot be read."""
    path, sources = item
    status = path.stat()
    logger.info("hashing %s (%.1f MiB)", path, status.st_size / (1 << 20))
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise DataError(f"{argument('--input')} {path}: {error.strerror}; check the path") from error
    own = Source(name=path.name, version="", licence="the user's", sha256=sha256)
    return InputFile(path, sha256, status.st_size, status.st_mtime_ns, sources or [own])


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
