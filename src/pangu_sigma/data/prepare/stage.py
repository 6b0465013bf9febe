"""Passes of a preparation, and its stage: the folder beside its output with all that is between text and token files.

A preparation is a series of *passes*, each a map of a function over *units* (pieces of the input, blocks of documents, domains).
The function takes the `Work` and a unit, and yields tables of one schema. They are the row groups of a Parquet file, the unit's
result, which is written under another name and renamed. A unit with a result is not done again, so a killed preparation goes on
where it was. A pass whose settings or whose input changed is done anew, with all passes after it; the passes before it are kept.

Every page of a file has a checksum, which tells what a machine that lost power did not write: files are not flushed one by one,
which would take longer than the work on them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pangu_sigma.config import Config
from pangu_sigma.data.prepare.executors import Executor, StageError
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.errors import DataError, in_words
from pangu_sigma.process import gc_disabled
from pangu_sigma.writable import NotWritable, folder_lock, refuse_link

logger = logging.getLogger(__name__)

_FORMAT = 12
"""Version of the stage: raise it when its files change."""
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


@dataclass(frozen=True)
class Stage:
    """Stage in a folder. Names are paths below it."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self.folder / name

    def write(self, name: str, tables: Iterable[pa.Table]) -> None:
        """Write tables, one or more, as row groups of a file, which gets its name when it is complete. Raises OSError."""
        path, iterator = self.path(name), iter(tables)
        # a name of this process: several may write the same file, if one that was ended is still at work
        temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            first = next(iterator)
            with temporary.open("wb") as file, pq.ParquetWriter(file, first.schema, **_WRITING) as writer:
                for table in chain([first], iterator):
                    writer.write_table(table, max(1, table.num_rows))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def read(self, name: str, columns: list[str] | None = None, rows: ds.Expression | None = None) -> pa.Table:
        """Read a file, or columns of it. rows: condition of the rows to read; row groups whose statistics exclude it are skipped.
        Raises OSError, and StageError for a damaged file."""
        path = self.path(name)
        # a file of Arrow: Arrow's threads release buffers, perhaps while the interpreter ends, and if the buffers were of a
        # file of Python, this would abort the process
        with self._report_damage(path), pa.OSFile(os.fsencode(path)) as stream:
            return pq.read_table(
                stream, columns=columns, filters=rows, page_checksum_verification=True, use_threads=False
            )

    def key(self, name: str) -> str:
        """Return the key of a pass, the hash of all that decides its results; "" for a pass that was not begun."""
        file = self.path(f"{name}/{_KEY}")
        return file.read_text() if file.exists() else ""

    def put(self, name: str, value: bytes) -> None:
        """Write a file of one value. Raises as `write`."""
        self.write(name, [pa.table({"value": [value]})])

    def value(self, name: str) -> bytes:
        """Return the value that `put` wrote. Raises as `read`."""
        return bytes(self.read(name)["value"][0].as_py())

    def results(self, name: str) -> ds.Dataset:
        """Return the results of all units of a pass as one table, for a database."""
        files = sorted(path for path in self.path(name).iterdir() if path.name[0].isdigit())  # `numbered`
        return ds.dataset([*map(str, files)], format=_READING)

    @contextmanager
    def database(self, memory_gib: float, threads: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open an empty database in memory, which continues in files of the stage when it needs more than memory_gib. Raises
        StageError for damaged files that are read in the block, and if memory and disk are full."""
        settings: dict[str, str | bool | int | float | list[str]] = {
            "threads": threads,
            "memory_limit": f"{int(memory_gib * 1024)}MiB",
            "temp_directory": str(self.path(f"sql.{socket.gethostname()}.{os.getpid()}")),
            "max_temp_directory_size": f"{shutil.disk_usage(self.folder).free >> 20}MiB",
        }
        try:
            with self._report_damage(self.folder), duckdb.connect(config=settings) as database:
                yield database
        except duckdb.OutOfMemoryException as error:
            raise StageError(
                f"{self.folder}: {error}; raise data.memory_gib={memory_gib:g}, or free the disk"
            ) from error

    @contextmanager
    def _report_damage(self, path: Path) -> Iterator[None]:
        """Raise StageError, which names `path`, for an error in the block that a damaged or missing file of the stage caused."""
        try:
            yield
        except (pa.ArrowException, OSError, duckdb.Error) as error:
            if isinstance(error, _NO_DAMAGE) or (_is_system_error(error) and not isinstance(error, FileNotFoundError)):
                raise
            raise StageError(f"{path}: damaged ({error}); remove {self.folder} and call again") from error


def stage_folder(output: Path) -> Path:
    """Return the folder of the stage of a preparation of `output`."""
    return output.absolute().parent / f".{output.absolute().name.lstrip('.')}.stage"


@contextmanager
def staged(output: Path, removed: bool) -> Iterator[Stage]:
    """Create or find the stage of a preparation of `output`, a folder beside it, and lock it in the block. removed: True to remove
    it after a block without an error.

    After any error the stage stays: the next preparation keeps the passes whose text and settings are the same. Raises DataError
    for errors of the file system, NotWritable if another process works on the stage or a link is in its place, and StageError for
    a stage that lacks a file."""
    folder = stage_folder(output)
    refuse_link(folder)
    remark = f"what is done stays in {folder}, and the same command goes on from there; remove it if you do not go on"
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
            raise StageError(f"{error.filename}: is missing from the stage; remove {folder} and call again") from error
        stays = f"; {remark}" if folder.exists() else ""
        untouched = "" if output.exists() else ", where nothing was changed"
        raise DataError(f"cannot make {output}{untouched}: {in_words(error, folder)}{stays}") from error
    except BaseException as error:  # Ctrl-C, too
        if not isinstance(error, NotWritable):  # then the stage is another process's
            logger.info("%s", remark)
        raise


@dataclass(frozen=True)
class Work:
    """Configuration and stage of a preparation, which the function of every pass gets."""

    config: Config
    stage: Stage

    @cached_property
    def domains(self) -> Domains:
        """Domains of the configuration."""
        return domains_of(self.config)


UnitFunction = Callable[[Work, Any], Iterator[pa.Table]]
"""Function of a pass: takes the work and a unit, and yields the tables of its result, a function of both alone."""


class Passes:
    """Passes of a preparation, which the process of the caller begins one after another, and an executor does."""

    def __init__(self, work: Work, executor: Executor) -> None:
        self.work, self.executor = work, executor
        self._names, self._key = list[str](), key_of(_FORMAT)  # of the passes that were begun, and of the last one

    def begin(self, name: str, *settings: Any) -> None:
        """Begin a pass, whose results depend on the passes before it and on `settings`. If the stage has results of other passes or
        settings, they are removed, with the results of all later passes. name: name of the pass, and of the folder of its results.
        """
        self._key = key_of([self._key, name, settings])  # includes the keys of the passes before it
        stage = self.work.stage
        if (old_key := stage.key(name)) != self._key:
            if old_key:
                logger.info("%s: is of other text or settings; done anew", name)
            for folder in stage.folder.glob("*/"):
                if folder.name not in self._names:  # not of an earlier pass
                    shutil.rmtree(folder)
            stage.path(name).mkdir(parents=True)
            stage.path(f"{name}/{_KEY}").write_text(self._key)
        self._names.append(name)

    def map(self, function: UnitFunction, units: Sequence[Any]) -> Iterator[pa.Table]:
        """Do the pass that was begun last: call `function`, which must be picklable, for every unit without a result in the stage.
        Return an iterator that reads the results of all units, in their order."""
        stage, name = self.work.stage, self._names[-1]
        result_names = {path.name for path in stage.path(name).iterdir()}
        missing_units = [(number, unit) for number, unit in enumerate(units) if numbered(number) not in result_names]
        self.executor.run(partial(_write_result, self.work, name, function), missing_units, name, len(units))
        return (stage.read(f"{name}/{numbered(number)}") for number in range(len(units)))


def _write_result(work: Work, name: str, function: UnitFunction, number: int, unit: Any) -> None:
    """Do one unit of a pass, and write its result. Raises what `function` raises, but StageError in place of a DataError that an
    error of the system caused, such as a disk that fails: the text is not to blame."""
    try:
        with gc_disabled():  # millions of objects, hardly a cycle: looking for cycles took a sixth of the time
            work.stage.write(f"{name}/{numbered(number)}", function(work, unit))
    except DataError as error:
        # tested here, because the cause of an error does not get from one process to another
        if _is_system_error(error.__cause__):
            raise StageError(f"{error}; what is done stays, and the same command goes on") from error
        raise


def key_of(settings: Any) -> str:
    """Return the hash of settings that JSON can hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def tables_of(
    database: duckdb.DuckDBPyConnection, statement: str, parameters: dict[str, Any] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows that a SQL statement returns as tables, at least one. parameters: values of its `$` names."""
    reader = database.sql(statement, params=parameters).to_arrow_reader(_ROWS)
    yield reader.schema.empty_table()
    yield from (pa.Table.from_batches([batch]) for batch in reader)


def numbered(number: int) -> str:
    """Return the name of the result of a unit."""
    return f"{number:06}"


def _is_system_error(error: BaseException | None) -> bool:
    """Return True for an error of the operating system, which has a number, unlike gzip's OSError for damaged text."""
    return isinstance(error, OSError) and error.errno is not None
