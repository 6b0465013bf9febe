"""Linux system calls that Python 3.11 has no function for. Each raises OSError, with the name of the call in its text."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, NOATIME, NODIRATIME = 1, 2, 4, 8, 32, 1024, 2048
BIND, REC, PRIVATE, RELATIME = 4096, 16384, 1 << 18, 1 << 21

_DETACH, _PDEATHSIG, _SECCOMP, _NO_NEW_PRIVILEGES = 2, 1, 22, 38
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(namespaces: int) -> None:
    """Enter new Linux namespaces, by flags such as NEWNET. A new process namespace holds only the children of this process."""
    _call("unshare", ctypes.c_int(namespaces))


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """Mount a file system, or bind-mount a folder or file."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def make_root(new: str, old: str) -> None:
    """Make a mounted folder the root of this mount namespace, and move the old root into a folder of it."""
    _call("syscall", ctypes.c_long(_PIVOT_ROOT[platform.machine()]), new.encode(), old.encode())
    os.chdir("/")


def unmount(target: str) -> None:
    """Detach a mount and all mounts below it."""
    _call("umount2", target.encode(), ctypes.c_int(_DETACH))


def die_with_parent(signal: int) -> None:
    """Ask Linux to send this process a signal when the thread that started it ends."""
    _prctl(_PDEATHSIG, signal)


def gain_no_privileges() -> None:
    """Prevent this process from gaining privileges by executing programs."""
    _prctl(_NO_NEW_PRIVILEGES, 1)


def filter_calls(program: ctypes.Structure) -> None:
    """Install a filter of system calls, a `struct sock_fprog`, permanently."""
    _prctl(_SECCOMP, 2, ctypes.addressof(program))


def _prctl(option: int, *arguments: int) -> None:
    padded = [*arguments, 0, 0, 0, 0][:4]
    _call("prctl", ctypes.c_int(option), *map(ctypes.c_ulong, padded))


def _call(name: str, *arguments: Any) -> None:
    ctypes.set_errno(0)
    if getattr(_libc, name)(*arguments) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
