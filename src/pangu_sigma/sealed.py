"""Files that are read whole or refused: written by a rename, with content hashes in a manifest that carries its own hash.

A *sealed* JSON file contains the hash of its other contents, so that any changed bit is noticed. A *sealed line* of a JSON Lines
file does, too. A *sealed folder* has a sealed JSON file, `seal.json`, with size and content hash of the folder's other files. `fix`
is advice to the user, the end of messages.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from pangu_sigma.errors import UserError, in_words

SEAL = "seal.json"
"""Name of the seal (manifest with its own hash) of a sealed folder."""
UNFINISHED = ".unfinished-"
"""Prefix of the names of files and folders that are being written, or that a killed process left incomplete."""

_OWN_HASH = "manifest"
"""Key of a sealed file's hash of itself."""
LINE_HASH = "xxh3"
"""Last key of a sealed line: hash of the line without this key."""
ITS_VERSION = "use the version that wrote it: up to format 2 it is 0.1.0, commit ab9cf900"
"""Advice about a file of another format: until version 1.0 formats may change, and older ones are not read."""


class DamagedFile(UserError, RuntimeError):
    """Error of a file that differs from what was written; the message names the file, the difference and the fix."""


def fingerprint(file: Path) -> dict[str, Any]:
    """Return size and content hash of a file: {"bytes": …, "xxh3_128": …}. Raises OSError."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, xxhash.xxh3_128)
        return {"bytes": stream.tell(), "xxh3_128": digest.hexdigest()}


def verify(file: Path, recorded: dict[str, Any], fix: str, content: bool = True) -> None:
    """Raise DamagedFile if a file is missing, or differs from its fingerprint. recorded: what `fingerprint` returned when the file
    was written. fix: advice to the user, the end of the message. content: False to compare sizes alone."""
    try:
        if not file.is_file():  # a pipe or a device in its place has no end
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        actual = fingerprint(file) if content else {"bytes": file.stat().st_size}
    except OSError as error:
        raise DamagedFile(in_words(error, file, fix)) from error
    for key, value in actual.items():
        if value != recorded[key]:
            raise DamagedFile(f"{file}: {key} is {value}, {recorded[key]} was written; the file is damaged, {fix}")


def sealed(body: dict[str, Any], record: bool = False) -> bytes:
    """Return `body` as sealed JSON, which contains its own hash. record, and what is raised: as in `as_json`."""
    return as_json({**body, _OWN_HASH: xxhash.xxh3_128_hexdigest(as_json(body, record))}, record)


def unsealed(file: Path, fix: str) -> dict[str, Any]:
    """Read a JSON file that `sealed` wrote, without its hash. Raises DamagedFile if a byte was changed."""
    try:
        content = file.read_bytes()
        tree = json.loads(content)
        body = {key: value for key, value in tree.items() if key != _OWN_HASH}
        # the keys keep the order of the file, sorted or not, so the same bytes result if nothing was changed
        expected = as_json({**tree, _OWN_HASH: xxhash.xxh3_128_hexdigest(as_json(body, record=True))}, record=True)
    except OSError as error:
        raise DamagedFile(in_words(error, file, fix)) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{file}: is not the JSON that was written; {fix}") from error
    if content != expected:
        raise DamagedFile(f"{file}: its content does not match its own hash; {fix}")
    return body


def sealed_line(body: dict[str, Any], allow_nan: bool = False) -> str:
    """Return a line of JSON with its own hash as last key. allow_nan: True to write NaN and infinity. Raises ValueError or
    TypeError if `body` is not JSON."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=allow_nan)
    return f'{text[:-1]}, "{LINE_HASH}": "{xxhash.xxh3_64_hexdigest(text.encode())}"}}\n'


def unsealed_line(line: bytes) -> dict[str, Any]:
    """Parse a line that `sealed_line` wrote, without its line end and its hash. Raises DamagedFile if a byte was changed."""
    text, _, ending = line.rpartition(f', "{LINE_HASH}": "'.encode())
    text += b"}"  # the line as it was before the hash
    if ending != f'{xxhash.xxh3_64_hexdigest(text)}"}}'.encode():
        raise DamagedFile("the line does not match its own hash")
    return dict(json.loads(text))


def seal_folder(
    folder: Path, names: Iterable[str], facts: dict[str, Any], fingerprints: dict[str, Any] | None = None
) -> None:
    """Write `seal.json` with size and hash of existing files of a folder, and flush these files to the disk. facts: other contents
    of the seal. fingerprints: {name: fingerprint} of files that their writers have hashed and flush: they are not touched here."""
    fingerprints = fingerprints or {}
    files = {name: fingerprints.get(name) or fingerprint(folder / name) for name in sorted(names)}
    unflushed_files = [folder / name for name in files if name not in fingerprints]
    for path in dict.fromkeys(path for file in unflushed_files for path in (file, file.parent)):
        sync(path)
    write_atomically(folder / SEAL, sealed({**facts, "files": files}))


def add_to_seal(folder: Path, name: str) -> None:
    """Add an existing file to the seal of a folder, or its new content. Raises OSError, and DamagedFile for a damaged seal."""
    body = read_seal(folder, "make the folder again")
    body["files"][name] = fingerprint(folder / name)
    write_atomically(folder / SEAL, sealed(body))


def read_seal(folder: Path, fix: str) -> dict[str, Any]:
    """Return the contents of the seal of a folder, whose "files" are fingerprints of files inside the folder by name. Raises
    DamagedFile for a seal that is missing or not what was written."""
    file = folder / SEAL
    body = unsealed(file, fix)
    if not isinstance(body.get("files"), dict):
        raise DamagedFile(f"{file}: lists no files; {fix}")
    for name, recorded in body["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            raise DamagedFile(f"{file}: {name[:100]!r} is no file of this folder; {fix}")
        if not isinstance(recorded, dict) or {"bytes", "xxh3_128"} - recorded.keys():
            raise DamagedFile(f"{file}: has no fingerprint of {name}; {fix}")
    return body


def check_folder(folder: Path, fix: str, beginning: str = "", content: bool = True) -> dict[str, Any]:
    """Verify the files of a sealed folder, and return the contents of the seal. Raises DamagedFile if one is missing or differs.
    beginning: prefix of the names of files to verify; "" for all. content: False for sizes alone."""
    body = read_seal(folder, fix)
    for name, recorded in body["files"].items():
        if name.startswith(beginning):
            verify(folder / name, recorded, fix, content)
    return body


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: under another name, flushed, then renamed over an earlier one. Raises OSError, which
    names the file."""
    fresh = file.with_name(f"{UNFINISHED}{file.name}")
    try:
        fresh.unlink(missing_ok=True)  # a link there would be followed
        fresh.write_bytes(content)
        commit(fresh, file)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        error.filename = str(file)  # of a write, to a full disk, the system names no file
        raise


def commit(fresh: Path, target: Path) -> None:
    """Flush `fresh`, a file or folder that was written beside `target`, to the disk, and rename it to `target`."""
    for path in (*fresh.rglob("*"), fresh):
        sync(path)
    fresh.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_json(tree: dict[str, Any], record: bool = False) -> bytes:
    """Return a tree as JSON with sorted keys, equal for equal trees. Raises ValueError or TypeError if JSON cannot represent it.
    record: True for a file that people read: keys keep their order instead, and NaN is allowed, a measured value."""
    return json.dumps(tree, indent=1, sort_keys=not record, allow_nan=record).encode() + b"\n"
