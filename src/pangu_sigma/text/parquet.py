"""Reader of Parquet files: only the columns that are needed, a few rows at a time. Rows count as lines, and have no byte offset."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import MAX_LINE_BYTES, RejectedLine, Row

_BATCH_ROWS = 16
"""Rows that are read at once. Few, because nothing says how long they are: a text of 64 MiB that a dictionary repeats is a few
bytes in each."""
_BUFFER_BYTES = 1 << 20
"""Bytes that are read of a column at once; without a buffer, PyArrow reads all of a row group's column."""


def row_group_cuts(path: Path, size: int) -> list[int]:
    """Return the numbers of the row groups at which a file is cut into parts: 0, …, number of row groups. size: minimum bytes of a
    part but the last, of all columns before compression. Raises DataError if the file is not Parquet or was cut off."""
    with _open_parquet(path) as file:
        metadata = file.metadata
    cuts, part_bytes = [0], 0
    for group in range(metadata.num_row_groups):
        part_bytes += metadata.row_group(group).total_byte_size
        if part_bytes >= size:
            cuts.append(group + 1)
            part_bytes = 0
    if cuts[-1] < metadata.num_row_groups or not metadata.num_row_groups:  # an empty file is one part
        cuts.append(metadata.num_row_groups)
    return cuts


def parquet_rows(path: Path, begin: int, end: int, keys: list[str] | None) -> Iterator[Row]:
    """Yield the rows of row groups begin … end - 1 of a file, with their numbers as offsets. keys: keys that records need; None:
    all. Raises DataError if a column is missing, if the file is damaged, and if it has fewer row groups."""
    with _open_parquet(path) as file:
        if file.metadata.num_row_groups < end:
            raise DataError(f"{argument('--input')} {path}: was changed while it was read; begin when it is complete")
        columns = _columns(path, file.schema_arrow.names, keys)
        offset = sum(file.metadata.row_group(group).num_rows for group in range(begin))
        if not file.metadata.num_rows and not begin:
            yield 0, RejectedLine("empty file", "there is no row in it")
        for group in range(begin, end):
            for batch in file.iter_batches(_BATCH_ROWS, [group], columns, use_threads=False):
                for row in range(batch.num_rows):
                    yield offset, _record(batch, row)
                    offset += 1


@contextmanager
def _open_parquet(path: Path) -> Generator[Any, None, None]:
    """Open a Parquet file. Errors of PyArrow in the `with` block become a DataError."""
    import pyarrow.parquet  # here: it takes 0.3 s, and most input is not Parquet

    try:
        with pyarrow.OSFile(os.fsencode(path)) as stream:
            yield pyarrow.parquet.ParquetFile(stream, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{argument('--input')} {path}: cannot be read as Parquet: {error}; it is not Parquet, or it was cut off or damaged: "
            "copy it again"
        ) from error


def _columns(path: Path, names: list[str], keys: list[str] | None) -> list[str]:
    """Return the columns to read, in order. Raises DataError for a key that is no column, or two columns. names: names of the
    file's columns. keys: keys that records need; None for all columns."""
    needed_names = names if keys is None else [key if key in names else key.split(".")[0] for key in keys]
    for name in needed_names:
        if names.count(name) != 1:
            problem = "there are several columns" if name in names else "there is no column"
            raise DataError(
                f"{argument('--input')} {path}: {problem} {name!r}; the columns are {', '.join(map(repr, names))}: name the one "
                "with the text in data.text_key, or say the domain of the file with data.domain_of; a "
                "reader reads columns of other names"
            )
    return list(dict.fromkeys(needed_names))


def _record(batch: Any, row: int) -> dict[str, Any] | RejectedLine:
    """Return a row of a batch as {column: value}; a RejectedLine if its text is not UTF-8 or too long."""
    try:
        record = {name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except UnicodeDecodeError as error:
        return RejectedLine("not UTF-8", f"byte {error.start} of a text: {error.reason}")
    size = sum(len(value.encode()) for value in record.values() if isinstance(value, str))
    return record if size <= MAX_LINE_BYTES else RejectedLine.too_long(size, " of text")
