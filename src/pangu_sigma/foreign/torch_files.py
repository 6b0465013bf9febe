"""Reader of `torch.save` files without torch: the zip format, and the older format of consecutive pickles.

    zip       <root>/data.pkl, <root>/data/<key> for each storage, <root>/byteorder; all stored without compression
    older     pickles of a magic number, a version, facts about the machine, the value, and the list of storage keys; then for each
              key, in that order, the number of values in eight bytes, and the values

Values stay on the disk: a tensor becomes a `FileTensor` with the byte of its first value. In a zip file every member has a CRC32,
which is compared when a value of the member is first read; the older format has no checksums.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pangu_sigma.foreign.dense_model import LayoutError
from pangu_sigma.foreign.file_tensors import FileTensor, checked_sizes
from pangu_sigma.foreign.pickles import MOST_PICKLED, PickledTensor, load_pickle

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
"""Values of the first two pickles of the older format."""
_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
"""Bytes of a value by dtype; 1 for other dtypes."""
_LOCAL = struct.Struct("<4s5H3I2H")
"""Header before each member of a zip file."""
_READ_BYTES = 8 << 20
_DAMAGED = "it is damaged or cut short: download it again"


class _Extent(NamedTuple):
    """First byte and number of bytes of a storage. check: raises LayoutError if they have another checksum; None without one."""

    begin: int
    length: int
    check: Callable[[], None] | None = None


@dataclass(frozen=True)
class TorchFile:
    """File that `torch.save` wrote. value: saved value, with a `PickledTensor` for each tensor. extents: place of
    each storage in the file, by its key."""

    path: Path
    value: Any
    extents: dict[str, _Extent]

    def stored(self, tensor: PickledTensor, name: str) -> FileTensor:
        """Return where in the file the values of a tensor are. name: its name, for messages. Raises LayoutError if the file lacks
        its storage, or values of it."""
        storage = tensor.storage
        if storage.key not in self.extents:
            raise LayoutError(f"{self.path}: the storage {storage.key[:40]} of {name} is missing; {_DAMAGED}")
        begin, length, check = self.extents[storage.key]
        itemsize = _BYTES.get(storage.kind, 1)
        if storage.size * itemsize > length:
            raise LayoutError(
                f"{self.path}: {name} needs {storage.size * itemsize} bytes of its storage, which has {length}; {_DAMAGED}"
            )
        if not type(tensor.shape) is type(tensor.strides) is tuple or len(tensor.shape) != len(tensor.strides):
            raise LayoutError(f"{self.path}: {name} has no shape and strides; {_DAMAGED}")
        shape = checked_sizes(self.path, name, tensor.shape)
        (offset, *strides) = checked_sizes(self.path, name, (tensor.offset, *tensor.strides))
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if math.prod(shape) and (last >= storage.size or math.prod(shape) > storage.size):
            raise LayoutError(
                f"{self.path}: {name} of shape {shape} reaches beyond its storage of {storage.size} values; {_DAMAGED}"
            )
        return FileTensor(self.path, begin + offset * itemsize, storage.kind, shape, tuple(strides), name, check)


def open_torch_file(path: Path) -> TorchFile:
    """Read a `torch.save` file except the tensors' values. Raises LayoutError for damage, or objects other than tensors."""
    try:
        with open(path, "rb") as stream:
            magic = stream.read(4)
            stream.seek(0)
            if magic == b"PK\3\4":
                return _open_zip(path, stream)
            return _open_older(path, stream)
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError, EOFError) as error:
        if isinstance(error, LayoutError):
            raise
        raise LayoutError(f"{path}: no file of torch ({str(error)[:80]}); {_DAMAGED}") from None


def _open_zip(path: Path, stream: BinaryIO) -> TorchFile:
    size = path.stat().st_size
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise LayoutError(f"{path}: two of its members have one name; {_DAMAGED}")
    pickled = [member for member in members if re.fullmatch(r"[^/]*/data\.pkl", member.filename)]
    if len(pickled) != 1:
        raise LayoutError(f"{path}: it has {len(pickled)} members data.pkl and must have one; it is no file of torch")
    root = pickled[0].filename.removesuffix("data.pkl")
    found = {m.filename: _member(path, stream, m, size) for m in members if m.filename.startswith(root)}
    if f"{root}byteorder" in found and _content(path, stream, found[f"{root}byteorder"]) == b"big":
        raise LayoutError(f"{path}: its values are big-endian; save it again on a little-endian machine")
    value = load_pickle(io.BytesIO(_content(path, stream, found[f"{root}data.pkl"])), path)
    prefix = f"{root}data/"
    extents = {name.removeprefix(prefix): at for name, at in found.items() if name.startswith(prefix)}
    return TorchFile(path, value, extents)


def _member(path: Path, stream: BinaryIO, member: zipfile.ZipInfo, size: int) -> _Extent:
    """Return the extent of a member. Raises LayoutError if it is compressed, encrypted or not in the file."""
    name = member.filename[:80]
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.compress_size != member.file_size:
        raise LayoutError(f"{path}: its member {name} is compressed or encrypted; save it again with torch.save")
    if not 0 <= member.header_offset < size:  # zipfile takes the directory's word for it, negative numbers too
        raise LayoutError(f"{path}: its member {name} is not inside the file; {_DAMAGED}")
    stream.seek(member.header_offset)
    signature, *_, name_length, extra_length = _LOCAL.unpack(stream.read(_LOCAL.size))
    begin = member.header_offset + _LOCAL.size + name_length + extra_length
    if signature != b"PK\3\4" or begin + member.file_size > size:
        raise LayoutError(f"{path}: its member {name} is not inside the file; {_DAMAGED}")
    return _Extent(begin, member.file_size, cache(partial(_check_crc, path, member, begin)))


def _check_crc(path: Path, member: zipfile.ZipInfo, begin: int) -> None:
    """Raise LayoutError if a member, which begins at a byte of the file, does not have the CRC32 that the directory says."""
    crc, left = 0, member.file_size
    with open(path, "rb") as stream:
        stream.seek(begin)
        while left and (content := stream.read(min(left, _READ_BYTES))):
            crc, left = zlib.crc32(content, crc), left - len(content)
    if crc != member.CRC:
        raise LayoutError(
            f"{path}: its member {member.filename[:80]} has the CRC32 {crc:08x}, {member.CRC:08x} was written; it is damaged: "
            "download it again; if torch.save was told to compute none (set_crc32_options), save it again with it"
        )


def _content(path: Path, stream: BinaryIO, extent: _Extent) -> bytes:
    if extent.length > MOST_PICKLED:
        raise LayoutError(
            f"{path}: its pickle has {extent.length:,} bytes, more than the {MOST_PICKLED:,} that are read; save the weights alone"
        )
    if extent.check is not None:
        extent.check()
    stream.seek(extent.begin)
    return stream.read(extent.length)


def _open_older(path: Path, stream: BinaryIO) -> TorchFile:
    if stream.read(1) != b"\x80":
        raise LayoutError(f"{path}: neither a zip file nor a pickle; it is damaged or encrypted: download it again")
    stream.seek(0)
    if load_pickle(stream, path) != _MAGIC or load_pickle(stream, path) != _VERSION:
        raise LayoutError(f"{path}: a pickle that torch.save did not write; save it with torch.save")
    machine = load_pickle(stream, path)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise LayoutError(f"{path}: its values are not little-endian; save it again on a little-endian machine")
    kinds: dict[str, str] = {}
    value = load_pickle(stream, path, kinds)
    keys = load_pickle(stream, path)
    if type(keys) is not list or not all(isinstance(key, str) for key in keys):
        raise LayoutError(f"{path}: its list of storages is none; {_DAMAGED}")
    extents: dict[str, _Extent] = {}
    at, size = stream.tell(), path.stat().st_size
    for key in keys:
        stream.seek(at)
        count = int.from_bytes(stream.read(8), "little")
        length = count * _BYTES.get(kinds.get(key, ""), 1)
        if key not in kinds or at + 8 + length > size:
            raise LayoutError(f"{path}: its storage {key[:40]} is not inside the file; {_DAMAGED}")
        extents[key] = _Extent(at + 8, length)
        at += 8 + length
    return TorchFile(path, value, extents)
