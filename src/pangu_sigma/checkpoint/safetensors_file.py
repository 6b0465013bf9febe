"""Reader and writer of safetensors files whose arrays may be larger than memory.

The library's `save_file` needs all arrays in memory at once, and leaves no holes for zeros; its `load_file` reads all arrays. Here
an array is written part by part, hashed and examined on the way, and read as a map of the file, whose header the library checks.
The format is the library's: eight bytes of header length, a JSON header, the arrays end to end. Arrays of the widest elements come
first, as in the library's files, so that every array begins at a multiple of its elements' size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open

from pangu_sigma.checkpoint.lazy import AnyArray, LazyArray, map_file
from pangu_sigma.sealed import DamagedFile

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32"}
_DTYPES |= {"U16": "uint16", "U8": "uint8", "BOOL": "bool"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHUNK = 64 << 20
"""Number of bytes written between two calls of `after_chunk`."""


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
    widest_first = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, array in widest_first:
        offsets = [at, at := at + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # arrays begin at a multiple of 64, which the processor likes
    text = len(text).to_bytes(8, "little") + text
    digest, size = xxhash.xxh3_128(text), len(text)
    with open(path, "wb") as stream:
        stream.write(text)
        for name, array in widest_first:
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
    length, position = max(1, _CHUNK // array.dtype.itemsize), 0
    for values in array.content() if isinstance(array, LazyArray) else (array,):
        flat = np.ascontiguousarray(values, array.dtype).reshape(-1)
        for first in range(0, len(flat), length):
            yield position + first, flat[first : first + length]
        position += len(flat)
    if position != array.size:
        raise ValueError(f"{getattr(array, 'origin', 'array')}: {position} of {array.size} values")


def metadata_of(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file. Raises DamagedFile if the file does not fit its header."""
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise DamagedFile(f"{path}: {error}; copy the file again") from error


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a safetensors file into memory; writing to an array changes memory and never the file.

    Raises DamagedFile if the file does not fit its header.
    """
    content = map_file(path)
    arrays: dict[str, np.ndarray] = {}
    for name, (kind, shape, begin, _) in array_extents(path).items():
        try:
            arrays[name] = np.ndarray(shape, _DTYPES[kind], content, begin)
        except (KeyError, ValueError) as error:
            raise DamagedFile(f"{path}: {name} is {kind} of shape {shape}, which is not read here") from error
    return arrays


def array_extents(path: Path) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Return (dtype in safetensors' names, such as "F32", shape, first byte, end) of each array of a safetensors file, by name.

    Raises DamagedFile if the file does not fit its header.
    """
    metadata_of(path)  # checks the header, but tells no offsets
    with open(path, "rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(start - 8))
    header.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }
