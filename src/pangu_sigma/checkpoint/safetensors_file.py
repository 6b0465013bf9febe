"""Reader and writer of safetensors files whose arrays may be larger than memory.

The library's `save_file` needs all arrays in memory at once, and leaves no holes for zeros; its `load_file` reads all arrays. Here
an array is written part by part, hashed and examined on the way, and read as a map of the file, whose header the library checks.
The format is the library's: eight bytes of header length, a JSON header, the arrays end to end. Arrays of the widest elements come
first, as in the library's files, so that every array begins at a multiple of its elements' size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open

from pangu_sigma.checkpoint.lazy import AnyArray, chunks, map_file
from pangu_sigma.sealed import DamagedFile

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32"}
_DTYPES |= {"U16": "uint16", "U8": "uint8", "BOOL": "bool"}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_arrays(
    path: Path,
    arrays: Mapping[str, AnyArray],
    metadata: dict[str, str] | None = None,
    after_chunk: Callable[[str, np.ndarray], object] = lambda name, values: None,
) -> dict[str, Any]:
    """Write arrays into a safetensors file. Returns the file's size and hash, as `sealed.fingerprint` does.

    Chunks of zeros are left out: such a hole takes no space if the file system supports holes.
    after_chunk: called after each chunk (lazy.py) with the array's name and the chunk's values, such as to release memory.
    """
    widest_first = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    begin = 0
    for name, array in widest_first:
        end = begin + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # with the 8 bytes of its length, the header ends at a multiple of 64
    text = len(text).to_bytes(8, "little") + text
    digest, size = xxhash.xxh3_128(text), len(text)
    with open(path, "wb") as stream:
        stream.write(text)
        for name, array in widest_first:
            for _, values in chunks(array):
                content = values.view(np.uint8)
                digest.update(content.data)
                if content.view(bool).any():
                    stream.write(content.data)
                else:  # leave a hole
                    stream.seek(len(content), os.SEEK_CUR)
                size += len(content)
                after_chunk(name, values)
        stream.truncate(size)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


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
    """Return, for each array by its name, the dtype in safetensors' names, such as "F32", the shape, and the first and the end byte
    in the file. Raises DamagedFile if the file does not fit its header."""
    metadata_of(path)  # checks the header, but tells no offsets
    with open(path, "rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(start - 8))
    header.pop("__metadata__", None)
    extents = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        extents[name] = (entry["dtype"], tuple(entry["shape"]), start + begin, start + end)
    return extents
