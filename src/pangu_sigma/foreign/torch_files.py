"""Reader of `torch.save` files without torch: a zip file of a pickle, which is not executed, and the values of each storage.

    <root>/data.pkl, <root>/data/<key> for each storage, <root>/byteorder; all stored without compression

Values stay on the disk: a tensor becomes a `FileTensor`. A member's CRC32 is compared when one of its values is first read.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.lazy import map_file, release_pages
from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.file_tensors import FileTensor
from pangu_sigma.foreign.pickles import OpaqueObject, Storage, load_pickle

MOST_PICKLED = 4 << 20
"""Maximum bytes of a pickle: that of a 13B model with its optimizer has a tenth. A hostile one takes a hundred times its bytes."""
_HEAD = struct.Struct("<4s22x2H")
"""Header before each member of a zip file: signature, and bytes of the name and of more."""
_READ_BYTES = 8 << 20
_DAMAGED = "it is damaged or cut short: download it again"


def open_torch_file(path: Path) -> Any:
    """Return the object that `torch.save` saved, with a `FileTensor` for each tensor. The file is a zip: <root>/data.pkl has the
    object, <root>/data/<key> the values of a storage. Raises LayoutError for a damaged file, and for a pickle that
    names other classes than `load_pickle` allows."""
    with open(path, "rb") as stream:
        magic = stream.read(4)
    if magic[:1] == b"\x80":
        advice = "which version 0.1.0 (commit ab9cf900) reads; save it again"
        raise LayoutError(f"{path}: a pickle, as torch before 1.6 wrote, {advice}")
    if magic != b"PK\3\4":
        raise LayoutError(f"{path}: neither a zip file nor a pickle; it is damaged or encrypted: download it again")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError, EOFError) as error:
        raise LayoutError(f"{path}: no file of torch ({str(error)[:80]}); {_DAMAGED}") from None
    members = {member.filename: member for member in entries}
    if len(members) < len(entries):
        raise LayoutError(f"{path}: two of its members have one name; {_DAMAGED}")
    pickles = [name for name in members if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if len(pickles) != 1:
        raise LayoutError(f"{path}: it has {len(pickles)} members data.pkl and must have one; it is no file of torch")
    root, content = pickles[0].removesuffix("data.pkl"), map_file(path)
    names = [name for name in members if name.startswith(root)]
    mapped_members = {name.removeprefix(root): _storage(path, content, members[name]) for name in names}
    if "byteorder" in mapped_members and _content(mapped_members["byteorder"]) == b"big":
        raise LayoutError(f"{path}: its values are big-endian; save it again on a little-endian machine")
    storages = {name[len("data/") :]: storage for name, storage in mapped_members.items() if name.startswith("data/")}
    return load_pickle(_content(mapped_members["data.pkl"]), path, storages)


def named_tensors(file: Path, tree: dict[Any, Any]) -> dict[str, FileTensor]:
    """Return the tensors in nested dictionaries by dotted name. file: for messages. tree: the outermost dictionary. Raises
    LayoutError for anything else inside, a name that is twice there, and dictionaries that are nested too deep."""
    tensors: dict[str, FileTensor] = {}
    pending: list[tuple[str, Any, int]] = [("", tree, 0)]  # name, value, depth
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, FileTensor):
            if name in tensors:
                raise LayoutError(f"{file}: {name[:120]} is twice in it; the file is damaged")
            tensors[name] = replace(value, name=name)
        elif isinstance(value, dict) and depth < 8 and len(pending) + len(value) < 100_000:  # more only if hostile
            pending += [(f"{name}.{key}".lstrip("."), item, depth + 1) for key, item in value.items()]
        else:
            is_opaque = isinstance(value, OpaqueObject)
            kind = f"a {value.name}, which is not built" if is_opaque else f"a {type(value).__name__}"
            raise LayoutError(f"{file}: {name[:120]} is {kind}, and no tensor; save the weights alone, and use those")
    return tensors


def _storage(path: Path, content: np.ndarray, member: zipfile.ZipInfo) -> Storage:
    """Return the bytes of a zip file's member. content: the mapped file. Raises LayoutError for a compressed or encrypted one."""
    name, header_begin = member.filename[:80], member.header_offset
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.compress_size != member.file_size:
        raise LayoutError(f"{path}: its member {name} is compressed or encrypted; save it again with torch.save")
    # zipfile does not check this position, which a damaged directory may have negative
    if 0 <= header_begin <= len(content) - _HEAD.size:
        signature, *lengths = _HEAD.unpack(content[header_begin : header_begin + _HEAD.size].data)
        begin = header_begin + _HEAD.size + sum(lengths)
        if signature == b"PK\3\4" and begin + member.file_size <= len(content):
            member_bytes = content[begin : begin + member.file_size]
            return Storage(path, member_bytes, cache(partial(_check_crc, path, member, member_bytes)))  # once
    raise LayoutError(f"{path}: its member {name} is not inside the file; {_DAMAGED}")


def _check_crc(path: Path, member: zipfile.ZipInfo, content: np.ndarray) -> None:
    """Raise LayoutError if `content`, the bytes of a member, do not have the CRC32 in the zip file's directory."""
    crc = 0
    for begin in range(0, len(content), _READ_BYTES):
        chunk = content[begin : begin + _READ_BYTES]
        crc = zlib.crc32(chunk.data, crc)
        release_pages(chunk)
    if crc != member.CRC:
        raise LayoutError(
            f"{path}: its member {member.filename[:80]} has the CRC32 {crc:08x}, {member.CRC:08x} was written; it is damaged: "
            "download it again; if torch.save was told to compute none (set_crc32_options), save it again with it"
        )


def _content(member: Storage) -> bytes:
    """Return the bytes of a member after its CRC32 is compared. Raises LayoutError for more than MOST_PICKLED bytes."""
    size = len(member.content)
    if size > MOST_PICKLED:
        problem = f"its pickle has {size:,} bytes, more than the {MOST_PICKLED:,} that are read"
        raise LayoutError(f"{member.file}: {problem}; save the weights alone")
    if member.check is not None:
        member.check()
    return member.content.tobytes()
