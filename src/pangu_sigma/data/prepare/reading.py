"""Pass `hash`: input files → their hashes. Pass `read`: units of the input → blocks of documents, and lines that cannot be used.

A *block* is a stretch of the documents of one input unit, in order: a row group of the unit's result. Its number is the number of
the unit times 2^16, plus the place of the row group. The number of a document, in the column `document` of every table, is the
number of its block times 2^24, plus its row: documents are numbered in the order of the input.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from pangu_sigma.data.prepare.near_duplicates import signature
from pangu_sigma.data.prepare.overview import write_rejected
from pangu_sigma.data.prepare.stage import Passes, Work, tables_of
from pangu_sigma.data.prepared import QUARANTINE_NAME
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import Document, Rejected
from pangu_sigma.text.inputs import InputUnit, input_units, read_unit
from pangu_sigma.text.layout import Layout
from pangu_sigma.text.segmentation import english_runs

logger = logging.getLogger(__name__)

Stamp = tuple[str, int, int]
"""Path, size and modification time of a file."""
_ROW_BYTES = 256
"""Bytes of memory of a row beside its text, about."""

ROW_BITS, GROUP_BITS = 24, 16
"""Bits of a row's number in its row group, and of the row group's number in its file."""
UNIT_BITS = ROW_BITS + GROUP_BITS
"""Bits of a document's number after the number of its unit."""

ROWS = pa.schema(
    {
        "document": pa.int64(),
        "domain": pa.int16(),
        "languages": pa.list_(pa.string()),
        "texts": pa.list_(pa.string()),
        "bytes": pa.int64(),
        "keep": pa.binary(16),
        "hold": pa.binary(16),
        "runs": pa.int32(),
        "characters": pa.int64(),
        "signature": pa.binary(),
        "line": pa.int64(),
        "offset": pa.int64(),
        "reason": pa.string(),
        "detail": pa.string(),
    }
)
"""Row of a document, or of a line that cannot be used, which has no domain. The last row group of a unit is one row without a
domain and a reason, whose `line` is the number of its lines.

languages, texts: the document's segments. bytes: of UTF-8. keep, hold: first 128 bits of the hashes that decide whether it is kept
and held out. runs, characters: number of its English runs, and of their characters. signature: bytes of the values that
near-duplicates are searched by, or null. line, offset, reason, detail: as in `Rejected`.
"""
_UNUSABLE = 'SELECT document, line, "offset", reason, detail FROM rows WHERE domain IS NULL ORDER BY document'
"""Statement for the lines that cannot be used, and for the number of lines of each unit."""
_UNITS = f"SELECT DISTINCT document >> {UNIT_BITS}, domain FROM rows WHERE domain IS NOT NULL"
"""Statement for the numbers of units and the domains that they have documents of."""


def stamps_of(files: Sequence[Path]) -> list[Stamp]:
    """Return path, size and modification time of input files. Raises DataError for a file that cannot be read."""
    try:
        return [(str(path), (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    except OSError as error:
        raise DataError(f"{argument('--input')} {error.filename}: {error.strerror}; check the path") from error


def block_size(total: int) -> int:
    """Return the bytes of text of a block for `total` bytes of input: enough blocks for all cores, but no tiny ones. The number of
    workers has no part in it, so that a preparation that goes on with another number has the same blocks."""
    return max(1 << 20, min(total // 64, 16 << 20))  # 1 MiB … 16 MiB


def hash_files(passes: Passes, stamps: Sequence[Stamp]) -> list[list[str]]:
    """Return path and hex sha256 of each input file. Files are only read again if a stamp (path, size or time) has changed."""
    passes.begin("hash", stamps)
    tables = passes.map(_hash_file, [Path(path) for path, *_ in stamps])
    return [[path, table["sha256"][0].as_py()] for (path, *_), table in zip(stamps, tables, strict=True)]


def _hash_file(work: Work, path: Path) -> Iterator[pa.Table]:
    """Yield a table with the sha256 of a file in hex. Raises DataError if the file cannot be read."""
    try:
        logger.info("hashing %s (%.1f MiB)", path, path.stat().st_size / (1 << 20))
        yield pa.table({"sha256": [sha256_of(path)]})
    except OSError as error:
        raise DataError(f"{argument('--input')} {path}: {error.strerror}; check the path") from error


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(
    passes: Passes, stamps: Sequence[Stamp], layout: Layout, manifest_config: dict[str, Any]
) -> tuple[list[list[Path]], dict[str, int], dict[str, str]]:
    """Read all text, and write the lines that cannot be used into the stage.

    Return three values: the files that have documents of each domain; reason → number of lines that cannot be used; and reason →
    place and fault of the first such line. stamps: path, size and time of the input files. layout: reader of records.
    manifest_config: settings and text that decide the result. Raises DataError for a file that cannot be read or was changed."""
    work, files = passes.work, [Path(path) for path, *_ in stamps]
    block_bytes = block_size(sum(size for _, size, _ in stamps))
    units = input_units(files, block_bytes)
    domains = [[domain.name, domain.format, domain.language] for domain in work.domains]
    settings = [manifest_config[key] for key in ("inputs", "text_key", "domain_of", "reader", "versions")]
    signature_versions = work.config.data.near_duplicates is not None and [version(n) for n in ("datasketch", "xxhash")]
    passes.begin("read", block_bytes, domains, settings, signature_versions)
    passes.map(partial(read, layout=layout, block_bytes=block_bytes), [*enumerate(units)])
    for path, *_ in sorted({*stamps_of(files)} - {*stamps}):  # the first file with another stamp than before
        raise DataError(
            f"{argument('--input')} {path}: was changed while it was read; call prepare-data when it is complete"
        )
    with work.stage.database(work.config.data.memory_gib / 2) as database:
        database.register("rows", work.stage.results("read"))
        rows = (row for table in tables_of(database, _UNUSABLE) for row in table.to_pylist())
        counts, examples = write_rejected(work.stage.path(QUARANTINE_NAME), _unusable(rows, units))
        pairs = {(units[unit].path, domain) for unit, domain in database.execute(_UNITS).fetchall()}
    return [[file for file in files if (file, domain.index) in pairs] for domain in work.domains], counts, examples


def read(work: Work, numbered_unit: tuple[int, InputUnit], layout: Layout, block_bytes: int) -> Iterator[pa.Table]:
    """Read a unit of the input, and yield tables of `ROWS`: its blocks, of `block_bytes` or a little more, and a last table of one
    row with the number of its lines. numbered_unit: number of the unit, and the unit."""
    number, unit = numbered_unit
    first_block, blocks, size, rows = number << GROUP_BITS, 0, 0, list[dict[str, Any]]()
    for row in _rows_of(work, unit, layout):
        is_last = row.keys() == {"line"}  # the number of lines, for a table of its own
        if rows and (is_last or size >= block_bytes):
            yield _table_of(rows, first_block + blocks)
            blocks, size, rows = blocks + 1, 0, []
        rows.append(row)
        size += row.get("bytes", 0) + _ROW_BYTES
    yield _table_of(rows, first_block + blocks)


def _table_of(rows: Sequence[dict[str, Any]], block: int) -> pa.Table:
    """Return the table of the rows of a block, with their document numbers. block: number of the block."""
    return pa.Table.from_pylist([{"document": (block << ROW_BITS) + n, **row} for n, row in enumerate(rows)], ROWS)


def _rows_of(work: Work, unit: InputUnit, layout: Layout) -> Iterator[dict[str, Any]]:
    """Yield the rows of the documents and unusable lines of a unit, in order, and last a row with the number of its lines alone."""
    has_signature, items = work.config.data.near_duplicates is not None, read_unit(unit, layout, work.domains)
    while True:
        try:
            item = next(items)
        except StopIteration as end:
            yield {"line": end.value}
            return
        if isinstance(item, Rejected):
            # names of files may hold bytes that are no text
            detail = item.detail.encode(errors="backslashreplace").decode()
            yield {"line": item.line, "offset": item.offset, "reason": item.reason, "detail": detail}
        else:
            yield row_of(item, work.domains.named(item.domain), has_signature)


def row_of(document: Document, domain: Domain, has_signature: bool) -> dict[str, Any]:
    """Return the row of a document, as in `ROWS`, without its number. has_signature: True to make the signature, by which
    near-duplicates are searched."""
    languages, texts = zip(*document.segments, strict=True)
    runs = [run for text in texts for run in english_runs(text, domain.language)]
    return {
        "domain": domain.index,
        "languages": languages,
        "texts": texts,
        "bytes": document.bytes,
        "keep": content_hash("keep", document)[:16],
        "hold": content_hash("hold out", document)[:16],
        "runs": len(runs),
        "characters": sum(map(len, runs)),
        "signature": signature(document).tobytes() if has_signature else None,
    }


def content_hash(purpose: str, document: Document) -> bytes:
    """Return the sha256 of a purpose and of a document's content: its text, and the language of each segment."""
    digest = hashlib.sha256(purpose.encode())
    for language, text in document.segments:
        digest.update(f"\0{language}\0".encode())
        digest.update(text.encode())
    return digest.digest()


def _unusable(rows: Iterator[dict[str, Any]], units: Sequence[InputUnit]) -> Iterator[Rejected]:
    """Yield the lines that cannot be used of all units. Rows number lines from the begin of a unit, and files may have several
    units, so the lines of the file's earlier units are added. rows: result of `_UNUSABLE`, which ends every unit with a row without
    a reason, whose `line` is the number of its lines."""
    earlier_lines = 0
    for row in rows:
        number = row.pop("document") >> UNIT_BITS
        if row["reason"] is None:
            is_last_of_file = number + 1 == len(units) or units[number + 1].begin == 0
            earlier_lines = 0 if is_last_of_file else earlier_lines + row["line"]
        else:
            yield Rejected(str(units[number].path), row.pop("line") + earlier_lines, **row)


def in_block(block: int) -> ds.Expression:
    """Return the condition for rows of documents of a block."""
    document = ds.field("document")
    return (document >= block << ROW_BITS) & (document < (block + 1) << ROW_BITS)
