"""Filter of system calls for programs in the sandbox.

A program has one process and one thread, so that limits on a process are limits on the program; only memory that is counted as its
own; no network; no namespaces, in which it would have privileges; and no access to memory, keys or signals of other processes.
"""

from __future__ import annotations

import ctypes
import errno
import platform

from pangu_sigma.evaluate.sandbox.libc import filter_calls

DENIED = {
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "socket": (41, 198),
    "unshare": (272, 97),
    "setns": (308, 268),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
"""Numbers of the denied system calls on x86_64 and aarch64; None if an architecture has no such call."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of `DENIED`, and the kernel's number of the machine."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
_NUMBER, _MACHINE = 0, 4  # offsets in what a filter is given
_X32 = 0x40000000  # the same calls of x86_64 once more, with shorter addresses


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def deny_calls() -> None:
    """Deny the system calls `DENIED`, with error EPERM, to this process and its children. Raises OSError if that is impossible."""
    if platform.machine() not in _MACHINES:
        raise OSError(
            errno.ENOSYS, f"system calls can be filtered on {' and '.join(_MACHINES)}, not on {platform.machine()}"
        )
    column, machine = _MACHINES[platform.machine()]
    numbers = [number for numbers in DENIED.values() if (number := numbers[column]) is not None]
    to_refusal = range(len(numbers), -1, -1)  # instructions between a comparison and the last one
    steps = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, to_refusal[0] + 1, 0, _X32),
        *((_EQUAL, skip, 0, number) for skip, number in zip(to_refusal, numbers, strict=False)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    filter_calls(_Program(len(steps), ctypes.cast(instructions, ctypes.POINTER(_Instruction))))
