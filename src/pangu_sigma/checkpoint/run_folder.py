"""Run folder: everything that training writes, and all that evaluation, generation and export read.

configuration.json, tokenizer/, routing.npz, seal.json   see model_files.py
checkpoints/                                      see checkpoint.py
metrics.jsonl, tensorboard/, report/
set_aside_1/ …                                    contents before the run was started over: see start_over.py
LOCK                                              lock of the process that writes: see lock.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.checkpoint.changes import Change
from pangu_sigma.checkpoint.checkpoint import Checkpoint, load_checkpoint, newest_identity
from pangu_sigma.checkpoint.format import Identity
from pangu_sigma.checkpoint.model_files import CONFIG_FILE, read_config
from pangu_sigma.checkpoint.root import has_checkpoints, latest_checkpoint, step_of
from pangu_sigma.checkpoint.start_over import CHECKPOINTS
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import Override, changed, override, parse_config
from pangu_sigma.lock import folder_lock
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.writable import refuse_link

WAY_BACK_OF_CONFIG = (
    "change keys with --set; to have it as it was, remove the file: `pangu-sigma train` writes that of the newest checkpoint "
    "again"
)
"""Advice to the user for a configuration.json that differs from what was written."""


@dataclass(frozen=True)
class RunFolder:
    """Folder of a run, with what was read from it when it was opened: configuration, tokenizer and routing table. checkpoints: path
    of the folder of its checkpoints. identity: what the checkpoints of this run belong to. data_hash: content hash of the prepared
    text that training reads; None without training."""

    path: Path
    config: Config
    tokenizer: Tokenizer
    table: RoutingTable
    data_hash: str | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def identity(self) -> Identity:
        return Identity(self.tokenizer.hash, self.table.hash, self.config.model_dump(mode="json"), self.data_hash)

    def newest_checkpoint(self, ranks: Ranks = SINGLE_PROCESS) -> Checkpoint | None:
        """Load and verify the newest whole checkpoint of this run; None if the run has saved none yet.

        ranks: every rank calls this method and gets the same checkpoint.
        Raises CheckpointError if all checkpoints are damaged, or have another vocabulary or routing table.
        """
        if not has_checkpoints(self.checkpoints):
            return None
        return load_checkpoint(self.checkpoints, self.identity, ranks)


def run_config(path: Path, overrides: Sequence[Override] = ()) -> Config:
    """Read the configuration of a run folder, and override some keys. If the file is missing, the newest checkpoint has it.

    Raises ConfigError if `path` is no run folder, DamagedFile for a configuration.json that was edited by hand or damaged.
    """
    if (path / CONFIG_FILE).exists():
        return changed(read_config(path, "run", WAY_BACK_OF_CONFIG), overrides)
    saved = newest_identity(path / CHECKPOINTS)
    if saved is None:
        raise ConfigError(f"{path} is not a run folder: it has no {CONFIG_FILE}; pass a configuration, or name a run")
    return parse_config(override(saved.config, overrides))


_NOT_OF_STEPS = ("name", "data.path", "ecss.path", "chat.", "train.steps")
"""Beginnings of the keys that a run without a step to do may still change."""


def refuse_idle_changes(path: Path, changes: Sequence[Change], steps: int) -> None:
    """Raise ConfigError for changes of a run that has no step left, whose folder would say that it was trained so.

    steps: train.steps, which must not be below the step of the newest checkpoint either.
    """
    newest = latest_checkpoint(path / CHECKPOINTS)
    if newest is None or steps > (done := step_of(newest)):
        return
    idle = [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, _, value in changes
        if not key.startswith(_NOT_OF_STEPS) or (key == "train.steps" and steps < done)
    ]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)}: {path} is at step {done}, nothing to do, and nothing was changed; raise train.steps to train "
            "on, or leave it as the run has it"
        )


_WRITTEN = (CHECKPOINTS, "metrics.jsonl", "tensorboard", "report", "logs", "profile", "finetune")
"""Names of what training writes, prunes or cuts in a run folder, which may itself be reached through a link; they may not."""


@contextmanager
def one_writer(path: Path, required: bool = True, ranks: Ranks = SINGLE_PROCESS) -> Iterator[None]:
    """Hold the write lock of a run folder in a `with` statement. A missing folder is created. Rank 0 takes the lock for all ranks.

    required: False to go on where the file system has no locks. Raises LockError, ConfigError if the folder cannot be created,
    and NotWritable for a link in the place of what a run writes in it.
    """
    with ExitStack() as held:
        with ranks.fail_together(f"locking {path}"), name_unwritable(path):
            if ranks.first:
                for name in _WRITTEN:
                    refuse_link(path / name)
                held.enter_context(folder_lock(path, required))
        yield


@contextmanager
def name_unwritable(path: Path) -> Iterator[None]:
    """Turn an OSError in a `with` statement that writes to the run folder `path` into a ConfigError that names file and fix."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename2 or error.filename or path}: {error.strerror}; nothing of the run was changed: make room there or "
            "the folder writable, or choose another one with --output"
        ) from error


def way_back(path: Path) -> str:
    """Return advice to the user on how to restore a damaged file of a run folder, other than configuration.json."""
    return f"`pangu-sigma train {path}` makes it again if data.path still gives the same"
