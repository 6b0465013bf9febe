"""Writer of a checkpoint: files are written under another name, flushed, renamed, and only then named by LATEST.

Collective calls of the ranks and slow file operations are separate, so that file operations can run in a thread (saver.py).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pangu_sigma.checkpoint.format import (
    FORMAT,
    MANIFEST,
    PARTS,
    STATE,
    UNHEALTHY,
    CheckpointError,
    Identity,
    UnhealthyState,
)
from pangu_sigma.checkpoint.healthy import way_on
from pangu_sigma.checkpoint.not_finite import NotFinite, Watch
from pangu_sigma.checkpoint.parts import Files, encode_parts
from pangu_sigma.checkpoint.root import make_latest, prune, recover_interrupted_save, remove_leftovers
from pangu_sigma.checkpoint.safetensors_file import write_arrays
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, RankError, Ranks
from pangu_sigma.sealed import UNFINISHED, as_json, fingerprint, sealed, sync

logger = logging.getLogger(__name__)

_UNHEALTHY_FOLDER = "unhealthy_"


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
    """Write the checkpoint of `step`, make it the latest, then prune to the `keep` newest. Returns the checkpoint's directory.

    A checkpoint of the same step is replaced. Checkpoints of later steps, of a run that resumed further back, are neither counted
    nor removed.
    files: arrays that this rank writes. state: values that JSON can hold.
    after_chunk: called as the arrays are written, so that arrays of mapped files need not stay in memory.
    ranks: every rank calls this function with the files that it writes; rank 0 does everything else.
    Raises CheckpointError, on all ranks, for a state value that is not allowed, and for disk errors; LATEST does not change then.
    Raises UnhealthyState, on all ranks, if an array holds NaN or infinity: LATEST does not change, nothing is
    pruned, and the state is kept under another name.
    """
    return Save(root, step, state, identity, keep, ranks).at_once(files, after_chunk)


@dataclass(frozen=True)
class Written:
    """Report of a rank, or of all together, on a checkpoint: size and hash of files, by name, and arrays with NaN or infinity."""

    files: dict[str, Any] = field(default_factory=dict)
    not_finite: list[NotFinite] = field(default_factory=list)


_WRITTEN = TypeAdapter(Written)


class Save:
    """Save of one checkpoint. All ranks call `begin`, `write`, `gather`, `finish`, `complete`, `clean`, once, in this order.

    `begin`, `gather` and `complete` are collective, and raise on all ranks or on none, as `save_checkpoint` does. `write`, `finish`
    and `clean` only work with files, and may run in a thread.
    """

    def __init__(
        self,
        root: Path,
        step: int,
        state: dict[str, Any],
        identity: Identity,
        keep: int,
        ranks: Ranks,
        spared: Collection[int] = (),
    ):
        """spared: steps whose checkpoints are not pruned."""
        self._root, self._step, self._keep, self._identity, self._ranks = root, step, keep, identity, ranks
        self._state, self._spared = _encode_state(state), spared
        self.target = root / f"step_{step:08d}"
        self._unfinished = root / f"{UNFINISHED}{self.target.name}"
        self._written = Written()

    def at_once(self, files: Files, after_chunk: Callable[[], None]) -> Path:
        """Write the checkpoint without a thread, and return its directory. Arguments and errors: see `save_checkpoint`."""
        self.begin()
        self.gather(lambda: self.write(files, after_chunk))
        path = self.complete(self.finish)
        self.clean()
        return path

    def begin(self) -> None:
        """Create the checkpoint's directory, under another name, in which all ranks write."""
        with self._refused(), self._ranks.fail_together("making the folder of a checkpoint"):
            if self._ranks.first:
                if not self._root.is_dir():
                    self._root.mkdir(parents=True)
                    sync(self._root.parent)
                recover_interrupted_save(self._root)
                self._unfinished.mkdir()

    def write(self, files: Files, after_chunk: Callable[[], None]) -> Written:
        """Write this rank's files, and return the report for `gather`. Raises OSError."""
        return _write_files(self._unfinished, files, after_chunk)

    def abandon(self) -> None:
        """Give the save up: remove the directory that `begin` made. Called instead of `gather`."""
        if self._ranks.first:
            shutil.rmtree(self._unfinished, ignore_errors=True)

    def gather(self, written: Callable[[], Written]) -> None:
        """Wait until all ranks have written their files, and gather their reports.

        written: returns the result of `write`, or raises the error of `write`.
        """
        with self._refused(), self._ranks.fail_together("writing a checkpoint"):
            own = written()
        # Not by files: a shared file system may show rank 0 an old list of them, in which those of another rank are missing.
        for report in self._ranks.texts(_WRITTEN.dump_json(own).decode()):
            other = _WRITTEN.validate_json(report)
            self._written.files.update(other.files)
            self._written.not_finite.extend(other.not_finite)

    def finish(self) -> None:
        """On rank 0, write the manifest, rename the directory, change LATEST and prune. Raises OSError."""
        if self._ranks.first and not self._written.not_finite:
            _write_manifest(self._unfinished, self._body(), self._state)
            make_latest(self._unfinished, self.target)
            prune(self._root, self._step, self._keep, self._spared)

    def complete(self, finished: Callable[[], None]) -> Path:
        """Wait until rank 0 has finished, and return the checkpoint's directory.

        finished: runs `finish` now; or, if a thread ran it before, raises the error that it met. Raises UnhealthyState if a
        rank found NaN or infinity.
        """
        with self._refused(), self._ranks.fail_together("completing a checkpoint"):
            finished()
        if self._written.not_finite:
            raise self._unhealthy()
        return self.target

    def clean(self) -> None:
        """Remove pruned checkpoints and leftovers, which may take long. The call must end before another save begins."""
        if self._ranks.first:
            remove_leftovers(self._root)

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": self._step,
            "files": self._written.files,
            "identity": asdict(self._identity),
        }

    def _unhealthy(self) -> UnhealthyState:
        """Move the state to a folder that is no checkpoint. Returns the error to raise, also if the move fails."""
        folder, written = self._root / f"{_UNHEALTHY_FOLDER}{self._step:08d}", self._written
        kept: Path | None = folder
        try:
            with self._ranks.fail_together(f"writing {folder}"):
                if self._ranks.first:
                    not_finite = [asdict(each) for each in written.not_finite]
                    _put_aside(self._unfinished, folder, {**self._body(), "not_finite": not_finite}, self._state)
        except (OSError, RankError) as error:
            logger.warning("cannot keep the unhealthy state of step %d: %s", self._step, error)
            self.abandon()
            kept = None
        way = way_on(self._root, self._ranks)
        return UnhealthyState(self._step, written.not_finite, self._identity.config, kept, way)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RankError) as error:
            self.abandon()
            raise CheckpointError(
                f"cannot save checkpoint {self.target}: {error}; earlier checkpoints, if there are any, are unchanged; "
                "free space on that disk or make the folder writable, then call the command again"
            ) from error


def _encode_state(state: dict[str, Any]) -> bytes:
    try:
        return as_json(state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{STATE}: {error}; state must be plain finite JSON; put arrays in a file") from error


def _write_files(folder: Path, files: Files, after_chunk: Callable[[], None]) -> Written:
    """Write the files of a rank and flush them to the disk."""
    written = Written()
    for name, arrays in files.items():
        file, watch = folder / f"{name}.safetensors", Watch(name, arrays)
        parts = {name: array.part for name, array in arrays.items() if not array.is_whole}
        metadata = {PARTS: encode_parts(parts)} if parts else None
        values = {name: array.values for name, array in arrays.items()}
        written.files[file.name] = write_arrays(file, values, after_chunk, metadata, watch.see)
        written.not_finite.extend(watch.found)
        sync(file)
    return written


def _write_manifest(folder: Path, body: dict[str, Any], state: bytes, name: str = MANIFEST) -> None:
    """Write the state and the manifest, which rank 0 does alone. body: the manifest without the file of the state."""
    (folder / STATE).write_bytes(state)
    files = {**body["files"], STATE: fingerprint(folder / STATE)}
    (folder / name).write_bytes(sealed({**body, "files": files}))
    for path in (folder / STATE, folder / name, folder):
        sync(path)


def _put_aside(unfinished: Path, folder: Path, body: dict[str, Any], state: bytes) -> None:
    """Keep an unhealthy state, and remove the one before."""
    _write_manifest(unfinished, body, state, UNHEALTHY)
    for old in folder.parent.glob(f"{_UNHEALTHY_FOLDER}*"):
        shutil.rmtree(old)
    unfinished.rename(folder)
    sync(folder.parent)
