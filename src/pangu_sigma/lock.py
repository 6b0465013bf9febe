"""Lock that lets only one process write to a folder; the system releases it whenever the process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_sigma.errors import UserError, argument

LOCK = "LOCK"
"""Name of the lock file; it names the writer, and stays behind unlocked."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY)
"""Error numbers of file systems without locks."""


class LockError(UserError, RuntimeError):
    """Error of a folder in which another process writes, or whose file system has no locks."""


@contextmanager
def folder_lock(folder: Path, required: bool = True) -> Iterator[None]:
    """Hold the write lock of a folder, which is created, in a `with` statement. Readers need no lock.

    required: False to go on without a lock if the file system has none.
    Raises LockError if another process, or another call in this one, holds the lock; the message says who and since when.
    """
    file = folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    if file.is_symlink():
        raise LockError(f"{file} is a link, and what it names would be emptied; remove it")
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if required or error.errno not in _NO_LOCKS:
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
                raise LockError(_explain(file, error, holder)) from error
        else:
            if not os.fstat(descriptor).st_nlink:  # the holder ended just now, and removed the folder
                raise LockError(f"{folder} was removed by the process that wrote there; call again")
            os.ftruncate(descriptor, 0)
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _explain(file: Path, error: OSError, holder: str) -> str:
    if error.errno in _NO_LOCKS:
        return (
            f"{file}: this file system has no locks ({error.strerror}), so a second writer would not be noticed; put the folder on "
            f"another one, or take care of it yourself and add {argument('--no-lock', 'lock=False')}"
        )
    return f"{file.parent} is written by {holder or 'another process'}; wait until it ends, or choose another folder"
