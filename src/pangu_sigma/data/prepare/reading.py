"""Pass `read`: units of the input → blocks of documents, and the lines that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pangu_sigma.data.prepare.blocks import GROUP_BITS, ROW_BITS, UNIT_BITS, Work
from pangu_sigma.data.prepare.cleaning.near_duplicates import signature
from pangu_sigma.domains import Domain
from pangu_sigma.text.documents import Document, Rejected
from pangu_sigma.text.inputs import InputUnit, read_unit
from pangu_sigma.text.layout import Layout
from pangu_sigma.text.segmentation import english_runs

_ROW_BYTES = 256
"""Bytes of memory of a row beside its text, about."""

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
QUARANTINED = ("document", "line", "offset", "reason", "detail")
"""Columns of a line that cannot be used."""
_OF_A_LINE = len(ROWS) - 4
"""Number of the columns that are empty for a line, with `document`."""


def read(work: Work, number: int, unit: InputUnit) -> Iterator[pa.Table]:
    """Read a unit, and yield its blocks, and the number of its lines."""
    lines, rows, size, group = 0, list[tuple[Any, ...]](), 0, 0

    def items_of_unit() -> Iterator[Document | Rejected]:
        nonlocal lines
        lines = yield from read_unit(unit, Layout.of(work.config), work.domains)

    def row(*values: Any) -> tuple[Any, ...]:
        return (number << GROUP_BITS | group) << ROW_BITS | len(rows), *values

    signed = work.config.data.near_duplicates is not None
    for item in items_of_unit():
        if isinstance(item, Rejected):
            detail = item.detail.encode(
                errors="backslashreplace"
            ).decode()  # names of files may hold bytes that are no text
            rows.append(row(*[None] * (_OF_A_LINE - 1), item.line, item.offset, item.reason, detail))
        else:
            rows.append(row(*_facts(item, work.domains.named(item.domain), signed)))
            size += rows[-1][ROWS.get_field_index("bytes")]
        size += _ROW_BYTES
        if size >= work.size:
            yield _table(rows)
            rows, size, group = [], 0, group + 1
    if rows:
        yield _table(rows)
        rows, group = [], group + 1
    yield _table([row(*[None] * (_OF_A_LINE - 1), lines, None, None, None)])


def _table(rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, ROWS.types, strict=True)], schema=ROWS)


def _facts(document: Document, domain: Domain, signed: bool) -> tuple[Any, ...]:
    """Return the values of a document's row after its number. signed: True for its signature, to search near-duplicates by."""
    languages, texts = zip(*document.segments, strict=True)
    runs = [run for text in texts for run in english_runs(text, domain.language)]
    return (
        domain.index,
        languages,
        texts,
        document.bytes,
        content_hash("keep", document)[:16],
        content_hash("hold out", document)[:16],
        len(runs),
        sum(map(len, runs)),
        signature(document).tobytes() if signed else None,
        *[None] * 4,
    )


def content_hash(purpose: str, document: Document) -> bytes:
    """Return the sha256 of a purpose and of a document's content: its text, and the language of each segment."""
    digest = hashlib.sha256(purpose.encode())
    for language, text in document.segments:
        digest.update(f"\0{language}\0".encode())
        digest.update(text.encode())
    return digest.digest()


def unusable(rows: Iterator[tuple[Any, ...]], units: Sequence[InputUnit]) -> Iterator[Rejected]:
    """Yield the unusable lines of all units, with their numbers in the file.

    rows: columns QUARANTINED of all rows without a domain, in order.
    """
    before = 0
    for document, line, offset, reason, detail in rows:
        number = document >> UNIT_BITS
        if reason is None:
            is_last = number + 1 == len(units) or units[number + 1].begin == 0
            before = 0 if is_last else before + line
        else:
            yield Rejected(str(units[number].path), line and line + before, offset, reason, detail)
