"""Arrays in a safetensors file, written and read without a second copy of them in memory.

The library's own `save_file` copies every array first, and its `load_file` reads all of them: experts may fill the memory, or be
larger than it. The format is the library's: eight bytes of header length, a JSON header, the arrays one after another. Those of the
widest elements come first, as in the library's files, so that every array begins at a multiple of its elements' size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_CHUNK = 64 << 20
"""Bytes written between two calls of `after_chunk`."""


def write_arrays(
    path: Path,
    arrays: dict[str, np.ndarray],
    after_chunk: Callable[[], None],
    metadata: dict[str, str] | None = None,
    seen: Callable[[str, int, np.ndarray], None] = lambda name, first, values: None,
) -> dict[str, Any]:
    """Write arrays into a file. Returns its fingerprint, as `sealed.fingerprint`, of what was to be written.

    after_chunk: called after each array, and every 64 MiB of a large one, to let go of memory that was read for it.
    seen: called with what is written: the name of an array, the position of the first value, flattened, and the values.
    """
    text, extents = _header({name: (array.dtype, array.shape) for name, array in arrays.items()}, metadata)
    digest, size = xxhash.xxh3_128(text), len(text)
    with open(path, "wb") as stream:
        stream.write(text)
        for name in extents:
            for first, values in chunks(arrays[name]):
                content = values.view(np.uint8).data
                seen(name, first, values)
                digest.update(content)
                stream.write(content)
                size += len(content)
                after_chunk()
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def chunks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """An array, flattened, in chunks of at most 64 MiB, each with the position of its first value."""
    flat = np.ascontiguousarray(array).reshape(-1)
    length = max(1, _CHUNK // array.itemsize)
    for first in range(0, len(flat), length):
        yield first, flat[first : first + length]


def new_file(
    path: Path, arrays: dict[str, tuple[np.dtype, tuple[int, ...]]], metadata: dict[str, str]
) -> dict[str, np.ndarray]:
    """Arrays of zeros in a new file, mapped: what is written to one of them is written to the file."""
    text, extents = _header(arrays, metadata)
    with open(path, "wb") as stream:
        stream.write(text)
        stream.truncate(len(text) + sum(size for _, size in extents.values()))
    mapped: dict[str, np.ndarray] = {}
    for name, (dtype, shape) in arrays.items():
        at, size = extents[name]  # a map of no bytes cannot be made everywhere
        mapped[name] = np.memmap(path, dtype, "r+", len(text) + at, shape) if size else np.empty(shape, dtype)
    return mapped


def _header(
    arrays: dict[str, tuple[np.dtype, tuple[int, ...]]], metadata: dict[str, str] | None
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header of a file, and the (offset, bytes) of each array after it, in the order of the file."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    extents, at = {}, 0
    for name, (dtype, shape) in sorted(arrays.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype.name], "shape": list(shape), "data_offsets": [at, at + size]}
        extents[name] = (at, size)
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # arrays begin at a multiple of 64, which the processor likes
    return len(text).to_bytes(8, "little") + text, extents


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a file: what it says about itself."""
    return _read_header(path)[1].get("__metadata__", {})


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, mapped: read when they are touched; writing to one changes memory and never the file.

    Raises ValueError when the file is not what its header says.
    """
    start, header = _read_header(path)
    header.pop("__metadata__", None)
    room = path.stat().st_size - start
    arrays: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(path, name, entry, room)
        # a map of no bytes cannot be made everywhere
        arrays[name] = np.memmap(path, dtype, "c", start + begin, shape) if end > begin else np.empty(shape, dtype)
    return arrays


def _entry(path: Path, name: str, entry: Any, room: int) -> tuple[str, tuple[int, ...], int, int]:
    """The dtype, shape and extent that a header gives an array. room: bytes of the file after its header."""
    try:
        (begin, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: the header says nothing usable of {name!r}") from error
    if dtype not in list(_DTYPES):
        raise ValueError(f"{path}: {name} is {dtype}, which is not read here")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (begin, end, *shape)):
        raise ValueError(f"{path}: {name} has a length or an offset that is none")
    if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != end - begin:
        raise ValueError(f"{path}: {name} of shape {entry['shape']} has {end - begin} bytes")
    if end > room:
        raise ValueError(f"{path}: {name} ends at byte {end} of {room}: its end is greater than file size")
    return _DTYPES[dtype], shape, begin, end


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """The offset at which the arrays begin, and the header. Raises ValueError when there is none."""
    with open(path, "rb") as stream:
        length, size = int.from_bytes(stream.read(8), "little"), path.stat().st_size
        if not 2 <= length <= size - 8:
            raise ValueError(f"{path}: its header has {length} bytes, the file {size}")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: its header is not JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError(f"{path}: its header is not that of a safetensors file")
    return 8 + length, header
