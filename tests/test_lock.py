"""One writer in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from pangu_sigma.lock import LOCK, LockError, folder_lock

HOLD = """
import sys, time
from pathlib import Path
from pangu_sigma.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that writes in tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path, other):
    with pytest.raises(LockError, match=rf"written by process {other.pid} on {socket.gethostname()} since \d{{4}}-"):
        folder_lock(tmp_path).__enter__()


def test_a_killed_process_releases_the_lock(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with folder_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_the_lock_is_free_again_after_the_block(tmp_path):
    with folder_lock(tmp_path), pytest.raises(LockError):
        folder_lock(tmp_path).__enter__()
    with folder_lock(tmp_path):
        pass


def test_a_link_in_its_place_is_refused_and_what_it_names_is_left(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK).symlink_to("mine")
    with pytest.raises(LockError, match=r"LOCK is a link, .*; remove it"):
        folder_lock(tmp_path).__enter__()
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(LockError, match=r"No locks available; use a file system that has locks"):
        folder_lock(tmp_path).__enter__()


def test_a_lock_of_a_folder_that_was_just_removed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (tmp_path / LOCK).unlink())
    with (
        pytest.raises(LockError, match="was removed by the process that wrote there; call again"),
        folder_lock(tmp_path),
    ):
        pass
