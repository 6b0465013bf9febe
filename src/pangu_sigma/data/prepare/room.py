"""Memory check before a preparation, which keeps all text in memory: input that will not fit is refused before it is read."""

from __future__ import annotations

import math
from pathlib import Path

from pangu_sigma.errors import DataError, argument
from pangu_sigma.host_memory import available_memory
from pangu_sigma.text.parquet import parquet_extent
from pangu_sigma.text.streams import BROKEN_STREAMS, PARQUET, UNREADABLE, open_stream

PER_BYTE, PER_DOCUMENT, ALWAYS = 16, 1_300, 100_000_000
"""Bytes of memory that a preparation needs per byte of text, per document, and for the vocabulary, measured and rounded up."""

_SAMPLE_BYTES = 64 << 20
"""Number of bytes at the start of a file whose lines are counted."""
_READ_BYTES = 4 << 20


def check_room(inputs: list[Path], most: int | None, domains: int) -> None:
    """Raise DataError if preparing the text of these files needs more memory than is free.

    most: maximum bytes kept of each domain; None: no limit. domains: number of domains.
    """
    there = available_memory(swap=False)
    if there is None:
        return
    kept_at_most = math.inf if most is None else most * domains
    enough = min(max(0, there - ALWAYS) // PER_BYTE, kept_at_most)
    size = lines = 0
    for path in inputs:
        more = _extent(path, enough + 1 - size)
        size, lines = size + more[0], lines + more[1]
    if not size:
        return
    per_byte = PER_BYTE + PER_DOCUMENT * lines / size
    needed = min(size, kept_at_most) * per_byte + ALWAYS
    if needed > there:
        fitting = 0.95 * (there - ALWAYS) / per_byte / domains / (1 << 20)
        way_out = f"set data.max_mib_per_domain to {fitting:.2g} or less, or " if fitting > 0.01 else ""
        raise DataError(
            f"{argument('--input')}: {size / 1e6:,.1f} MB of text or more, in {lines:,} lines or more, need about "
            f"{needed / 1e9:,.2f} GB of memory to prepare, and {there / 1e9:,.2f} GB are free; {way_out}prepare it on a machine "
            "with more memory"
        )


def _extent(path: Path, enough: float) -> tuple[int, int]:
    """Return the bytes and lines of a file, of a compressed one after decompression; counting stops at `enough` bytes."""
    if path.name.endswith(PARQUET):
        return parquet_extent(path)
    packed = path.suffix in BROKEN_STREAMS
    size = lines = 0
    try:
        with open_stream(path) as file:
            while size < (enough if packed else _SAMPLE_BYTES) and (chunk := file.read(_READ_BYTES)):
                size, lines = size + len(chunk), lines + chunk.count(b"\n")
    except UNREADABLE:
        pass  # the preparation will say what is wrong, and where
    whole = size if packed else path.stat().st_size
    return whole, round(lines * whole / max(1, size))
