"""Checkpoints that are either whole or refused.

    <root>/step_00000400/<shard>.safetensors …  arrays
                         state.json             everything else: counters, random state, data cursor
                         manifest.json          size and content hash of those files, identity of the run, its own hash
    <root>/LATEST                               name of the newest whole checkpoint
    <root>/unhealthy_00000500/                  a state with values that are not finite; no checkpoint, kept for looking at

A save writes a sibling directory, flushes it to the disk, renames it, and only then changes LATEST (also by a rename):
a crash at any moment leaves the previous checkpoint in force. A load checks every byte of every file before it hands
out an array. One run saves into a root at a time.

A shard is a named group of arrays: the dense parameters, the experts of a layer. The ranks of a run write into one directory,
which all of them must see: each its own arrays, and rank 0 the rest. A shard that several ranks write has a file of each,
`<shard>.<rank>.safetensors`, whose metadata say which part of the whole array each array is (parts.py), so that any number of ranks
can read what any other number wrote.

What ranks do together and what takes long are apart, so that the latter can run in a thread (saver.py).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.health import NotFinite, Watch, describe
from pangu_sigma.checkpoint.parts import Files, Part, SavedArray, decode_parts, encode_parts
from pangu_sigma.checkpoint.safetensors_file import map_arrays, metadata_of, write_arrays
from pangu_sigma.errors import UserError
from pangu_sigma.parallel.ranks import ALONE, RankError, Ranks
from pangu_sigma.sealed import (
    UNFINISHED,
    DamagedFile,
    as_json,
    fingerprint,
    sealed,
    sync,
    unsealed,
    verify,
)

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of the layout above that is written. 2 added the hash of the data."""
READ_FORMATS = (1, 2)
"""Versions that are read; others are refused."""

LATEST = "LATEST"
NEXT_LATEST = f"{UNFINISHED}{LATEST}"
"""Name of the note that becomes LATEST."""
MANIFEST = "manifest.json"
STATE = "state.json"
UNHEALTHY = "unhealthy.json"
"""What a state that is not healthy has in the place of a manifest, so that nothing takes it for a checkpoint."""
RANK_NOTE = ".written-"
"""Prefix of files in which ranks tell rank 0 what they wrote."""
PARTS = "parts"
"""Key of a file's metadata: the parts that its arrays are; those that it does not name are whole."""

_CHECKPOINT_NAME = re.compile(r"step_(\d{8,18})")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ASIDE = f"{UNFINISHED}replaced-"
"""Prefix of a checkpoint that steps aside for another one of the same step."""
_UNHEALTHY_FOLDER = "unhealthy_"
_ANOTHER = "use another checkpoint"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file, what is wrong and the fix."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint one of whose files is not what was saved."""


class OtherData(CheckpointError):
    """A checkpoint that was trained on other data than the run would go on with."""


class UnhealthyState(UserError, RuntimeError):
    """A state with weights or moments that are not finite, so that no checkpoint was made of it; all ranks raise it.

    step: the state's. found: what is not finite, on all ranks. folder: where the state is kept for looking at; None if that failed.
    healthy: the newest checkpoint, which is older; None if there is none.
    """

    def __init__(
        self, step: int, found: list[NotFinite], config: dict[str, Any], folder: Path | None, healthy: Path | None
    ):
        self.step, self.found, self.folder, self.healthy = step, found, folder, healthy
        kept = f"; the state is kept in {folder} for looking at" if folder else ""
        back = f"the newest healthy checkpoint is {healthy}" if healthy else "there is no checkpoint before it"
        super().__init__(
            f"the state after step {step} has values that are not finite and was not saved as a checkpoint: "
            f"{describe(found, config)}{kept}; {back}: go on from there with a lower train.optimizer.peak_lr, or other data"
        )


@dataclass(frozen=True)
class Identity:
    """The vocabulary, routing table, configuration and data that a checkpoint belongs to.

    With another vocabulary or routing table the same weights mean something else; with other data the run is another one.
    config: the resolved configuration as a plain tree (`Config.model_dump(mode="json")`).
    data_hash: content hash of the prepared data (`Manifest.content_hash`); None if it has none, or if the caller does not mind.
    """

    vocabulary_hash: str
    routing_hash: str
    config: dict[str, Any]
    data_hash: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint; its arrays are mapped files, and writing to one changes memory only."""

    step: int
    state: dict[str, Any]
    identity: Identity
    files: Files
    format: int = FORMAT

    def saved(self, shard: str) -> dict[str, list[SavedArray]]:
        """What the files of a shard hold of each of its arrays."""
        found: dict[str, list[SavedArray]] = {}
        for file, arrays in self.files.items():
            if file.partition(".")[0] == shard:
                for name, array in arrays.items():
                    found.setdefault(name, []).append(array)
        return found


def save_checkpoint(
    root: Path,
    step: int,
    files: Files,
    state: dict[str, Any],
    identity: Identity,
    keep: int,
    after_chunk: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write the checkpoint of `step`, make it the latest, then prune to the `keep` newest; returns its directory.

    A checkpoint of the same step is replaced. Checkpoints of later steps (of a run that was resumed further back) are neither
    counted nor removed.
    files: what this rank writes. state: values that JSON can hold.
    after_chunk: called as the arrays are written, so that arrays of mapped files need not stay in memory.
    ranks: all of them call this, each with the files that it writes; everything else is rank 0's.
    Raises CheckpointError, on all ranks, when the name of a file or a state value is not allowed, or the disk refuses; LATEST is
    then what it was. Raises UnhealthyState, on all ranks, when an array holds NaN or infinity: then LATEST is what it was, nothing
    is pruned, and the state is kept under another name.
    """
    save = Save(root, step, list(files), state, identity, keep, ranks)
    save.begin()
    save.gather(lambda: save.write(files, after_chunk))
    path = save.complete(save.finish)
    save.clean()
    return path


@dataclass(frozen=True)
class Written:
    """What a rank has written: fingerprints of its files by name, and the arrays that are not finite."""

    files: dict[str, Any] = field(default_factory=dict)
    not_finite: list[NotFinite] = field(default_factory=list)

    def encode(self) -> bytes:
        """The same as JSON."""
        return as_json({"files": self.files, "not_finite": [each.as_dict() for each in self.not_finite]})

    def add(self, note: bytes) -> None:
        """Add what another rank encoded."""
        tree = json.loads(note)
        self.files.update(tree["files"])
        self.not_finite.extend(NotFinite.from_dict(each) for each in tree["not_finite"])


class Save:
    """A checkpoint on its way: `begin`, `write`, `gather`, `finish`, `complete`, `clean`, once each and in this order.

    All ranks call all of them. `begin`, `gather` and `complete` are what they do together; these raise on all ranks or on none, as
    `save_checkpoint` does. `write`, `finish` and `clean` only work with files, and may run in a thread.
    """

    def __init__(
        self,
        root: Path,
        step: int,
        names: list[str],
        state: dict[str, Any],
        identity: Identity,
        keep: int,
        ranks: Ranks,
    ):
        """names: of the files that this rank will write."""
        _check_arguments(step, names, keep)
        self._root, self._step, self._keep, self._identity, self._ranks = root, step, keep, identity, ranks
        self._state = _encode_state(state)
        self.target = root / f"step_{step:08d}"
        self._unfinished = root / f"{UNFINISHED}{self.target.name}"
        self._written = Written()

    def begin(self) -> None:
        """Make the folder in which all ranks write."""
        with self._refused(), self._ranks.together("making the folder of a checkpoint"):
            if self._ranks.first:
                if not self._root.is_dir():
                    self._root.mkdir(parents=True)
                    sync(self._root.parent)
                _put_back(self._root)
                _remove_leftovers(self._root)
                self._unfinished.mkdir()

    def write(self, files: Files, after_chunk: Callable[[], None]) -> Written:
        """Write this rank's files. Raises OSError; give the result to `gather`."""
        written = _write_files(self._unfinished, files, after_chunk)
        if not self._ranks.first:
            (self._unfinished / f"{RANK_NOTE}{self._ranks.rank}").write_bytes(written.encode())
        return written

    def abandon(self) -> None:
        """Remove what was begun; called instead of `gather`."""
        if self._ranks.first:
            shutil.rmtree(self._unfinished, ignore_errors=True)

    def gather(self, written: Callable[[], Written]) -> None:
        """Learn whether all ranks have written. written: gives what `write` gave, or raises its error."""
        with self._refused(), self._ranks.together("writing a checkpoint"):
            self._written = written()

    def finish(self) -> None:
        """Do the part of rank 0: add the manifest, rename, change LATEST, prune. Raises OSError, of which `complete` is told."""
        if self._ranks.first:
            _add_notes(self._unfinished, self._written)
            if not self._written.not_finite:
                _write_manifest(self._unfinished, self._body(), self._state)
                _make_latest(self._unfinished, self.target)
                _prune(self._root, self._step, self._keep)

    def complete(self, finished: Callable[[], None]) -> Path:
        """Learn whether rank 0 has finished; returns the directory. finished: calls `finish`, or raises the error that it raised.

        Raises UnhealthyState if a rank found values that are not finite.
        """
        with self._refused(), self._ranks.together("completing a checkpoint"):
            finished()
        if self._ranks.any(self._ranks.first and bool(self._written.not_finite)):
            raise self._unhealthy()
        return self.target

    def clean(self) -> None:
        """Remove what is not kept any more, which may take long; it must end before another save begins."""
        if self._ranks.first:
            _remove_leftovers(self._root)

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": self._step,
            "files": self._written.files,
            "identity": asdict(self._identity),
        }

    def _unhealthy(self) -> UnhealthyState:
        """Put the state where nobody takes it for a checkpoint. Returns the error to raise; whatever fails here, it is raised."""
        folder, written = self._root / f"{_UNHEALTHY_FOLDER}{self._step:08d}", self._written
        kept: Path | None = folder
        try:
            with self._ranks.together(f"writing {folder}"):
                if self._ranks.first:
                    not_finite = [each.as_dict() for each in written.not_finite]
                    _put_aside(self._unfinished, folder, {**self._body(), "not_finite": not_finite}, self._state)
            if not self._ranks.first:
                tree = unsealed(folder / UNHEALTHY, "look into the log of rank 0")
                written.not_finite[:] = [NotFinite.from_dict(each) for each in tree["not_finite"]]
        except (OSError, RankError, DamagedFile) as error:
            logger.warning("cannot keep the unhealthy state of step %d: %s", self._step, error)
            self.abandon()
            kept = None
        healthy = next(iter(_candidates(self._root)), None)
        unhealthy = UnhealthyState(self._step, written.not_finite, self._identity.config, kept, healthy)
        if self._ranks.first:
            logger.error("%s", unhealthy)
        return unhealthy

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RankError) as error:
            self.abandon()
            raise CheckpointError(
                f"cannot save checkpoint {self.target}: {error}; earlier checkpoints are unchanged; "
                "free space on that disk or make the folder writable, then resume"
            ) from error


def load_checkpoint(
    path: Path, expected: Identity | None = None, ranks: Ranks = ALONE, other_data: bool = False
) -> Checkpoint:
    """Read and verify a checkpoint.

    path: one checkpoint's directory, where damage is an error; or a root, where the newest whole one is taken, with a warning that
        names what is damaged or missing if it is not the one that LATEST names.
    expected: what the caller is about to continue; another vocabulary, routing or data hash is refused. Configs may differ.
    ranks: all of them call this. Each verifies some of the files, and all take the same checkpoint.
    other_data: True if the user accepts other data than the checkpoint was trained on; that is then a warning.
    Raises CheckpointError when there is no whole checkpoint or it is not the expected one, and its kind OtherData when only the
    data are others.
    """
    if _CHECKPOINT_NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        found = _load_directory(path, expected, ranks)
    else:
        found = _newest_whole(path, expected, ranks)
    if expected is not None:
        _check_data(path, found, expected, ranks, other_data)
    if found.format == 1 and ranks.first:
        logger.warning(
            "%s: the checkpoint of step %d was written by an earlier version and does not say which data it was trained on, so "
            "the data could not be checked; the next checkpoint will say it",
            path,
            found.step,
        )
    return found


def has_checkpoints(root: Path) -> bool:
    """True if a root holds checkpoints, whole or not, or says that it did.

    A run may start from nothing only where this is False; anywhere else `load_checkpoint` gives the newest whole checkpoint or an
    error. Raises CheckpointError when the root cannot be read.
    """
    try:
        return bool(_checkpoints(root)) or (root / LATEST).exists()
    except CheckpointError:
        if not root.exists():
            return False
        raise


def _newest_whole(root: Path, expected: Identity | None, ranks: Ranks) -> Checkpoint:
    if (root / UNHEALTHY).exists():
        raise CheckpointError(
            f"{root} is no checkpoint: it is a state with values that are not finite; name a checkpoint beside it"
        )
    problems = []
    for directory in _candidates(root):
        try:
            return _load_directory(directory, expected, ranks)
        except DamagedCheckpoint as error:
            logger.warning("%s; trying the checkpoint before it", error)
            problems.append(str(error))
    found = "\n".join(problems) or "it holds none"
    raise CheckpointError(
        f"no usable checkpoint in {root}: {found}\nname another folder, or start the run without resuming"
    )


def newest_identity(root: Path) -> Identity | None:
    """The identity in the newest checkpoint whose manifest is whole; other files are not read. None if there is none."""
    for directory in _candidates(root) if root.is_dir() else ():
        try:
            return Identity(**_read_manifest(directory)["identity"])
        except DamagedCheckpoint as error:
            logger.warning("%s; asking the checkpoint before it", error)
    return None


def _check_arguments(step: int, names: list[str], keep: int) -> None:
    if step < 0 or keep < 1:
        raise CheckpointError(f"step={step} must be at least 0 and keep={keep} at least 1 (train.keep_checkpoints)")
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{name!r} cannot be the name of a file; use letters, digits, '_', '-' and '.'")


def _encode_state(state: dict[str, Any]) -> bytes:
    try:
        return as_json(state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{STATE}: {error}; state must be plain finite JSON values, put arrays in a file"
        ) from error


def _write_files(folder: Path, files: Files, after_chunk: Callable[[], None]) -> Written:
    """Write a rank's files and flush them to the disk."""
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


def _add_notes(folder: Path, written: Written) -> None:
    """Add to what rank 0 wrote what the other ranks left in the folder."""
    for note in sorted(folder.glob(f"{RANK_NOTE}*")):
        written.add(note.read_bytes())
        note.unlink()


def _write_manifest(folder: Path, body: dict[str, Any], state: bytes, name: str = MANIFEST) -> None:
    """Add what only rank 0 writes. body: the manifest without the file of the state."""
    (folder / STATE).write_bytes(state)
    files = {**body["files"], STATE: fingerprint(folder / STATE)}
    (folder / name).write_bytes(sealed({**body, "files": files}))
    for path in (folder / STATE, folder / name, folder):
        sync(path)


def _put_aside(unfinished: Path, folder: Path, body: dict[str, Any], state: bytes) -> None:
    """Keep an unhealthy state, and no other one."""
    _write_manifest(unfinished, body, state, UNHEALTHY)
    for old in folder.parent.glob(f"{_UNHEALTHY_FOLDER}*"):
        shutil.rmtree(old)
    unfinished.rename(folder)
    sync(folder.parent)


def _make_latest(unfinished: Path, target: Path) -> None:
    """Two renames: of the folder, and of the note that becomes LATEST. The note is there before: so a kill between them shows."""
    root = target.parent
    note = root / NEXT_LATEST
    note.write_text(f"{target.name}\n", encoding="utf-8")
    sync(note)
    try:
        _move_into_place(unfinished, target)
    except OSError:
        note.unlink(missing_ok=True)
        raise
    sync(root)
    note.replace(root / LATEST)
    sync(root)


def _move_into_place(unfinished: Path, target: Path) -> None:
    """Rename; an earlier checkpoint of the same step steps aside first, and is put back if that fails (or killed: `_put_back`)."""
    if target.exists():
        aside = target.with_name(f"{_ASIDE}{target.name}")
        target.rename(aside)
        try:
            unfinished.rename(target)
        except OSError:
            aside.rename(target)
            raise
    else:
        unfinished.rename(target)


def _put_back(root: Path) -> None:
    """Do what a killed save has left undone: LATEST of a folder that is there, and the name of one that stepped aside in vain."""
    for aside in root.glob(f"{_ASIDE}*"):
        if not (target := root / aside.name.removeprefix(_ASIDE)).exists():
            aside.rename(target)
    name = _named(root / NEXT_LATEST)
    if name is not None and (root / name).exists():
        (root / NEXT_LATEST).replace(root / LATEST)


def _prune(root: Path, step: int, keep: int) -> None:
    """Rename all but the `keep` newest checkpoints up to `step`; then they are leftovers. A failure costs space, not the run."""
    for old in [path for path in _checkpoints(root) if _step_of(path) <= step][keep:]:
        try:
            # Renamed first: a crash in the middle leaves a leftover, not a checkpoint that looks damaged.
            old.rename(root / f"{UNFINISHED}pruned-{old.name}")
        except OSError as error:
            logger.warning("cannot remove old checkpoint %s: %s; remove it by hand to free its space", old, error)


def _remove_leftovers(root: Path) -> None:
    """Remove what interrupted saves left, and what stepped aside. A failure costs space, not the run."""
    for path in root.glob(f"{UNFINISHED}*"):
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            logger.warning("cannot remove %s, left by an interrupted save: %s; remove it by hand", path, error)


def _named(file: Path) -> str | None:
    """What LATEST, or the note that becomes it, says; None if it cannot be read or names no checkpoint."""
    with suppress(OSError):
        name = file.read_bytes()[:100].decode(errors="replace").strip()
        if _CHECKPOINT_NAME.fullmatch(name):
            return name
    return None


def _candidates(root: Path) -> list[Path]:
    """Checkpoints of a root in the order to try.

    That is the one that LATEST names, then older ones, newest first. Newer ones belong to a branch that the run has left by going
    on further back, and are tried, last, only if LATEST names nothing that is there. Where LATEST is missing or damaged, all are
    tried, newest first. A note that was to become LATEST when a save was killed counts as LATEST if its checkpoint is there: that
    one is whole and healthy as any other, and what was computed for it is not lost.
    """
    found = _checkpoints(root)
    names = [path.name.removeprefix(_ASIDE) for path in found]
    name, coming = _named(root / LATEST), _named(root / NEXT_LATEST)
    if coming in names and coming != name:
        logger.warning("%s does not name %s, whose save was interrupted; trying that first", root / LATEST, coming)
        name = coming
    if name is None:
        if found:
            logger.warning(
                "%s is missing or names no checkpoint; using the newest whole checkpoint there", root / LATEST
            )
        return found
    older = [path for path in found if _step_of(path) <= _step_of(Path(name))]
    if name in names:
        return older
    if found:
        logger.warning(
            "%s names %s, which is not there (no %s); using the newest whole checkpoint before it, or after it if there is none",
            *(root / LATEST, name, f"{name}/{MANIFEST}"),
        )
    return [*older, *(path for path in found if path not in older)]


def _checkpoints(root: Path) -> list[Path]:
    """Checkpoint directories of a root, newest first; with those that stepped aside for one that never came."""
    try:
        found = {path.name: path for path in root.iterdir()}
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoints in {root}: {error.strerror}; name the folder of an earlier run"
        ) from error
    whole = [path for name, path in found.items() if _CHECKPOINT_NAME.fullmatch(name)]
    whole += [
        path
        for name, path in found.items()
        if name.startswith(_ASIDE)
        and _CHECKPOINT_NAME.fullmatch(name.removeprefix(_ASIDE))
        and name.removeprefix(_ASIDE) not in found
    ]
    return sorted(whole, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_ASIDE).removeprefix("step_"))


def _load_directory(path: Path, expected: Identity | None, ranks: Ranks) -> Checkpoint:
    try:
        with ranks.together(f"verifying {path}"):
            manifest = _read_manifest(path)
            for name, recorded in list(manifest["files"].items())[ranks.rank :: ranks.world]:
                verify(path / name, recorded, _ANOTHER)
    except (RankError, DamagedFile) as error:
        raise DamagedCheckpoint(str(error)) from error
    identity = Identity(**manifest["identity"])
    if expected is not None:
        _refuse_other(path, identity, expected)
    names = [name.removesuffix(".safetensors") for name in manifest["files"] if name.endswith(".safetensors")]
    try:
        files = {name: _read_arrays(path / f"{name}.safetensors") for name in names}
        state = json.loads((path / STATE).read_bytes())
    except (
        DamagedFile,
        ValueError,
        OSError,
        RecursionError,
    ) as error:  # it has its hash, and is not what a save writes
        raise DamagedCheckpoint(f"{error}; {_ANOTHER}") from error
    return Checkpoint(manifest["step"], state, identity, files, manifest["format"])


def _read_arrays(file: Path) -> dict[str, SavedArray]:
    """The arrays of a file, mapped. Raises ValueError when they are not what the file says."""
    parts, arrays = decode_parts(metadata_of(file).get(PARTS, "{}")), {}
    for name, values in map_arrays(file).items():
        part = parts.get(name) or Part.everything(values.shape)
        if not part.fits(values.shape):
            raise ValueError(f"{file}: {name} of shape {values.shape} is not the part that the file says")
        arrays[name] = SavedArray(part, values)
    return arrays


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, whose bytes must be exactly those of its contents sealed with its own hash."""
    file = path / MANIFEST
    try:
        body = unsealed(file, _ANOTHER)
    except DamagedFile as error:
        raise DamagedCheckpoint(str(error)) from error
    if type(body.get("format")) is not int or body["format"] not in READ_FORMATS:
        raise CheckpointError(
            f"{file}: checkpoint format {body.get('format')}, this version reads {', '.join(map(str, READ_FORMATS))}; use the "
            "version that wrote it"
        )
    if not _is_manifest(body):
        raise DamagedCheckpoint(f"{file}: does not say what a manifest says; {_ANOTHER}")
    return body


def _is_manifest(body: dict[str, Any]) -> bool:
    """True if everything that is read of a manifest is there, and no file of it is outside the folder."""
    files, identity = body.get("files"), body.get("identity")
    if type(body.get("step")) is not int or not isinstance(files, dict) or not isinstance(identity, dict):
        return False
    known = {each.name for each in fields(Identity)}
    return (
        known >= identity.keys() >= known - {"data_hash"}
        and STATE in files
        and all(_FILE_NAME.fullmatch(name) for name in files)
        and all(isinstance(each, dict) and {"bytes", "xxh3_128"} <= each.keys() for each in files.values())
    )


def _refuse_other(path: Path, found: Identity, expected: Identity) -> None:
    for what, key, fix in (
        (
            "vocabulary",
            "vocabulary_hash",
            "use the prepared data folder (its tokenizer) that the checkpoint was trained with",
        ),
        ("routing table", "routing_hash", "use the checkpoint's routing.table, routing.seed, domains and vocabulary"),
    ):
        has, wants = getattr(found, key), getattr(expected, key)
        if has != wants:
            raise CheckpointError(f"{path}: made with another {what}: its {key} is {has}, this run's is {wants}; {fix}")


def _check_data(path: Path, found: Checkpoint, expected: Identity, ranks: Ranks, accepted: bool) -> None:
    """Refuse other data than the checkpoint's, or say that they are others, or that nobody knows. Format 1 is the caller's."""
    has, wants = found.identity.data_hash, expected.data_hash
    if wants is None or has == wants or found.format == 1:
        return
    if has is None:
        text = "the data could not be checked: those that it was trained on had no hash; prepare-data gives them one"
    elif accepted:
        text = f"trained on other data: its data_hash is {has}, this run's is {wants}; going on with them as asked"
    else:
        raise OtherData(
            f"{path}: trained on other data: its data_hash is {has}, this run's is {wants}; use the prepared data folder that the "
            "checkpoint was trained with, or say that you want to go on with other data"
        )
    if ranks.first:
        logger.warning("%s: checkpoint of step %d: %s", path, found.step, text)
