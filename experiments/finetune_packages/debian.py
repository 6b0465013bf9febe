"""Packages of Debian as sources of text: apt-get downloads them by name; nothing is installed."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from pangu_sigma.data.packaged.packages import Archive
from pangu_sigma.errors import DataError

_MAGIC = b"!<arch>\n"
_HEADER = 60
"""Bytes before a member of an ar archive: name (16), time, owner, group, mode (32 together), size (10), end (2)."""


def apt_download(archive: Archive, cache: Path) -> str:
    """Run apt-get in a folder. Returns its last complaint, or ""."""
    try:
        command = ["apt-get", "download", "-q", f"{archive.name}={archive.version}"]
        result = subprocess.run(command, cwd=cache, capture_output=True, text=True)
    except FileNotFoundError:
        return "there is no apt-get on this machine"
    lines = result.stderr.strip().splitlines()
    return f"{lines[-1]} (apt-get update brings its lists up to date)" if result.returncode and lines else ""


def open_deb(path: Path) -> tarfile.TarFile:
    """The files that a package installs, as an open archive. Raises DataError for a file that is no package."""
    content = path.read_bytes()
    at = len(_MAGIC)
    while content.startswith(_MAGIC) and at + _HEADER <= len(content):
        header = content[at : at + _HEADER]
        name, size = header[:16].decode("ascii", "replace").strip(), header[48:58].strip()
        if not size.isdigit():
            break
        at += _HEADER
        if name.startswith("data.tar"):
            try:
                return tarfile.open(fileobj=io.BytesIO(content[at : at + int(size)]))
            except tarfile.TarError as error:
                why = str(error).partition(":")[0]  # the rest tells of every compression that was tried
                raise DataError(f"{path}: its {name} cannot be read: {why}; download it again") from error
        at += int(size) + int(size) % 2
    raise DataError(f"{path} is no package of Debian: it has no data.tar; download it again")
