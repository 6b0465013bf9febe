"""Input files in pieces that can be read one by one, in any process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.config import Config
from pangu_sigma.domains import Domains
from pangu_sigma.text.documents import Document, Rejected, read_jsonl

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class InputUnit:
    """Piece of an input file: the bytes begin … end - 1 of a plain one, a compressed file as a whole."""

    path: Path
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """What the keys of a line mean."""

    @classmethod
    def of(cls, config: Config) -> Layout:
        """Return the layout that a configuration describes."""
        return cls()


def input_units(paths: Sequence[Path], size: int) -> list[InputUnit]:
    """Cut files into pieces: plain ones at the first line ends after multiples of `size` bytes. Raises OSError."""
    units = []
    for path in paths:
        end = path.stat().st_size
        begins = [0] if path.suffix == ".gz" else _begins(path, end, size)
        units += [InputUnit(path, *each) for each in zip(begins, [*begins[1:], end], strict=True)]
    return units


def _begins(path: Path, end: int, size: int) -> list[int]:
    """Return the offsets of the lines that begin the pieces of a file."""
    begins = [0]
    with path.open("rb") as file:
        while (at := (begins[-1] // size + 1) * size) < end:
            file.seek(at - 1)
            while (some := file.readline(_READ_BYTES)) and not some.endswith(b"\n"):
                pass
            if file.tell() >= end:
                break
            begins.append(file.tell())
    return begins


def read_unit(unit: InputUnit, layout: Layout, domains: Domains) -> Iterator[Document | Rejected]:
    """Yield the documents and the rejected lines of a piece in order; their lines count from its begin. Raises as `read_lines`."""
    whole = unit.path.suffix == ".gz"
    return read_jsonl(unit.path, domains, begin=unit.begin, end=None if whole else unit.end)


def lines_of(unit: InputUnit) -> int:
    """Return the number of line ends in a piece of a plain file; 0 for a compressed file, which is one piece. Raises OSError."""
    if unit.path.suffix == ".gz":
        return 0
    with unit.path.open("rb") as file:
        file.seek(unit.begin)
        left, lines = unit.end - unit.begin, 0
        while left > 0 and (some := file.read(min(left, _READ_BYTES))):
            left, lines = left - len(some), lines + some.count(b"\n")
    return lines
