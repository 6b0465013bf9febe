"""Input of `prepare-data`: files and folders of files, cut into units that can be read in any order and in several processes.

Units depend on the files and on `size` only. A plain file of JSON lines is cut at line ends, a Parquet file between row groups; a
compressed file and a JSON array are one unit each.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pangu_sigma.domains import Domains
from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import Document, Rejected, items_of
from pangu_sigma.text.json_files import json_array, json_lines, line_ends
from pangu_sigma.text.layout import Layout
from pangu_sigma.text.parquet import parquet_rows, row_group_cuts

logger = logging.getLogger(__name__)

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
"""Ends of the names of files with a JSON object a line."""
ARRAYS = (".json", ".json.gz", ".json.zst")
"""Ends of the names of files with a JSON array."""
INPUTS = (*LINES, *ARRAYS, ".parquet")
"""Ends of the names of all files that `prepare-data` reads."""

_MAGIC = {b"PAR1": ".parquet", b"\x1f\x8b": ".gz", b"(\xb5/\xfd": ".zst"}
"""First bytes of files that have a format of their own, and the end of their names."""
_SHOWN_FILES = 100
"""Number of files left out of a folder that the log names."""


@dataclass(frozen=True)
class InputUnit:
    """Part of an input file that is read at a time. begin, end: offsets in bytes in a plain file of JSON lines, numbers of row
    groups in a Parquet file, 0 and the size for any other file."""

    path: Path
    begin: int
    end: int


def check_input(path: Path, option: str = "--input", suffixes: tuple[str, ...] = LINES) -> None:
    """Raise DataError unless `path` is a regular file that can be opened, with a name that ends in one of `suffixes`, and does not
    begin as a file of another format. option: command-line option that named the path, for the message."""
    option, first_bytes = argument(option), b""
    if not path.name.endswith(suffixes):
        missing = "" if path.exists() else "there is no such file or folder; "
        raise DataError(f"{option} {path}: {missing}the name must end in {', '.join(suffixes)}")
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):  # opening a pipe would wait, reading a device may never end
            with path.open("rb") as file:
                first_bytes = file.read(4)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{option} {path}: cannot be read: {reason}; check the path") from error
    for magic, suffix in _MAGIC.items():
        if first_bytes.startswith(magic) and not path.name.endswith(suffix):
            endings = ", ".join(ending for ending in suffixes if ending.endswith(suffix))
            fix = f"end its name in {endings}" if endings else f"convert it to {suffixes[0]}"
            raise DataError(f"{option} {path}: it begins as a {suffix} file; {fix}")
    if not stat.S_ISREG(mode):
        raise DataError(f"{option} {path}: is not a file but a folder, a pipe or a device; write the text to a file")


def input_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files among `paths`, and in place of each folder the files below it that can be read, sorted.

    Hidden files, links to folders and files of other names are left out of folders, and counted in the log. Raises DataError for
    a folder without a file that can be read, and as `check_input` does.
    """
    files = list[Path]()
    for path in paths:
        files += _files_below(path) if path.is_dir() and not path.name.endswith(INPUTS) else [path]
    for file in files:
        check_input(file, suffixes=INPUTS)
    return files


def _files_below(folder: Path) -> list[Path]:
    """Return the files below a folder that can be read, sorted, and log the others. Raises DataError if there are none."""

    def refuse(error: OSError) -> None:
        reason = f"cannot be read: {error.strerror}; change its permissions"
        raise DataError(f"{argument('--input')} {error.filename}: {reason}") from error

    texts, others = list[Path](), list[Path]()
    for parent, subfolders, files in os.walk(folder, onerror=refuse):
        others += [Path(parent, n) for n in subfolders if n.startswith(".") or Path(parent, n).is_symlink()]
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]  # os.walk then skips hidden ones
        for name in files:
            is_text = name.endswith(INPUTS) and not name.startswith(".")
            (texts if is_text else others).append(Path(parent, name))
    if not texts:
        raise DataError(f"{argument('--input')} {folder}: no file below it ends in {', '.join(INPUTS)}")
    logger.info("%s: %s %s", folder, f"{len(texts):,}", "file is read" if len(texts) == 1 else "files are read")
    if others:
        names = ", ".join(str(path.relative_to(folder)) for path in sorted(others)[:_SHOWN_FILES])
        more = f" and {len(others) - _SHOWN_FILES:,} more" if len(others) > _SHOWN_FILES else ""
        logger.warning("%s: not read are %s%s; names of text end in %s", folder, names, more, ", ".join(INPUTS))
    return sorted(texts)


def input_units(paths: Sequence[Path], size: int) -> list[InputUnit]:
    """Return the units of files and folders, in order. size: approximate bytes of a unit, in files that can be cut. Raises
    DataError as `input_files` does, and for a Parquet file that cannot be read."""
    units = []
    for path in input_files(paths):
        if path.suffix == ".parquet":
            cuts = row_group_cuts(path, size)
        elif path.suffix == ".jsonl":
            cuts = line_ends(path, size)
        else:
            cuts = [0, path.stat().st_size]
        units += [InputUnit(path, begin, end) for begin, end in pairwise(cuts)]
    return units


def read_unit(unit: InputUnit, layout: Layout, domains: Domains) -> Generator[Document | Rejected, None, int]:
    """Yield the documents and the rejected lines of a unit, in order. Return its number of lines, blank ones included.

    `Rejected.line` counts from the unit's begin, offsets from the file's. Raises DataError for a file that cannot be read or was
    changed since, and as `Layout.domain_of_file` does.
    """
    path = unit.path
    check_input(path, suffixes=INPUTS)
    domain = layout.domain_of_file(path)

    if path.suffix == ".parquet":
        rows = parquet_rows(path, unit.begin, unit.end, layout.columns(domain))
    elif path.name.endswith(ARRAYS):
        rows = json_array(path)
    else:
        rows = json_lines(path, unit.begin, unit.end if path.suffix == ".jsonl" else None)
    return (yield from items_of(path, rows, lambda row: layout.document(row, domain, domains)))
