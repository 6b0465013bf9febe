"""Asynchronous saver of a training run: a thread writes a copy of the arrays while the training continues.

The thread uses NumPy and files only: MindSpore is not called from two threads, and collectives run in the main threads. Between
later steps the ranks check (`poll`) whether all have written their files. Then the thread of rank 0 renames the checkpoint, and
after another step all ranks know that it is complete. The copy's memory is kept, because new pages take longer than the copy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.format import CheckpointError, Identity, UnhealthyState
from pangu_sigma.checkpoint.lazy import AnyArray
from pangu_sigma.checkpoint.parts import Files, Part, SavedArray
from pangu_sigma.checkpoint.safetensors_file import chunks
from pangu_sigma.checkpoint.save import Save, Written
from pangu_sigma.host_memory import available_memory
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks

logger = logging.getLogger(__name__)

_SPARE = 256 << 20
"""Bytes of free memory that a copy must leave."""
_THREADS = 2
"""Number of threads that copy; one of them writes afterwards."""
_GIB = 1 << 30


class Saver:
    """Saver of a run's checkpoints. All ranks call the same methods in the same order. Leaving the context manager ends the thread.

    Raises the errors of `save_checkpoint`, on all ranks; an error of the thread is raised by the call that completes the save.
    """

    def __init__(
        self,
        root: Path,
        identity: Identity,
        keep: int,
        behind: bool,
        after_chunk: Callable[[], None] = lambda: None,
        ranks: Ranks = SINGLE_PROCESS,
    ):
        """behind: True to write in a thread; False to write in `begin`. after_chunk: as in `save_checkpoint`."""
        self._root, self._identity, self._keep = root, identity, keep
        self._behind, self._after_chunk, self._ranks = behind, after_chunk, ranks
        self._threads = ThreadPoolExecutor(_THREADS, "checkpoint")
        self._writing: tuple[Save, Future[Written]] | None = None
        self._finishing: tuple[Save, Future[None]] | None = None
        self._cleaning: Future[None] | None = None
        self.spared: frozenset[int] = frozenset()
        """Steps whose checkpoints are kept, however many newer ones there are."""
        self._copy: Files = {}
        self._warned = False

    @property
    def pending(self) -> bool:
        """True while a checkpoint is being written."""
        return self._writing is not None or self._finishing is not None

    def save(self, step: int, files: Files, state: dict[str, Any]) -> Path:
        """Write a checkpoint at once, and return its directory. A pending checkpoint is completed first."""
        self.wait()
        return self._next(step, state).at_once(files, self._after_chunk)

    def begin(self, step: int, files: Files, state: dict[str, Any]) -> None:
        """Copy the arrays of a checkpoint, and write the copy in a thread. A pending checkpoint is completed first.

        Writes at once if the saver has no thread, or if memory has no room for the copy, which is logged once.
        """
        self.wait()
        if not self._behind or self._ranks.any(not self._has_room(files)):
            self.save(step, files, state)
            return
        save = self._next(step, state)
        save.begin()
        try:
            with self._ranks.fail_together("copying the state for a checkpoint"):
                self._take(files)
        except Exception:
            save.abandon()
            raise
        self._writing = save, self._threads.submit(save.write, self._copy, lambda: None)

    def poll(self) -> None:
        """Advance the pending checkpoint to its next state (written, renamed, complete) if all ranks are ready. Call it often."""
        now = self._writing or self._finishing
        if now is not None and not self._ranks.any(not now[1].done()):
            self._go_on()

    def wait(self) -> None:
        """Wait until all ranks have written the pending checkpoint, if there is one, and complete it."""
        while self.pending:
            self._go_on()

    def _go_on(self) -> None:
        """Wait for the threads, and begin the next stage of the pending checkpoint."""
        if self._writing is not None:
            (save, written), self._writing = self._writing, None
            save.gather(written.result)
            self._finishing = save, self._threads.submit(save.finish)
        elif self._finishing is not None:
            (save, finished), self._finishing = self._finishing, None
            save.complete(finished.result)
            self._cleaning = self._threads.submit(save.clean)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Complete the pending checkpoint. After an error, only a run of one process can: other ranks may not come here."""
        try:
            if error is None or self._ranks.world == 1:
                self.wait()
        except (CheckpointError, UnhealthyState) as problem:
            if error is None:
                raise
            logger.error("%s", problem)
        finally:
            self._threads.shutdown()

    def _next(self, step: int, state: dict[str, Any]) -> Save:
        if self._cleaning is not None:
            self._cleaning.result()
        return Save(self._root, step, state, self._identity, self._keep, self._ranks, self.spared)

    def _take(self, files: Files) -> None:
        """Copy the arrays, into the memory of the last copy where they have the same shapes: all but rows do."""
        shapes, old = shapes_of(files), shapes_of(self._copy)
        kept = {
            (file, name): self._copy[file][name] for file, name in shapes if shapes[file, name] == old.get((file, name))
        }
        self._copy = {}  # let go before as much is taken again
        pairs = []
        for (file, name), (part, dtype, shape) in shapes.items():
            copy = kept.get((file, name)) or SavedArray(part, np.empty(shape, dtype))
            self._copy.setdefault(file, {})[name] = copy
            pairs.append((copy.values, files[file][name].values))
        for _ in self._threads.map(lambda pair: copy_values(*pair), pairs):
            pass

    def _has_room(self, files: Files) -> bool:
        needed, there = bytes_of(files) - bytes_of(self._copy), available_memory(swap=False)
        if there is None or needed + _SPARE <= there:
            return True
        if not self._warned:
            self._warned = True
            logger.warning(
                "train.async_save needs a copy of the %.1f GiB that this rank saves, and %.1f GiB of memory are available: while "
                "that is so, checkpoints are written before training goes on; train.async_save=false does so without asking",
                bytes_of(files) / _GIB,
                there / _GIB,
            )
        return False


def copy_values(target: np.ndarray, values: AnyArray) -> None:
    """Copy an array of a checkpoint, a lazy one in pieces."""
    if isinstance(values, np.ndarray):
        np.copyto(target, values)
        return
    for first, flat in chunks(values):
        target.reshape(-1)[first : first + len(flat)] = flat


def bytes_of(files: Files) -> int:
    """Return the number of bytes of a checkpoint's arrays."""
    return sum(array.values.nbytes for arrays in files.values() for array in arrays.values())


def shapes_of(files: Files) -> dict[tuple[str, str], tuple[Part, np.dtype, tuple[int, ...]]]:
    """Return part, dtype and shape of each array of a checkpoint; arrays with equal results fit into the same copy."""
    return {
        (file, name): (part, values.dtype, values.shape)
        for file, arrays in files.items()
        for name, (part, values) in arrays.items()
    }
