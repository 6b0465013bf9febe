"""Saver of checkpoints, at once or while the training continues: a thread then writes a copy of the arrays.

All ranks write their files under another name. When all have, they exchange the hashes of their files, and rank 0 seals the folder
and renames it, which makes the checkpoint. The threads use NumPy and files only: MindSpore is not called from two threads, and
collectives run in the main threads, between steps.
A checkpoint that training waits for is written by the same threads, from the arrays themselves.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from pangu_sigma.checkpoint.checkpoint import (
    STATE,
    CheckpointError,
    Facts,
    Identity,
    UnhealthyState,
    prune,
    set_aside_for_removal,
    step_of,
    way_on,
)
from pangu_sigma.checkpoint.lazy import copy_values
from pangu_sigma.checkpoint.not_finite import NotFinite, find_not_finite, not_finite_positions
from pangu_sigma.checkpoint.parts import Files, SavedArray, parts_metadata
from pangu_sigma.checkpoint.safetensors_file import write_arrays
from pangu_sigma.host_memory import available_memory
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, RankError, Ranks
from pangu_sigma.sealed import UNFINISHED, as_json, seal_folder, sync

logger = logging.getLogger(__name__)

_SPARE = 256 << 20
"""Bytes of free memory that a copy must leave."""
_THREADS = 2
"""Number of threads that copy; one of them writes afterwards."""
_GIB = 1 << 30


@dataclass(frozen=True)
class RankReport:
    """Report of a rank on its files of a checkpoint: their sizes and hashes, by name, and the arrays with NaN or infinity."""

    files: dict[str, Any]
    not_finite: list[NotFinite]


_REPORT = TypeAdapter(RankReport)


class _Save(NamedTuple):
    """Save that has begun. target: the checkpoint's folder. task: result of this rank's thread: its report while the save is in its
    first stage, the writing; None in the second stage, the completion of the checkpoint."""

    target: Path
    task: Future[RankReport | None]


@dataclass
class Saver(AbstractContextManager["Saver"]):
    """Saver of a run's checkpoints, as a context manager, which ends its threads. All ranks call its methods in the same order.

    keep: number of newest checkpoints that pruning leaves. after_chunk: called as arrays are written, so that arrays of mapped
    files need not stay in memory. behind: True to go on while a thread writes a copy; False to wait for it. spared: steps whose
    checkpoints are kept, however many newer ones there are.
    Raises CheckpointError for disk errors, and UnhealthyState if an array holds NaN or infinity, on all ranks: no checkpoint is
    made then, and none is pruned. An error of a thread is raised by the call that completes the save.
    """

    root: Path
    identity: Identity
    keep: int
    after_chunk: Callable[[], None] = lambda: None
    behind: bool = False
    ranks: Ranks = SINGLE_PROCESS
    spared: Collection[int] = ()

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "checkpoint")
        self._pending: _Save | None = None
        self._copy: Files = {}
        self._warned = False

    @property
    def is_ready(self) -> bool:
        """True if this rank's thread has ended its stage of a pending save. When all ranks are ready, `proceed` does not wait."""
        return self._pending is not None and self._pending.task.done()

    def save(self, step: int, files: Files, state: dict[str, Any]) -> Path:
        """Write a checkpoint at once, and return its folder. A pending checkpoint is completed first. state: values for JSON."""
        self.wait()
        target = self._start(step, files, state, self.after_chunk)
        self.wait()
        return target

    def begin(self, step: int, files: Files, state: dict[str, Any]) -> None:
        """Copy the arrays of a checkpoint, and write the copy in a thread. A pending checkpoint is completed first.

        Writes at once if `behind` is False, or if memory has no room for the copy, which is logged once.
        """
        self.wait()
        if not self.behind or self.ranks.any(not self._has_room(files)):
            self.save(step, files, state)
            return
        with self.ranks.fail_together("copying the state for a checkpoint"):
            self._copy_arrays(files)
        self._start(step, self._copy, state, lambda: None)

    def proceed(self) -> None:
        """Wait for the present stage of the pending save, and begin the next: after the writing on all ranks a thread completes the
        checkpoint; after that the save is over. Raises UnhealthyState if any rank has arrays with NaN or infinity."""
        save, self._pending = self._pending, None
        if save is None:
            return
        with self._disk_errors(save.target), self.ranks.fail_together("writing a checkpoint"):
            report = save.task.result()
        if report is None:  # the checkpoint is complete
            return
        texts = self.ranks.texts(_REPORT.dump_json(report).decode())
        reports = [_REPORT.validate_json(text) for text in texts]
        not_finite = [array for report in reports for array in report.not_finite]
        if not_finite:
            if self.ranks.first:
                shutil.rmtree(_unfinished_folder(save.target), ignore_errors=True)
            raise UnhealthyState(step_of(save.target), not_finite, self.identity.config, way_on(self.root, self.ranks))
        fingerprints = {file: fingerprint for report in reports for file, fingerprint in report.files.items()}
        self._pending = _Save(save.target, self._threads.submit(self._complete, save.target, fingerprints))

    def wait(self) -> None:
        """Wait until the pending checkpoint is complete, if there is one."""
        while self._pending is not None:
            self.proceed()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Complete the pending checkpoint, and end the threads. After an error it is lost if there are several ranks: others may
        not come here to complete it."""
        try:
            if error is None or self.ranks.world == 1:
                self.wait()
        except (CheckpointError, UnhealthyState) as problem:
            if error is None:
                raise
            logger.error("%s", problem)
        finally:
            self._threads.shutdown()

    def _start(self, step: int, files: Files, state: dict[str, Any], after_chunk: Callable[[], None]) -> Path:
        """Make the folder in which all ranks write, and start the thread that writes. Returns the folder that the checkpoint will
        have. Files that an interrupted save has left are removed."""
        facts, target = as_json(asdict(Facts(step, self.identity, state))), self.root / f"step_{step:08d}"
        folder = _unfinished_folder(target)
        with self._disk_errors(target), self.ranks.fail_together("making the folder of a checkpoint"):
            if self.ranks.first:
                if not self.root.is_dir():
                    self.root.mkdir(parents=True)
                    sync(self.root.parent)
                prune(self.root)
                folder.mkdir()
                (folder / STATE).write_bytes(facts)
        self._pending = _Save(target, self._threads.submit(_write, folder, files, after_chunk))
        return target

    def _complete(self, target: Path, fingerprints: dict[str, Any]) -> None:
        """On rank 0, seal the folder in which all ranks have written, rename it to `target`, and prune. Raises OSError."""
        if not self.ranks.first:
            return
        folder = _unfinished_folder(target)
        seal_folder(folder, [*fingerprints, STATE], {}, fingerprints)
        if target.exists():  # of an earlier save after the same step
            set_aside_for_removal(target)
        folder.rename(target)
        sync(self.root)
        prune(self.root, self.keep, self.spared)

    @contextmanager
    def _disk_errors(self, target: Path) -> Iterator[None]:
        """Raise CheckpointError for an error of the disk, on any rank, in a `with` block, and remove the unfinished checkpoint."""
        try:
            yield
        except (OSError, RankError) as error:
            if self.ranks.first:
                shutil.rmtree(_unfinished_folder(target), ignore_errors=True)
            raise CheckpointError(
                f"cannot save checkpoint {target}: {error}; earlier checkpoints, if there are any, are unchanged; "
                "free space on that disk or make the folder writable, and call the command again if it has ended"
            ) from error

    def _copy_arrays(self, files: Files) -> None:
        """Copy all arrays to `self._copy`, into the memory of the last copy where the part is the same: only rows may grow."""
        last_copy, self._copy, pairs = self._copy, {}, []
        for file, arrays in files.items():
            for name, (part, values) in arrays.items():
                copy = last_copy.get(file, {}).pop(name, None)  # memory that is not reused is free at once
                if copy is None or copy.part != part:
                    copy = SavedArray(part, np.empty(values.shape, values.dtype))
                self._copy.setdefault(file, {})[name] = copy
                pairs.append((values, copy.values))
        list(self._threads.map(copy_values, *zip(*pairs, strict=True)))  # list: wait for all, and raise their errors

    def _has_room(self, files: Files) -> bool:
        """Return True if this host has memory for the copies of its ranks, besides _SPARE bytes. Else log a warning, once."""
        needed, available = self.ranks.sum_here(bytes_of(files) - bytes_of(self._copy)), available_memory(swap=False)
        if available is None or needed + _SPARE <= available:
            return True
        if not self._warned:
            self._warned = True
            logger.warning(
                "train.async_save needs %.1f GiB to copy what ranks of this host save, and %.1f GiB are free: while that is so, "
                "checkpoints are written before training goes on; train.async_save=false does so without asking",
                *((needed + _SPARE) / _GIB, available / _GIB),
            )
        return False


def _unfinished_folder(target: Path) -> Path:
    """Return the folder that a checkpoint has until it is complete. target: the folder that it will then have."""
    return target.with_name(f"{UNFINISHED}{target.name}")


def _write(folder: Path, files: Files, after_chunk: Callable[[], None]) -> RankReport:
    """Write a rank's files, examine their values, and flush them to the disk. after_chunk: as in `Saver`. Raises OSError."""
    fingerprints, unhealthy_files = dict[str, Any](), dict[str, dict[str, SavedArray]]()

    def examine(file: str, name: str, values: np.ndarray) -> None:
        """Add the array `name` of a file to `unhealthy_files` if one of its chunks, `values`, has NaN or infinity."""
        if len(not_finite_positions(values)):
            unhealthy_files.setdefault(file, {})[name] = files[file][name]
        after_chunk()

    for file, arrays in files.items():
        path, values = folder / f"{file}.safetensors", {name: array.values for name, array in arrays.items()}
        fingerprints[path.name] = write_arrays(path, values, parts_metadata(arrays), partial(examine, file))
    for name in fingerprints:
        sync(folder / name)
    return RankReport(fingerprints, find_not_finite(unhealthy_files))


def bytes_of(files: Files) -> int:
    """Return the number of bytes of a checkpoint's arrays."""
    return sum(array.values.nbytes for arrays in files.values() for array in arrays.values())
