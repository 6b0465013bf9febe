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


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path):
    check_folder_writable(tmp_path / "a" / "b", "--output")
    check_folder_writable(tmp_path, "--output")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder_is_refused_by_name(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            NotWritable,
            match=rf"^output {folder}: cannot write into {tmp_path / 'file'}: Not a directory; name another path",
        ):
            check_folder_writable(folder, "--output")


def test_a_link_to_nowhere_is_refused(tmp_path: Path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("link", "loop", "link/run"):
        with pytest.raises(
            NotWritable, match=rf"^output {tmp_path / name}: cannot write into {tmp_path}/l.*; name another"
        ):
            check_folder_writable(tmp_path / name, "--output")


def test_a_folder_of_the_kernel_is_refused():
    with pytest.raises(
        NotWritable, match=r"^output /proc/run: cannot write into /proc: .*; name another path with output"
    ):
        check_folder_writable(Path("/proc/run"), "--output")


def test_a_name_that_cannot_be_is_refused(tmp_path: Path):
    with pytest.raises(NotWritable, match=r"cannot write into .*: File name too long"):
        check_folder_writable(tmp_path / ("a" * 400) / "b", "--output")


def test_a_file_needs_its_folder(tmp_path: Path):
    check_file_writable(tmp_path / "a.json", "--json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        NotWritable, match=rf"json {tmp_path}/none/a\.json: No such file or directory; name another file"
    ):
        check_file_writable(tmp_path / "none" / "a.json", "--json")
    with pytest.raises(NotWritable, match="it is a folder, or this user may not write it; name another"):
        check_file_writable(tmp_path, "--json")
    check_file_writable(Path("/dev/stdout"), "--json")


def test_json_over_an_existing_file_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(NotWritable, match=r"config\.yaml exists; choose another path with json, or remove it: nothing"):
        check_file_writable(tmp_path / "config.yaml", "--json")
    check_file_writable(Path("/dev/null"), "--json")


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
