"""Checks of output files and folders, before hours of work depend on them; and a lock that lets one process write to a folder."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pangu_sigma.errors import UserError, argument

LOCK = "LOCK"
"""Name of the lock file; it names the writer, and stays behind unlocked: the system releases it whenever the process ends."""


class NotWritable(UserError):
    """Error of a file or folder that cannot be written, or in which another process writes."""


def check_folder_writable(folder: Path, option: str) -> None:
    """Raise NotWritable unless `folder` can be created, or exists and can be written into; nothing is left behind. option: the
    option that gave the path, for messages, such as "--output"."""
    name, existing = argument(option), folder.absolute()
    try:
        existing = next(path for path in (existing, *existing.parents) if path.is_symlink() or path.exists())
        # permissions do not tell: root may do everything, but not on a read-only or full file system, or in /proc
        with tempfile.TemporaryDirectory(prefix=".pangu_sigma-", dir=existing):
            pass
    except OSError as error:
        why = f"cannot write into {existing}: {error.strerror}; name another path with {name}"
        raise NotWritable(f"{name} {folder}: {why}") from error


def check_file_writable(file: Path, option: str) -> None:
    """Raise NotWritable if `file` cannot be created, or exists, if only as a link. option: the option that names it, "--json"."""
    name = argument(option)
    if file.exists() or file.is_symlink():
        raise NotWritable(f"{file} exists; choose another path with {name}, or remove it: nothing is replaced")
    try:
        file.touch()
        file.unlink()
    except OSError as error:
        raise NotWritable(f"{name} {file}: {error.strerror}; name another file with {name}") from error


def refuse_link(path: Path) -> None:
    """Raise NotWritable if `path`, which we are going to write, is a link: its target may be somebody else's."""
    if path.is_symlink():
        raise NotWritable(f"{path} is a link, whose target would be written; put the target there, or remove it")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the write lock of a folder, which is created, in a `with` statement. Readers need no lock. Raises NotWritable if another
    process, or another call in this one, holds the lock; the message says who and since when."""
    file = folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    refuse_link(file)
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o644), "r+", errors="replace") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read(1000).strip() or "another process"
            raise NotWritable(f"{folder} is written by {holder}; wait, or choose another folder") from None
        except OSError as error:
            raise NotWritable(f"{file}: {error.strerror}; use a file system that has locks") from error
        if not os.fstat(lock.fileno()).st_nlink:  # the holder ended just now, and removed the folder
            raise NotWritable(f"{folder} was removed by the process that wrote there; call again")
        lock.truncate()
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"process {os.getpid()} on {socket.gethostname()} since {now}", file=lock, flush=True)
        yield
