"""Stage of a preparation: the folder beside its output with all that is between text and token files.

A preparation is a series of *passes*, each a map of a function over *units* (pieces of the input, blocks of documents, domains).
The result of a unit is a file of the stage, written under another name and renamed, after the unit's other files. A unit with a
result is not done again, so a killed preparation goes on where it was.

Files are sequences of *frames*: length and checksum of a pickle, and the pickle. The checksum tells what a machine that lost
power did not write: files are not flushed one by one, which would take longer than the work on them. Reading a pickle executes
what is in it, so files that others can write are refused: `check_own`.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import xxhash

from pangu_sigma.errors import DataError, UserError
from pangu_sigma.garbage import gc_disabled

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")

_HEAD = struct.Struct("<QQ")
"""Length of a pickle, and its xxh3_64."""

UnitTask = Callable[[int, Any], object]
"""Function of a pass: takes the number of a unit and the unit."""


class StageError(UserError, RuntimeError):
    """Error of the stage or of its workers; the text is not to blame, so that the stage stays."""


class Executor(Protocol):
    """Executor of the units of a pass."""

    def run(self, task: UnitTask, units: Sequence[tuple[int, Any]], name: str, total: int) -> None:
        """Call a task for the units, pairs of number and unit, that have no result. name, total: the pass, and all its units.

        Raises what the task raises.
        """

    def close(self) -> None:
        """End what was started."""


def write_frame(file: BinaryIO, value: Any) -> int:
    """Append a value to a file of frames, and return the frame's offset. Raises OSError."""
    offset, data = file.tell(), pickle.dumps(value, protocol=5)
    file.write(_HEAD.pack(len(data), xxhash.xxh3_64_intdigest(data)))
    file.write(data)
    return offset


def check_own(path: Path, status: os.stat_result, remove: Path) -> None:
    """Raise StageError for a file or folder of another user, root included, or that others can write. remove: part of the fix."""
    if status.st_uid != os.geteuid():
        whose = f"belongs to user {status.st_uid}, and you are {os.geteuid()}"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        whose = f"others can write it ({stat.filemode(status.st_mode)})"
    else:
        return
    raise StageError(
        f"{path}: {whose}; reading a stage executes what is in it: remove {remove} and call again, or choose another data.path"
    )


def read_frame(file: BinaryIO, offset: int | None = None) -> Any:
    """Read the value at an offset of a file of frames, by default the next one. Raises OSError and StageError."""
    path = Path(file.name)
    check_own(path, os.fstat(file.fileno()), path.parent.parent)
    if offset is not None:
        file.seek(offset)
    try:
        length, checksum = _HEAD.unpack(file.read(_HEAD.size))
        data = file.read(length)
    except (struct.error, OverflowError, MemoryError):
        data, checksum = b"", None
    if xxhash.xxh3_64_intdigest(data) != checksum:
        raise StageError(f"{path}: damaged; remove {path.parent.parent} and call again")
    return pickle.loads(data)


def read_frames(path: Path) -> Iterator[Any]:
    """Yield the values of a file of frames. Raises OSError and StageError."""
    with path.open("rb") as file:
        while file.peek(1):
            yield read_frame(file)


@dataclass(frozen=True)
class Stage:
    """Stage in a folder. Names are paths below it."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self.folder / name

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for writing; it gets its name if the block succeeds. Raises OSError."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # several processes may write the same file, and the killed one may not be dead yet
        fresh = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            with open(fresh, "wb", opener=partial(os.open, mode=0o600)) as file:  # whatever the umask says
                yield file
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise

    def save(self, name: str, value: Any) -> None:
        """Write a value, which can be pickled, to a file. Raises OSError."""
        with self.writing(name) as file:
            write_frame(file, value)

    def load(self, name: str) -> Any:
        """Read a value that `save` wrote. Raises OSError and StageError."""
        with self.path(name).open("rb") as file:
            return read_frame(file)

    def once(self, name: str, make: Callable[[], _Value]) -> _Value:
        """Return the value of a file, which `make` makes if it is not there yet."""
        if not self.path(name).exists():
            self.save(name, make())
        value: _Value = self.load(name)
        return value

    def map(
        self, executor: Executor, name: str, function: Callable[[str, Any], Any], items: Sequence[Any]
    ) -> UnitResults:
        """Do one pass: call `function` for every item without a result, and return the results in the order of the items.

        name: of the pass, and of the folder of its results. function: takes the name for the unit's files, and the item; it must
        be picklable, and its result a function of the item alone.
        """
        results = UnitResults(self, name, len(items))
        there = {path.name for path in self.path(name).glob("*")}
        missing = [number for number in range(len(items)) if _number(number) not in there]
        if items and len(missing) < len(items):
            logger.info("%s: %d of %d units are done already", name, len(items) - len(missing), len(items))
        executor.run(partial(_unit, self, name, function), [(n, items[n]) for n in missing], name, len(items))
        return results

    def discard(self, name: str, suffix: str) -> None:
        """Remove the files of a pass with this suffix: nothing needs them any more."""
        for file in self.path(name).glob(f"*{suffix}"):
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class UnitResults(Sequence[Any]):
    """Results of the units of a pass, read from the stage when they are asked for."""

    stage: Stage
    name: str
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self.size:
            raise IndexError(number)
        return self.stage.load(f"{self.name}/{_number(number)}")


def _number(number: int) -> str:
    return f"{number:06}"


def _unit(stage: Stage, name: str, function: Callable[[str, Any], Any], number: int, item: Any) -> None:
    """Do one unit of a pass, and write its result. Raises StageError if the system fails to read what is to be read."""
    own = f"{name}/{_number(number)}"
    try:
        with gc_disabled():  # millions of objects, hardly a cycle: looking for cycles took a sixth of the time
            stage.save(own, function(own, item))
    except DataError as error:
        # said here: between processes an error has no cause
        if of_the_system(error.__cause__):
            raise StageError(f"{error}; what is done stays, and the same command goes on") from error
        raise


def of_the_system(error: BaseException | None) -> bool:
    """Return True for an error of the system: no fault of the text, as one of gzip's is, which has no number."""
    return isinstance(error, OSError) and error.errno is not None
