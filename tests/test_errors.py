"""How a command ends: with its own status, or after one message."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pangu_sigma.errors import _MEMORY, _THREADS, DataError, exit_status


def ends(capsys: Any, error: BaseException) -> tuple[int, str]:
    """Status and message of a command that raises."""

    def command() -> int:
        raise error

    status = exit_status(command)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return status, captured.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("no text; write some"), "no text; write some"),
        *(
            (OSError(number, os.strerror(number), "runs/a"), f"runs/a: {os.strerror(number)}; {fix}")
            for number, fix in (
                (errno.ENOSPC, "free space on that disk"),
                (errno.EROFS, "use a folder on another file system"),
                (errno.EACCES, "change its permissions, or use another folder"),
                (errno.ENOTDIR, "a file is where a folder must be; use another folder"),
            )
        ),
        (OSError(errno.ENOSPC, "No space"), "No space; free space on that disk"),  # a write names no file
        (MemoryError("Unable to allocate 9 TiB"), f"{_MEMORY} (Unable to allocate 9 TiB)"),
        (MemoryError(), _MEMORY),
        (
            RuntimeError("\n-\n- Memory not enough:\nstd::bad_alloc\n\n- C++ Call Stack: …"),
            f"{_MEMORY} (std::bad_alloc)",
        ),
        (ImportError("a.so: failed to map segment from b"), f"{_MEMORY} (a.so: failed to map segment from b)"),
        # pthread_create says EAGAIN for its stack's memory and for the limit of processes alike
        (RuntimeError("-\ncan't start new thread\n- C++ Call Stack: …"), f"{_THREADS} (can't start new thread)"),
    ],
    ids=repr,
)
def test_an_error_that_a_user_can_mend_is_one_message_with_status_2(capsys, error, message):
    assert ends(capsys, error) == (2, f"error: {message}\n")


def test_a_bug_keeps_its_traceback():
    read, broken_pipe = os.pipe()
    os.close(read)
    bugs: list[tuple[type[Exception], Callable[[], object]]] = [
        (FileNotFoundError, lambda: Path("none").read_bytes()),
        (BrokenPipeError, lambda: os.write(broken_pipe, b"x")),  # of another file than standard output
        (KeyError, lambda: {}["a"]),
    ]
    for kind, bug in bugs:
        with pytest.raises(kind):
            exit_status(lambda bug=bug: bool(bug()))
    with pytest.raises(RuntimeError, match="Compile failed"):
        ends(None, RuntimeError("Compile failed"))


def test_a_command_ends_with_its_own_status_or_as_interrupted(capsys):
    assert exit_status(lambda: 1) == 1
    assert ends(capsys, KeyboardInterrupt()) == (130, "interrupted\n")
