"""Input files: which names are read, and the stream of bytes of a file that is plain, `.gz` or `.zst`.

PyArrow decompresses, which reports a stream that was cut off; the package `zstandard` reads such a stream as if it were whole.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import BinaryIO

from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import RejectedLine

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
"""Ends of the names of files with a JSON object a line."""
ARRAYS = (".json", ".json.gz", ".json.zst")
"""Ends of the names of files with a JSON array."""
PARQUET = (".parquet",)
"""End of the names of Parquet files, which are compressed inside."""
INPUTS = LINES + ARRAYS + PARQUET
"""Ends of the names of all files that `prepare-data` reads."""

_MAGIC = {b"PAR1": ".parquet", b"\x1f\x8b": ".gz", b"(\xb5/\xfd": ".zst"}
"""First bytes of files that have a format of their own, and the end of their names."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""UTF-8 byte order mark, removed from the start of a file."""

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Ends of the names of compressed files, and their format."""


def check_input(path: Path, option: str = "--input", ends: tuple[str, ...] = LINES) -> None:
    """Raise DataError unless `path` is a regular file that can be opened, with a name that ends in one of `ends`.

    option: command-line option that gave the path, for the error.
    """
    option, begins = argument(option), b""
    if not path.name.endswith(ends):
        missing = "" if path.exists() else "there is no such file or folder; "
        raise DataError(f"{option} {path}: {missing}the name must end in {', '.join(ends)}")
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):  # opening a pipe would wait, reading a device may never end
            with path.open("rb") as file:
                begins = file.read(4)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{option} {path}: cannot be read: {why}; check the path") from error
    for magic, end in _MAGIC.items():
        if begins.startswith(magic) and not path.name.endswith(end):
            raise DataError(
                f"{option} {path}: its first bytes are of a {end} file; name it so, such as {path.stem}{end}"
            )
    if not stat.S_ISREG(mode):
        raise DataError(f"{option} {path}: is not a file but a folder, a pipe or a device; write the text to a file")


def open_stream(path: Path) -> BinaryIO:
    """Open a file and return its bytes, decompressed if the name ends in .gz or .zst. Raises OSError."""
    if path.suffix not in COMPRESSED:
        return path.open("rb")
    import pyarrow  # here: it takes 0.2 s

    return io.BufferedReader(pyarrow.input_stream(path.open("rb"), compression=COMPRESSED[path.suffix]))


def broken_stream(path: Path, offset: int, error: OSError, option: str = "--input") -> RejectedLine:
    """Return what is wrong with a compressed stream that was cut off. Raises DataError for every other failed read.

    offset: bytes before what could not be read.
    """
    if "Truncated compressed stream" in str(error):
        return RejectedLine("cut stream", f"{error}; copy the file again")
    if error.errno is None:  # PyArrow found it in the data
        raise DataError(
            f"{argument(option)} {path}: the {COMPRESSED[path.suffix]} stream is damaged after byte {offset} of its text, or is "
            f"none ({error}), so any line before may be other text, too; copy the file again, or, if it is not compressed, name it "
            f"*{Path(path.stem).suffix}"
        ) from error
    raise DataError(f"{argument(option)} {path}: cannot be read at byte {offset}: {error}; check the disk") from error
