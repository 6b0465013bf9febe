"""What cannot be written is known before the work, and asking leaves nothing behind; and a folder has one writer."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_sigma.writable import LOCK, NotWritable, check_file_writable, check_folder_writable, folder_lock


def test_what_can_be_made_is_not_made(tmp_path: Path):
    check_folder_writable(tmp_path / "a" / "b", "--output")
    check_folder_writable(tmp_path, "--output")
    check_file_writable(tmp_path / "a.json", "--json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("file", "cannot write into .*/file: Not a directory"),
        ("file/run", "cannot write into .*/file: Not a directory"),
        ("link/run", "cannot write into .*/link: No such file or directory"),
        ("loop", "cannot write into .*/loop: Too many levels of symbolic links"),
        ("/proc/run", "cannot write into /proc: .*"),
        ("a" * 400 + "/b", "cannot write into .*: File name too long"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path, folder: str, message: str):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NotWritable, match=f"^output {tmp_path / folder}: {message}; name another path with output$"):
        check_folder_writable(tmp_path / folder, "--output")


def test_a_file_needs_its_folder_and_replaces_nothing(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("mine")
    missing = rf"json {tmp_path}/none/a\.json: No such file or directory; name another file"
    exists = "exists; choose another path with json, or remove it: nothing is replaced"
    for name, message in (("none/a.json", missing), ("", exists), ("config.yaml", exists)):
        with pytest.raises(NotWritable, match=message):
            check_file_writable(tmp_path / name, "--json")


def test_a_link_to_nothing_is_refused_and_stays(tmp_path: Path):
    (tmp_path / "link.json").symlink_to("nowhere")
    with pytest.raises(NotWritable, match=r"link\.json exists; choose another path"):
        check_file_writable(tmp_path / "link.json", "--json")
    assert (tmp_path / "link.json").is_symlink() and not (tmp_path / "nowhere").exists()


HOLD = """
import sys, time
from pathlib import Path
from pangu_sigma.writable import folder_lock
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
    with pytest.raises(NotWritable, match=rf"written by process {other.pid} on {socket.gethostname()} since \d{{4}}-"):
        folder_lock(tmp_path).__enter__()


def test_a_killed_process_releases_the_lock(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with folder_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_the_lock_is_free_again_after_the_block(tmp_path):
    with folder_lock(tmp_path), pytest.raises(NotWritable):
        folder_lock(tmp_path).__enter__()
    with folder_lock(tmp_path):
        pass


def test_a_link_in_its_place_is_refused_and_what_it_names_is_left(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK).symlink_to("mine")
    with pytest.raises(NotWritable, match=r"LOCK is a link, .*, or remove it"):
        folder_lock(tmp_path).__enter__()
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(NotWritable, match=r"No locks available; use a file system that has locks"):
        folder_lock(tmp_path).__enter__()


def test_a_lock_of_a_folder_that_was_just_removed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (tmp_path / LOCK).unlink())
    with (
        pytest.raises(NotWritable, match="was removed by the process that wrote there; call again"),
        folder_lock(tmp_path),
    ):
        pass
