"""Lock that lets only one process write to a folder; the system releases it whenever the process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from pangu_sigma.errors import UserError, argument

LOCK = "LOCK"
"""Name of the lock file; it names the writer, and stays behind unlocked."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY)
"""Error numbers of file systems without locks."""


class LockError(UserError, RuntimeError):
    """Error of a folder in which another process writes, or whose file system has no locks."""


class FolderLock:
    """Context manager that holds the write lock of a folder. Readers need no lock.

    Raises LockError if another process, or another `FolderLock` of this one, holds the lock; the message says who and since when.
    """

    def __init__(self, folder: Path, required: bool = True):
        """folder: created if it does not exist. required: False to go on without a lock if the file system has none."""
        self._folder, self._required = folder, required
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        file = self._folder / LOCK
        self._folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 1000, 0).decode(errors="replace").strip()
            self._close()
            if error.errno in _NO_LOCKS and not self._required:
                return self
            raise LockError(_explain(file, error, holder)) from error
        os.ftruncate(self._descriptor, 0)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        writer = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
        os.pwrite(self._descriptor, writer.encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _explain(file: Path, error: OSError, holder: str) -> str:
    if error.errno in _NO_LOCKS:
        return (
            f"{file}: this file system has no locks ({error.strerror}), so a second writer would not be noticed; put the folder on "
            f"another one, or take care of it yourself and add {argument('--no-lock', 'lock=False')}"
        )
    return f"{file.parent} is written by {holder or 'another process'}; wait until it ends, or choose another folder"
