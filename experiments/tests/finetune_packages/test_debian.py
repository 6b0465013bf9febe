"""Packages of Debian: their files, and what is said where one cannot be had or read."""

from __future__ import annotations

import hashlib
import re
import subprocess

import pytest
from helpers.archives import write_deb

from experiments.finetune_packages.debian import apt_download, open_deb
from pangu_sigma.data.packaged.packages import Archive, download, tar_members
from pangu_sigma.errors import DataError

PACKAGE = Archive("p", "1-2", "p_1-2_all.deb", "MIT", hashlib.sha256(b"!<arch>\n").hexdigest())
FILES = {"./usr/share/man/man1/b.1.gz": b"b", "./usr/share/man/man1/a.1.gz": b"a", "./usr/share/doc/p/copyright": b"c"}


def test_the_files_of_a_package_are_read(tmp_path):
    path = write_deb(tmp_path / "p_1_all.deb", FILES)
    with open_deb(path) as archive:
        assert sorted(archive.getnames()) == sorted(FILES)
        assert list(tar_members(archive, re.compile("/man/"))) == sorted(FILES.items())[1:]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "size", "xz"])
def test_what_is_no_package_is_refused(damage, tmp_path):
    path = write_deb(tmp_path / "p.deb", FILES)
    whole = path.read_bytes()
    at = whole.index(b"data.tar.xz")
    content = {
        "empty": b"",
        "text": b"Not Found\n",
        "cut": whole[:at],
        "size": whole[: at + 48] + b"many      " + whole[at + 58 :],
        "xz": whole[: at + 60] + bytes(len(whole) - at - 60),
    }[damage]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.deb.*download it again"):
        open_deb(path)


def test_the_last_complaint_of_apt_get_is_told(tmp_path, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 100, "", "W: old\nE: Version '1-2' for 'p' was not found\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert apt_download(PACKAGE, tmp_path).startswith("E: Version '1-2' for 'p' was not found (apt-get update")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert apt_download(PACKAGE, tmp_path) == "there is no apt-get on this machine"


def test_a_package_of_debian_is_downloaded_by_apt_get(tmp_path, monkeypatch):
    calls = []

    def run(command, cwd, **_):
        calls.append(command)
        (cwd / PACKAGE.file).write_bytes(b"!<arch>\n")
        return subprocess.CompletedProcess(command, 0, "", "W: unsandboxed\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert download([PACKAGE], tmp_path, bring=apt_download) == {PACKAGE: tmp_path / PACKAGE.file}
    assert calls == [["apt-get", "download", "-q", "p=1-2"]]
