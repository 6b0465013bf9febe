"""Small archives as packages are published: a tar of sources, a wheel, a package of Debian, and a compiled catalogue for them."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def write_tar(path: Path, files: Mapping[str, str | bytes], compression: str = "gz") -> Path:
    with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, text in files.items():
            content = text if isinstance(text, bytes) else text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def write_wheel(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_deb(path: Path, files: Mapping[str, str | bytes]) -> Path:
    """An ar archive of three members, as deb(5) has it: a header of 60 bytes before each, an even number of bytes after it."""
    inner = path.with_suffix(".tar")
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": write_tar(inner, {"./control": "Package: p\n"}, "xz").read_bytes()
        + b"odd"[: 1 + inner.stat().st_size % 2],
        "data.tar.xz": write_tar(inner, files, "xz").read_bytes(),
    }
    inner.unlink()
    content = b"!<arch>\n"
    for name, member in members.items():
        content += (
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(member):<10}`\n".encode() + member + b"\n" * (len(member) % 2)
        )
    path.write_bytes(content)
    return path


def catalogue(pairs: Mapping[str, str]) -> bytes:
    """A compiled gettext catalogue (.mo): header, two tables of (length, offset), NUL-terminated strings."""
    entries = sorted({"": "Content-Type: text/plain; charset=UTF-8\n"}.items() | pairs.items())
    strings = [key.encode() for key, _ in entries] + [value.encode() for _, value in entries]
    offset = 28 + 8 * len(strings)
    tables, content = b"", b""
    for string in strings:
        tables += struct.pack("<II", len(string), offset + len(content))
        content += string + b"\0"
    count = len(entries)
    return struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0) + tables + content
