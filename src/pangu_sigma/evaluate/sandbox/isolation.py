"""Isolation of a program: its own namespaces, a root folder with nothing but Python, and its own user id.

Root needs the capability SYS_ADMIN for this. Other users need user namespaces; outside of the namespace the program's user id is
then still the user's, which is why the new root has no file that only this user could read.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from pathlib import Path

from pangu_sigma.evaluate.sandbox import libc
from pangu_sigma.evaluate.sandbox.program_limits import ProgramLimits

WORK = "/work"
"""Folder of a program in the sandbox, the only folder that the program can write to."""

_SHOWN = ("/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")
"""Paths in the new root beside Python's folder: libraries and their index. No /proc, no /etc, no home."""

_OPTIONS = ("nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime")
_KEPT = {option: getattr(libc, option.upper()) for option in _OPTIONS}
"""Mount options to keep when a mount becomes read-only: the kernel does not allow their removal."""


def enter_namespaces() -> None:
    """Enter new Linux namespaces of mounts, IPC, network and, for children, processes. Raises OSError if that is not allowed."""
    namespaces = libc.NEWNS | libc.NEWIPC | libc.NEWNET | libc.NEWPID
    if os.geteuid() == 0:
        libc.unshare(namespaces)
        return
    user, group = os.geteuid(), os.getegid()
    libc.unshare(namespaces | libc.NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def unused_user_id() -> int:
    """Return an unused user id, different for each process; without root, the user's own id. Raises OSError if none is free."""
    if os.geteuid() != 0:
        return os.geteuid()
    ranges = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    first, _, count = max(ranges, key=lambda each: each[2])
    last = first + count - 2 - os.getpid() % max(count // 4, 1)
    free = (user for user in range(last, max(first, last - 1000), -1) if not _is_account(user))
    if (user := next(free, None)) is None:
        raise OSError(0, f"no user id is free among {count} that this machine has for root")
    return user


def make_minimal_root(limits: ProgramLimits, user: int) -> None:
    """Give this process, before it runs a program in the sandbox, a root folder with libraries, Python and an empty folder that
    alone is writable, and unmount the old root. limits: sizes of that folder. user: its owner. Raises OSError."""
    libc.mount(None, "/", flags=libc.REC | libc.PRIVATE)
    libc.mount("tmpfs", "/tmp", "tmpfs", libc.NOSUID, "mode=755,size=1m")
    Path("/tmp/old").mkdir()
    libc.make_root("/tmp", "/tmp/old")
    for path in dict.fromkeys([*_SHOWN, os.path.realpath(sys.base_prefix)]):
        _show(path)
    Path(WORK).mkdir()
    options = f"mode=700,uid={user},gid={user if os.geteuid() == 0 else os.getegid()},size={limits.folder_bytes}"
    libc.mount("tmpfs", WORK, "tmpfs", libc.NOSUID | libc.NODEV, f"{options},nr_inodes={limits.files + 1}")
    points = _mounted()
    libc.unmount("/old")
    Path("/old").rmdir()
    for point, flags in points:
        libc.mount(None, point, flags=libc.BIND | libc.REMOUNT | libc.RDONLY | libc.NOSUID | flags)


def drop_privileges(user: int) -> None:
    """Change from root to a user id and the equal group id. Does nothing if the process is not root's."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _show(path: str) -> None:
    """Make a file, folder or link of the old root available in the new one."""
    old, new = Path(f"/old{path}"), Path(path)
    if old.is_symlink():
        new.parent.mkdir(parents=True, exist_ok=True)
        new.symlink_to(old.readlink())
    elif old.is_dir():
        new.mkdir(parents=True, exist_ok=True)
        libc.mount(str(old), path, flags=libc.BIND | libc.REC)
    elif old.exists():
        new.parent.mkdir(parents=True, exist_ok=True)
        new.touch()
        libc.mount(str(old), path, flags=libc.BIND)


def _mounted() -> list[tuple[str, int]]:
    """Return the mounts of the new root to make read-only, with the options to keep."""
    found = []
    for line in Path("/old/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), words[4])
        if point != WORK and point != "/old" and not point.startswith("/old/"):
            found.append((point, sum(_KEPT.get(option, 0) for option in words[5].split(","))))
    return found


def _is_account(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True
