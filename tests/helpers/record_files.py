"""Records in files of every format that `prepare-data` reads, and the reading of whole files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from pangu_sigma.domains import Domains
from pangu_sigma.text.documents import Document, Rejected
from pangu_sigma.text.inputs import input_units, read_unit
from pangu_sigma.text.layout import Layout

NAMES = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.json.zst", "a.parquet")
"""A name of each format."""
LAYOUT = Layout()
WHOLE = 1 << 62
"""Size of a unit that is a file."""


def packed(name: str, content: bytes) -> bytes:
    """Content as a file of this name holds it: compressed with .gz and .zst."""
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return pyarrow.compress(content, "zstd", asbytes=True) if name.endswith(".zst") else content


def text_of(name: str, records: Sequence[bytes]) -> bytes:
    """Records in JSON as lines or as an array, by the name of the file; not compressed."""
    return (
        b"[\n" + b",\n".join(records) + b"\n]"
        if ".json" in name and ".jsonl" not in name
        else b"\n".join(records) + b"\n"
    )


def write_records(path: Path, records: Sequence[dict[str, Any]], row_group: int = 1 << 20) -> Path:
    """Write a file of the format that its name says. row_group: rows of a row group of a Parquet file."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path, row_group_size=row_group)
    else:
        lines = [json.dumps(record, ensure_ascii=False).encode() for record in records]
        path.write_bytes(packed(path.name, text_of(path.name, lines)))
    return path


def read_whole(path: Path, domains: Domains, layout: Layout = LAYOUT, size: int = WHOLE) -> list[Document | Rejected]:
    """Documents and rejected lines of a file, read by its units. size: of a unit."""
    return [item for unit in input_units([path], size) for item in read_unit(unit, layout, domains)]
