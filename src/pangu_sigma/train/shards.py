"""Arrays in a safetensors file, written and read without a second copy of them in memory.

The library's own `save_file` copies every array first, and its `load_file` reads all of them: experts may fill the memory, or be
larger than it. The format is its: eight bytes of header length, a JSON header, the arrays one after another; those of the widest
elements first, as the library does, so that every array begins at a multiple of its elements' size.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np

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


def write_shard(path: Path, arrays: dict[str, np.ndarray], after_chunk: Callable[[], None]) -> None:
    """Write arrays. after_chunk: called after each, and every 64 MiB of a large one, to let go of memory that was read for it."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header, at = {}, 0
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    for name, array in ordered:
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # arrays begin at a multiple of 64, which the processor likes
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for first in range(0, len(flat), _CHUNK):
                stream.write(flat[first : first + _CHUNK].data)
                after_chunk()


def map_shard(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, mapped: read when they are touched; writing to one changes memory and never the file.

    Raises ValueError when the file is not what its header says.
    """
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} is {entry['dtype']}, which is not read here")
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        # a map of no bytes cannot be made everywhere
        arrays[name] = np.memmap(path, dtype, "c", 8 + length + begin, shape) if end > begin else np.empty(shape, dtype)
        if arrays[name].nbytes != end - begin:
            raise ValueError(f"{path}: {name} of shape {entry['shape']} has {end - begin} bytes")
    return arrays


def copy_mapped(value: np.ndarray, target: np.ndarray, after_row: Callable[[], None]) -> None:
    """Copy an array of `map_shard` into another, row by row, and keep no more than a row of it in memory."""
    if not value.ndim:
        target[...] = value
        return
    for row in range(len(value)):
        target[row] = value[row]
        if isinstance(value.base, mmap.mmap):
            value.base.madvise(mmap.MADV_DONTNEED)
        after_row()
