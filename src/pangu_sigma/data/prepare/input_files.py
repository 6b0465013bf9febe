"""Input files of the user, with their hashes; pass `hash`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.data.manifest import Source
from pangu_sigma.data.prepare.packaged.packages import sha256_of
from pangu_sigma.errors import DataError, argument

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputFile:
    """Input file of the user, with its hash, size and modification time."""

    path: Path
    sha256: str
    size: int
    changed: int

    @property
    def source(self) -> Source:
        """Source of the file's text, for the manifest."""
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


def hash_file(name: str, path: Path) -> InputFile:
    """Hash a file. Raises DataError if it cannot be read."""
    status = path.stat()
    logger.info("hashing %s (%.1f MiB)", path, status.st_size / (1 << 20))
    try:
        return InputFile(path, sha256_of(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{argument('--input')} {path}: {error.strerror}; check the path") from error
