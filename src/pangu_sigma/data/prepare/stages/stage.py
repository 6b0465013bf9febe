"""Stage of a preparation: the folder beside its output with all that is between text and token files.

A preparation is a series of *passes*, each a map of a function over *units* (pieces of the input, blocks of documents, domains).
The function yields tables of one schema. They are the row groups of a Parquet file, the unit's result, which is written under
another name and renamed. A unit with a result is not done again, so a killed preparation goes on where it was. A pass whose
settings or whose input changed is done anew, with all passes after it; the passes before it are kept.

Every page of a file has a checksum, which tells what a machine that lost power did not write: files are not flushed one by one,
which would take longer than the work on them.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pangu_sigma.errors import DataError, UserError
from pangu_sigma.writable import folder_lock, refuse_link

logger = logging.getLogger(__name__)

_KEY = "key"
"""File of a pass: of what its results are."""
_WRITING: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_page_checksum": True,
    "write_statistics": ["document", "domain", "rank"],
}
_READING = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
_NO_DAMAGE = (duckdb.OutOfMemoryException, duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException)
_ROWS = 1 << 16
"""Rows of a table that a statement returns at a time."""


class StageError(UserError, RuntimeError):
    """Error of the stage or of its workers; the text is not to blame."""


@dataclass(frozen=True)
class Stage:
    """Stage in a folder. Names are paths below it. preparation: fingerprint of its preparation, for what is cached of files."""

    folder: Path
    preparation: str = ""

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self.folder / name

    def begin(self, name: str, key: str, earlier: Sequence[str]) -> None:
        """Begin a pass: unless the stage has results of the pass with this key, remove its results, and the results of all passes
        but `earlier`."""
        file = self.path(f"{name}/{_KEY}")
        if file.exists() and file.read_text() == key:
            return
        if file.exists():
            logger.info("%s: is of other text or settings; done anew", name)
        for folder in self.folder.glob("*/"):
            if folder.name not in earlier:
                shutil.rmtree(folder)
        file.parent.mkdir(parents=True)
        file.write_text(key)

    def write(self, name: str, tables: Iterable[pa.Table]) -> None:
        """Write tables, one or more, as row groups of a file, which gets its name when it is complete. Raises OSError."""
        path, all_of_them = self.path(name), iter(tables)
        # several processes may write the same file, and the killed one may not be dead yet
        fresh = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            first = next(all_of_them)
            with fresh.open("wb") as file, pq.ParquetWriter(file, first.schema, **_WRITING) as writer:
                for table in chain([first], all_of_them):
                    writer.write_table(table, max(1, table.num_rows))
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise

    def read(self, name: str, columns: list[str] | None = None, rows: ds.Expression | None = None) -> pa.Table:
        """Read a file, or columns of it. rows: condition of the rows to read; row groups that have none, by their statistics, are
        skipped. Raises OSError and StageError."""
        path = self.path(name)
        with self._checked(path), path.open("rb") as stream:
            return pq.read_table(
                stream, columns=columns, filters=rows, page_checksum_verification=True, use_threads=False
            )

    def once(self, name: str, content: Callable[[], bytes]) -> None:
        """Write a file of one value unless it is there. Raises as `write`."""
        if not self.path(name).exists():
            self.write(name, [pa.table({"value": [content()]})])

    def value(self, name: str) -> bytes:
        """Return the value that `once` wrote. Raises as `read`."""
        return bytes(self.read(name)["value"][0].as_py())

    def results(self, name: str) -> ds.Dataset:
        """Return the results of a pass as one table, for a database."""
        files = sorted(path for path in self.path(name).iterdir() if path.name[0].isdigit())
        return ds.dataset([*map(str, files)], format=_READING)

    @contextmanager
    def database(self, memory_gib: float, threads: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open an empty database in memory, which goes on in files of the stage where memory ends. Raises StageError."""
        settings: dict[str, str | bool | int | float | list[str]] = {
            "threads": threads,
            "memory_limit": f"{int(memory_gib * 1024)}MiB",
            "temp_directory": str(self.path(f"sql.{socket.gethostname()}.{os.getpid()}")),
            "max_temp_directory_size": f"{shutil.disk_usage(self.folder).free >> 20}MiB",
        }
        try:
            with self._checked(self.folder), duckdb.connect(config=settings) as database:
                yield database
        except duckdb.OutOfMemoryException as error:
            raise StageError(
                f"{self.folder}: {error}; raise data.memory_gib={memory_gib:g}, or free the disk"
            ) from error

    @contextmanager
    def _checked(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, duckdb.Error) as error:
            if of_the_system(error) or isinstance(error, _NO_DAMAGE):
                raise
            raise StageError(f"{path}: damaged ({error}); remove {self.folder} and call again") from error


def stage_folder(output: Path) -> Path:
    """Return the folder of the stage of a preparation of `output`."""
    return output.with_name(f".{output.name.lstrip('.')}.stage")


@contextmanager
def staged(output: Path, removed: bool) -> Iterator[Stage]:
    """Make or find the stage of a preparation of `output`, a folder beside it, which is removed after the block if `removed`.

    It stays if the block fails, in whatever way: the next preparation keeps the passes whose text and settings are the same. Raises
    DataError for errors of the file system, NotWritable if another process works on the stage or a link is in its place, and
    StageError for a stage that lacks a file.
    """
    folder = stage_folder(output)
    refuse_link(folder)
    remark = f"what is done stays in {folder} for the same command; remove it if there will be none"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder_lock(folder):
            yield Stage(folder)
            if removed:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                logger.info("%s", remark)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and folder in Path(error.filename or "").parents:
            raise StageError(f"{error.filename}: is missing, damaged; remove {folder} and call again") from error
        stays = f"; {remark}" if folder.exists() else ""
        untouched = "" if output.exists() else "; nothing was changed there"
        raise DataError(f"cannot write {output}: {error.strerror or error}{untouched}{stays}") from error
    except Exception:
        logger.info("%s", remark)
        raise


def tables_of(
    database: duckdb.DuckDBPyConnection, statement: str, parameters: dict[str, Any] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows that a statement returns as tables, one at least."""
    reader = database.sql(statement, params=parameters).to_arrow_reader(_ROWS)
    yield reader.schema.empty_table()
    yield from (pa.Table.from_batches([batch]) for batch in reader)


def numbered(number: int) -> str:
    """Return the name of the result of a unit."""
    return f"{number:06}"


def of_the_system(error: BaseException | None) -> bool:
    """Return True for an error of the system: no fault of the text, as one of gzip's is, which has no number."""
    return isinstance(error, OSError) and error.errno is not None
