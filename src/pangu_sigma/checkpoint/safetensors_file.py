"""Reader and writer of safetensors files whose arrays may be larger than memory.

The library's `save_file` needs all arrays in memory at once, and leaves no holes for zeros; its `load_file` reads all arrays. Here
an array is written part by part, hashed and examined on the way, and read as a map of the file. The format is the library's: eight
bytes of header length, a JSON header, the arrays end to end. Arrays of the widest elements come first, as in the library's files,
so that every array begins at a multiple of its elements' size.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pangu_sigma.checkpoint.lazy import AnyArray, LazyArray
from pangu_sigma.checkpoint.mapped_file import map_file
from pangu_sigma.sealed import DamagedFile

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
_OTHERS = {"BF16": 2}
"""Bytes of an element of the dtypes that NumPy lacks; only `array_extents` returns such dtypes."""
_CHUNK = 64 << 20
"""Number of bytes written between two calls of `after_chunk`."""
_MOST_HEADER = 100 << 20
"""Maximum bytes of a header, as in the library."""
_MOST_AXES, _MOST_BYTES = 32, 1 << 62
"""Maximum number of axes and of bytes that NumPy accepts."""


class DamagedArrays(DamagedFile, ValueError):
    """Error of a safetensors file whose contents do not fit its header."""


def write_arrays(
    path: Path,
    arrays: Mapping[str, AnyArray],
    after_chunk: Callable[[], None],
    metadata: dict[str, str] | None = None,
    seen: Callable[[str, int, np.ndarray], None] = lambda name, first, values: None,
) -> dict[str, Any]:
    """Write arrays into a safetensors file. Returns the file's size and hash, as `sealed.fingerprint` does.

    Zeros of a LazyArray with `holes` are left out: such a hole takes no space if the file system supports holes.
    after_chunk: called after each array, and after every 64 MiB of a large array, to release memory.
    seen: called for each chunk with the array's name, the position of the first value in the flattened array, and the values.
    """
    text, extents = _header({name: (array.dtype, array.shape) for name, array in arrays.items()}, metadata)
    digest, size = xxhash.xxh3_128(text), len(text)
    with open(path, "wb") as stream:
        stream.write(text)
        for name in extents:
            array = arrays[name]
            holes = isinstance(array, LazyArray) and array.holes
            for first, values in chunks(array):
                content = values.view(np.uint8).data
                seen(name, first, values)
                digest.update(content)
                if holes:
                    stream.seek(len(content), os.SEEK_CUR)
                else:
                    stream.write(content)
                size += len(content)
                after_chunk()
        stream.truncate(size)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def chunks(array: AnyArray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a flattened array in chunks of at most 64 MiB, each with the position of its first value.

    Raises ValueError when a LazyArray has more or fewer values than its shape says.
    """
    length, position = max(1, _CHUNK // array.itemsize), 0
    for values in array.content() if isinstance(array, LazyArray) else (array,):
        flat = np.ascontiguousarray(values, array.dtype).reshape(-1)
        for first in range(0, len(flat), length):
            yield position + first, flat[first : first + length]
        position += len(flat)
    if position != array.size:
        raise ValueError(
            f"{array.origin if isinstance(array, LazyArray) else 'array'}: {position} of {array.size} values"
        )


def _header(
    arrays: dict[str, tuple[np.dtype, tuple[int, ...]]], metadata: dict[str, str] | None
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return the header of a file, and (offset, bytes) of each array after it, in the order of the file."""
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
    """Read the metadata of a safetensors file. Raises DamagedArrays if the file does not fit its header."""
    metadata = _read_header(path)[1].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedArrays(f"{path}: its metadata are not texts by name")
    return metadata


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a safetensors file into memory; writing to an array changes memory and never the file.

    Raises DamagedArrays if the file does not fit its header.
    """
    content = map_file(path)
    arrays: dict[str, np.ndarray] = {}
    for name, (kind, shape, begin, _) in array_extents(path).items():
        if kind not in _DTYPES:
            raise DamagedArrays(f"{path}: {name} is {kind}, which is not read here")
        arrays[name] = np.ndarray(shape, _DTYPES[kind], content, begin)
    return arrays


def array_extents(path: Path) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Return (dtype in safetensors' names, such as "F32", shape, first byte, end) of each array of a safetensors file, by name.

    Raises DamagedArrays if the file does not fit its header.
    """
    start, header = _read_header(path)
    header.pop("__metadata__", None)
    size = path.stat().st_size
    extents: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for name, entry in header.items():
        kind, shape, begin, end = _entry(path, name, entry)
        if start + end > size:
            raise DamagedArrays(f"{path}: {name} ends at byte {start + end}, the file has {size} bytes")
        extents[name] = (kind, shape, start + begin, start + end)
    return extents


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape and extent of an array, from its entry in the header."""
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        itemsize = np.dtype(_DTYPES[kind]).itemsize if kind in _DTYPES else _OTHERS.get(kind)
        counted = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedArrays(f"{path}: the header has no dtype, shape and data_offsets of {name}") from error
    if itemsize is None:
        raise DamagedArrays(f"{path}: {name} is {kind}, which is not read here")
    # so that even an array without values has a shape that NumPy takes
    if not counted or len(shape) > _MOST_AXES or math.prod(max(1, n) for n in shape) * itemsize > _MOST_BYTES:
        raise DamagedArrays(f"{path}: {name} has a shape or offsets that cannot be")
    if math.prod(shape) * itemsize != end - begin:
        raise DamagedArrays(f"{path}: {name} of shape {entry['shape']} has {end - begin} bytes")
    return kind, shape, begin, end


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the offset at which the arrays begin, and the header. Raises DamagedArrays when there is none."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(path.stat().st_size, _MOST_HEADER):
            raise DamagedArrays(f"{path}: its header of {length} bytes is cut off; copy the file again")
        text = stream.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedArrays(f"{path}: its header is not JSON") from error
    if not isinstance(header, dict):
        raise DamagedArrays(f"{path}: its header holds a {type(header).__name__}")
    return 8 + length, header
