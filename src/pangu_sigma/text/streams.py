"""Input files: which names are read, and the stream of bytes of a file that is plain, `.gz` or `.zst`.

zstd is read by PyArrow, which reports a stream that was cut off; the package `zstandard` reads such a stream as if it were whole.
"""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import Rejected

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

BROKEN_STREAMS = {".gz": "broken gzip stream", ".zst": "broken zstd stream"}
"""Reason of the last `Rejected` of a compressed file that was cut off."""

UNREADABLE = (EOFError, OSError, zlib.error)
"""Exceptions that reading a stream may raise."""


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
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if path.suffix == ".zst":
        import pyarrow  # here: it takes 0.2 s, and most input is not zstd

        return io.BufferedReader(pyarrow.CompressedInputStream(path.open("rb"), "zstd"))
    return path.open("rb")


def broken_stream(path: Path, line: int, offset: int, error: Exception, option: str = "--input") -> Rejected:
    """Return a `Rejected` for a compressed stream that was cut off, or is none. Raises DataError for every other failed read.

    line, offset: the place after the last line that could be read. error: one of `UNREADABLE`.
    """
    cut = isinstance(error, EOFError) or "Truncated compressed stream" in str(error)
    if path.suffix in BROKEN_STREAMS and (cut or _is_no_stream(error)):
        plain = "" if offset or cut else f"; if it is not compressed, name the file *{Path(path.stem).suffix}"
        return Rejected(str(path), line, offset, BROKEN_STREAMS[path.suffix], f"{error}{plain}")
    if isinstance(error, gzip.BadGzipFile | zlib.error) or (path.suffix == ".zst" and _errno(error) is None):
        kind = BROKEN_STREAMS[path.suffix].removeprefix("broken ")
        raise DataError(
            f"{argument(option)} {path}: the {kind} is damaged before byte {offset} of its text ({error}), so any line of it "
            "may be other text; copy the file again"
        ) from error
    raise DataError(f"{argument(option)} {path}: cannot be read at byte {offset}: {error}; check the disk") from error


def _is_no_stream(error: Exception) -> bool:
    """Return True if what comes next is no compressed data: the file never was any, or there is rubbish after its end."""
    return "Not a gzipped file" in str(error) or "Unknown frame descriptor" in str(error)


def _errno(error: Exception) -> int | None:
    """Return the number of an error of the system; None for one that PyArrow found in the data."""
    return error.errno if isinstance(error, OSError) else None
