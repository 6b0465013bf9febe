"""How a command ends: with its own status, or after one message."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pangu_sigma.errors import DataError, exit_status


def ends(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[int, str]:
    """Status and message of a command that raises."""

    def command() -> int:
        raise error

    status = exit_status(command)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return status, captured.err


def test_what_a_user_can_mend_is_one_message(capsys):
    assert exit_status(lambda: 1) == 1
    assert ends(capsys, DataError("no text; write some")) == (2, "error: no text; write some\n")


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space on that disk"),
        (errno.EROFS, "another file system"),
        (errno.EACCES, "permissions"),
        (errno.ENOTDIR, "a file is where a folder must be"),
        (errno.EIO, "the disk fails"),
    ],
)
def test_a_disk_that_is_full_or_refuses_is_one_message(capsys, number, fix):
    status, message = ends(capsys, OSError(number, os.strerror(number), "runs/a/config.yaml"))
    assert status == 2
    assert message.startswith(f"error: runs/a/config.yaml: {os.strerror(number)}; ")
    assert fix in message
    assert ends(capsys, OSError(number, os.strerror(number)))[1].startswith(f"error: {os.strerror(number)}; "), (
        "a write"
    )


def test_a_file_that_nobody_looked_for_is_a_bug_and_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        exit_status(lambda: len(Path("none").read_bytes()))
    with pytest.raises(BrokenPipeError):  # of something else than standard output
        exit_status(lambda: os.write(broken_pipe(), b"x"))


def broken_pipe() -> int:
    """The end to write into of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_full_memory_is_one_message(capsys):
    status, message = ends(capsys, MemoryError("Unable to allocate 9 TiB"))
    assert (status, "Unable to allocate 9 TiB" in message) == (2, True)


def test_out_of_memory_in_mindspore_is_one_message_with_status_2(capsys):
    for said in ("Memory isn't enough and alloc failed, alloc size: 8B.", "std::bad_alloc"):
        status, message = ends(
            capsys, RuntimeError(f"\n----\n- Memory not enough:\n----\n{said}\n\n----\n- C++ Call Stack: …")
        )
        assert (status, f"memory is full ({said}); close other programs" in message) == (2, True)
    assert ends(capsys, ImportError("a.so: failed to map segment from shared object"))[0] == 2
    assert ends(capsys, MemoryError())[1].startswith("error: memory is full; close other programs")
    with pytest.raises(RuntimeError, match="Compile failed"):
        exit_status(lambda: raised(RuntimeError("Compile failed")))


def test_a_thread_that_cannot_be_started_is_not_told_as_full_memory_alone(capsys):
    """pthread_create says EAGAIN for its stack's memory and for the limit of processes alike."""
    for said in ("Resource temporarily unavailable", "can't start new thread"):
        status, message = ends(capsys, RuntimeError(f"\n----\n{said}\n- C++ Call Stack: …"))
        assert status == 2
        assert message.startswith(
            f"error: no more threads can be started, for lack of memory or by a limit of processes ({said}); "
        )
        assert "`ulimit -u`" in message


def raised(error: Exception) -> int:
    raise error


def test_ctrl_c_is_one_line(capsys):
    assert ends(capsys, KeyboardInterrupt()) == (130, "interrupted\n")
