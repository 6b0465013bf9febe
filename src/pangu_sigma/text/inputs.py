"""Input of `prepare-data`: files and folders of files, cut into units that can be read in any order and in several processes.

Units depend on the files and on `size` only. A plain file of JSON lines is cut at line ends, a Parquet file between row groups; a
compressed file and a JSON array are one unit each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pangu_sigma.domains import Domains
from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import Document, Rejected, items_of, json_object, json_value
from pangu_sigma.text.json_array import json_array
from pangu_sigma.text.json_lines import json_lines, line_ends
from pangu_sigma.text.layout import Layout
from pangu_sigma.text.parquet import parquet_rows, row_groups
from pangu_sigma.text.streams import ARRAYS, INPUTS, PARQUET, check_input

logger = logging.getLogger(__name__)

_SHOWN = 100
"""Number of files left out of a folder that the log names."""


@dataclass(frozen=True)
class InputUnit:
    """One run of an input file. begin, end: bytes of a plain file of JSON lines, row groups of a Parquet file, 0 and the size of
    another file."""

    path: Path
    begin: int
    end: int


def input_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files among `paths`, and in place of each folder the files below it that can be read, sorted.

    Hidden files, links to folders and files of other names are left out of folders, and counted in the log. Raises DataError for
    a folder without a file that can be read, and as `check_input` does.
    """
    files = []
    for path in paths:
        below = _files_below(path) if path.is_dir() and not path.name.endswith(INPUTS) else [path]
        for file in below:
            check_input(file, ends=INPUTS)
        files += below
    return files


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"{argument('--input')} {error.filename}: cannot be read: {error.strerror}; change its permissions"
        ) from error

    found: list[Path] = []
    others: list[Path] = []
    for at, names, files in os.walk(folder, onerror=refuse):
        here = Path(at)
        others += [here / name for name in names if name.startswith(".") or (here / name).is_symlink()]
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            (found if name.endswith(INPUTS) and not name.startswith(".") else others).append(here / name)
    if not found:
        raise DataError(f"{argument('--input')} {folder}: no file below it ends in {', '.join(INPUTS)}")
    logger.info("%s: %s %s", folder, f"{len(found):,}", "file is read" if len(found) == 1 else "files are read")
    if others:
        named = ", ".join(str(path.relative_to(folder)) for path in sorted(others)[:_SHOWN])
        more = f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
        logger.warning("%s: not read are %s%s; names of text end in %s", folder, named, more, ", ".join(INPUTS))
    return sorted(found)


def input_units(paths: Sequence[Path], size: int) -> list[InputUnit]:
    """Return the units of files and folders, in order.

    size: bytes of a unit, about, where a file can be cut. Raises DataError as `input_files` does, and for a Parquet file that
    cannot be read.
    """
    units = []
    for path in input_files(paths):
        if path.name.endswith(PARQUET):
            cuts = row_groups(path, size)
        elif path.suffix == ".jsonl":
            cuts = line_ends(path, size)
        else:
            cuts = [0, path.stat().st_size]
        units += [InputUnit(path, begin, end) for begin, end in pairwise(cuts)]
    return units


def read_unit(unit: InputUnit, layout: Layout, domains: Domains) -> Generator[Document | Rejected, None, int]:
    """Yield the documents and the rejected lines of a unit, in order. Return its number of lines, blank ones included.

    `Rejected.line` counts from the unit's begin, offsets from that of the file. Raises DataError for a file that cannot be read or
    was changed since, and as `Layout.domain_of_file` does.
    """
    path = unit.path
    check_input(path, ends=INPUTS)
    domain = layout.domain_of_file(path)

    if path.name.endswith(PARQUET):
        rows = parquet_rows(path, unit.begin, unit.end, layout.columns(domain))
    elif path.name.endswith(ARRAYS):
        rows = json_array(path)
    else:
        rows = json_lines(path, unit.begin, unit.end if path.suffix == ".jsonl" else None)

    def parse(row: bytes | dict[str, Any], at: int) -> Document:
        record = row if isinstance(row, dict) else json_object(json_value(row))
        return layout.document(record, domain, domains, f"{path}:{at}")

    return (yield from items_of(path, rows, parse))
