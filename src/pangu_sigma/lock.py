"""Lock that lets only one process write to a folder; the system releases it whenever the process ends."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_sigma.errors import UserError

LOCK = "LOCK"
"""Name of the lock file; it names the writer, and stays behind unlocked."""


class LockError(UserError, RuntimeError):
    """Error of a folder in which another process writes, or whose file system has no locks."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the write lock of a folder, which is created, in a `with` statement. Readers need no lock.

    Raises LockError if another process, or another call in this one, holds the lock; the message says who and since when.
    """
    file = folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    if file.is_symlink():
        raise LockError(f"{file} is a link, and what it names would be emptied; remove it")
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o644), "r+", errors="replace") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read(1000).strip() or "another process"
            raise LockError(f"{folder} is written by {holder}; wait until it ends, or choose another folder") from None
        except OSError as error:
            raise LockError(
                f"{file}: {error.strerror}; use a file system that has locks, or mount it with them"
            ) from error
        if not os.fstat(lock.fileno()).st_nlink:  # the holder ended just now, and removed the folder
            raise LockError(f"{folder} was removed by the process that wrote there; call again")
        lock.truncate()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"process {os.getpid()} on {socket.gethostname()} since {now}", file=lock, flush=True)
        yield
