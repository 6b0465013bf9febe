"""Saver of checkpoints, at once or while the training continues: a thread then writes a copy of the arrays.

All ranks write their files under another name. Each rank but 0 leaves a note there with the hashes of its files; rank 0 waits for
the notes, seals the folder and renames it, which makes the checkpoint. The threads use NumPy and files only: MindSpore is not
called from two threads, and collectives run in the main threads, when a save begins and before the next one.
A checkpoint that training waits for is written by the same threads, from the arrays themselves.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from pangu_sigma.checkpoint.checkpoint import (
    STATE,
    CheckpointError,
    Facts,
    Identity,
    UnhealthyState,
    prune,
    remove_leftovers,
    set_aside_for_removal,
    step_of,
    way_on,
)
from pangu_sigma.checkpoint.lazy import AnyArray
from pangu_sigma.checkpoint.not_finite import NotFinite, Watch
from pangu_sigma.checkpoint.parts import Files, SavedArray, parts_metadata
from pangu_sigma.checkpoint.safetensors_file import chunks, write_arrays
from pangu_sigma.host_memory import available_memory
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, RankError, Ranks
from pangu_sigma.sealed import UNFINISHED, as_json, seal_folder, sync, write_atomically

logger = logging.getLogger(__name__)

NOTE_SECONDS = 1800.0
"""Time limit of rank 0 for the notes of the other ranks, from when its own files are written."""
_PAUSE = 0.05
"""Seconds between two looks for the notes."""
_SPARE = 256 << 20
"""Bytes of free memory that a copy must leave."""
_THREADS = 2
"""Number of threads that copy; one of them writes afterwards."""
_GIB = 1 << 30


@dataclass(frozen=True)
class Written:
    """Report of a rank on a checkpoint: size and hash of its files, by name, and its arrays with NaN or infinity."""

    files: dict[str, Any] = field(default_factory=dict)
    not_finite: list[NotFinite] = field(default_factory=list)


_WRITTEN = TypeAdapter(Written)


@dataclass
class _Save:
    """A save that has begun. facts: content of its file STATE. given_up: set when no further note is to be waited for.

    written, finished: report of this rank's thread; arrays with NaN or infinity of all ranks, on rank 0.
    """

    target: Path
    facts: bytes
    given_up: threading.Event = field(default_factory=threading.Event)
    written: Future[Written] = field(default_factory=Future)
    finished: Future[list[NotFinite]] = field(default_factory=Future)

    @property
    def folder(self) -> Path:
        """Folder of the checkpoint until it is complete."""
        return self.target.with_name(f"{UNFINISHED}{self.target.name}")

    def note(self, rank: int) -> Path:
        """File with the report of a rank other than 0."""
        return self.folder / f"note.{rank:05d}.json"


def save_checkpoint(
    root: Path,
    step: int,
    files: Files,
    state: dict[str, Any],
    identity: Identity,
    keep: int,
    after_chunk: Callable[[], None] = lambda: None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Path:
    """Write the checkpoint of `step`, then prune to the `keep` newest. Returns the checkpoint's folder.

    files: arrays that this rank writes. state: values that JSON can hold.
    after_chunk: called as the arrays are written, so that arrays of mapped files need not stay in memory.
    ranks: every rank calls this function with the files that it writes; rank 0 does everything else.
    Raises CheckpointError, on all ranks, for disk errors, and UnhealthyState if an array holds NaN or infinity: no checkpoint is
    made then, and none is pruned.
    """
    with Saver(root, identity, keep, False, after_chunk, ranks) as saver:
        return saver.save(step, files, state)


@dataclass
class Saver:
    """Saver of a run's checkpoints. All ranks call the same methods in the same order. Leaving the context manager ends its
    threads.

    behind: True to go on while a thread writes a copy; False to wait for it. after_chunk: as in `save_checkpoint`. spared: steps
    whose checkpoints are kept, however many newer ones there are.
    Raises the errors of `save_checkpoint`, on all ranks; an error of a thread is raised by the call that completes the save.
    """

    root: Path
    identity: Identity
    keep: int
    behind: bool
    after_chunk: Callable[[], None] = lambda: None
    ranks: Ranks = SINGLE_PROCESS
    spared: Collection[int] = ()

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "checkpoint")
        self._pending: _Save | None = None
        self._copy: Files = {}
        self._warned = False

    @property
    def failed(self) -> bool:
        """True if this rank already knows that its pending save failed: its thread raised, or found values that are not finite.
        `wait` raises the failure on all ranks."""
        finished = None if self._pending is None else self._pending.finished
        return finished is not None and finished.done() and bool(finished.exception() or finished.result())

    def save(self, step: int, files: Files, state: dict[str, Any]) -> Path:
        """Write a checkpoint at once, and return its folder. A pending checkpoint is completed first."""
        self.wait()
        save = self._start(step, files, state, self.after_chunk)
        self.wait()
        return save.target

    def begin(self, step: int, files: Files, state: dict[str, Any]) -> None:
        """Copy the arrays of a checkpoint, and write the copy in a thread. A pending checkpoint is completed first.

        Writes at once if `behind` is False, or if memory has no room for the copy, which is logged once.
        """
        self.wait()
        if not self.behind or self.ranks.any(not self._has_room(files)):
            self.save(step, files, state)
            return
        with self.ranks.fail_together("copying the state for a checkpoint"):
            self._take(files)
        self._start(step, self._copy, state, lambda: None)

    def wait(self) -> None:
        """Wait until all ranks have written the pending checkpoint, if there is one, and rank 0 has completed it."""
        save, self._pending = self._pending, None
        if save is None:
            return
        try:
            with self._refused(save):
                with self.ranks.fail_together("writing a checkpoint"):
                    save.written.result()
                with self.ranks.fail_together("completing a checkpoint"):
                    not_finite = save.finished.result()
        except BaseException:  # Ctrl-C too: rank 0 takes the notes that are there
            save.given_up.set()
            raise
        report = self.ranks.texts(_WRITTEN.dump_json(Written({}, not_finite)).decode())[0]
        if not_finite := _WRITTEN.validate_json(report).not_finite:
            way = way_on(self.root, self.ranks)
            raise UnhealthyState(step_of(save.target), not_finite, self.identity.config, way)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Complete the pending checkpoint. After an error, other ranks may not come here: rank 0 takes the notes that are there."""
        try:
            if error is None or self.ranks.world == 1:
                self.wait()
            elif self._pending is not None:
                self._pending.given_up.set()
        except (CheckpointError, UnhealthyState) as problem:
            if error is None:
                raise
            logger.error("%s", problem)
        finally:
            self._threads.shutdown()

    def _start(self, step: int, files: Files, state: dict[str, Any], after_chunk: Callable[[], None]) -> _Save:
        """Make the folder in which all ranks write, and start the threads. What an interrupted save has left is removed."""
        facts = as_json(asdict(Facts(step, self.identity, state)))
        save = _Save(self.root / f"step_{step:08d}", facts)
        with self._refused(save), self.ranks.fail_together("making the folder of a checkpoint"):
            if self.ranks.first:
                if not self.root.is_dir():
                    self.root.mkdir(parents=True)
                    sync(self.root.parent)
                remove_leftovers(self.root)
                save.folder.mkdir()
        save.written = self._threads.submit(self._write, save, files, after_chunk)
        save.finished = self._threads.submit(self._finish, save)
        self._pending = save
        return save

    def _write(self, save: _Save, files: Files, after_chunk: Callable[[], None]) -> Written:
        """Write the files of this rank and flush them to the disk, then the note for rank 0. Raises OSError."""
        report = Written()
        for name, arrays in files.items():
            file, watch = save.folder / f"{name}.safetensors", Watch(name, arrays)
            values = {name: array.values for name, array in arrays.items()}
            report.files[file.name] = write_arrays(file, values, after_chunk, parts_metadata(arrays), watch.see)
            report.not_finite.extend(watch.not_finite)
        if not self.ranks.first:
            for name in report.files:
                sync(save.folder / name)
            write_atomically(save.note(self.ranks.rank), _WRITTEN.dump_json(report))
        return report

    def _finish(self, save: _Save) -> list[NotFinite]:
        """On rank 0, seal the folder when all ranks have written, rename it and prune; or remove it if a value is not finite.

        Returns the arrays of all ranks with values that are not finite. Raises OSError, RankError.
        """
        report = save.written.result()
        if not self.ranks.first:
            return []
        reports = [report, *self._notes(save)]
        if not_finite := [array for report in reports for array in report.not_finite]:
            shutil.rmtree(save.folder, ignore_errors=True)
            return not_finite
        (save.folder / STATE).write_bytes(save.facts)
        fingerprints = {name: recorded for report in reports for name, recorded in report.files.items()}
        seal_folder(save.folder, [*fingerprints, STATE], {}, fingerprints)  # flushes all of it
        set_aside_for_removal(save.target)  # one of the same step
        save.folder.rename(save.target)
        sync(self.root)
        prune(self.root, self.keep, self.spared)
        return []

    def _notes(self, save: _Save) -> Iterator[Written]:
        """Yield the notes of the other ranks, and remove them. A note is waited for by its name: a shared file system may show an
        old list."""
        waiting, end = list(range(1, self.ranks.world)), time.monotonic() + NOTE_SECONDS
        while waiting:
            try:
                yield _WRITTEN.validate_json((note := save.note(waiting[0])).read_bytes())
            except FileNotFoundError as error:
                if save.given_up.wait(_PAUSE) or time.monotonic() > end:
                    late = ", ".join(str(rank) for rank in waiting if not save.note(rank).exists())
                    raise RankError(
                        f"rank {late} has not said within {NOTE_SECONDS:g} s that its files are written; its log says why, unless "
                        f"{self.root} is not one folder that all ranks see"
                    ) from error
            else:
                waiting.pop(0)
                note.unlink()

    @contextmanager
    def _refused(self, save: _Save) -> Iterator[None]:
        try:
            yield
        except (OSError, RankError) as error:
            save.given_up.set()
            if self.ranks.first:
                shutil.rmtree(save.folder, ignore_errors=True)
            raise CheckpointError(
                f"cannot save checkpoint {save.target}: {error}; earlier checkpoints, if there are any, are unchanged; "
                "free space on that disk or make the folder writable, then call the command again"
            ) from error

    def _take(self, files: Files) -> None:
        """Copy the arrays, into the memory of the last copy where the parts are the same: all but rows are."""
        last, self._copy, pairs = self._copy, {}, []
        for file, arrays in files.items():
            for name, (part, values) in arrays.items():
                copy = last.get(file, {}).pop(name, None)
                if copy is None or copy.part != part:
                    copy = SavedArray(part, np.empty(values.shape, values.dtype))
                self._copy.setdefault(file, {})[name] = copy
                pairs.append((copy.values, values))
        list(self._threads.map(_copy_values, *zip(*pairs, strict=True)))

    def _has_room(self, files: Files) -> bool:
        needed, available = bytes_of(files) - bytes_of(self._copy), available_memory(swap=False)
        if available is None or needed + _SPARE <= available:
            return True
        if not self._warned:
            self._warned = True
            logger.warning(
                "train.async_save needs a copy of the %.1f GiB that this rank saves, and %.1f GiB of memory are available: while "
                "that is so, checkpoints are written before training goes on; train.async_save=false does so without asking",
                *(bytes_of(files) / _GIB, available / _GIB),
            )
        return False


def _copy_values(target: np.ndarray, values: AnyArray) -> None:
    for first, flat in chunks(values):
        target.reshape(-1)[first : first + len(flat)] = flat


def bytes_of(files: Files) -> int:
    """Return the number of bytes of a checkpoint's arrays."""
    return sum(array.values.nbytes for arrays in files.values() for array in arrays.values())
