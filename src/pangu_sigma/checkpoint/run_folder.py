"""Run folder: everything that training writes, and all that evaluation, generation and export read.

configuration.json, tokenizer/, routing.npz, seal.json   see model_files.py
checkpoints/                                      see checkpoint.py
metrics.jsonl, tensorboard/, report/
set_aside_1/ …                                    earlier contents, or checkpoints that the run went back behind
LOCK                                              lock of the process that writes: see writable.py

The model in it is `stored.run.StoredRun`.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pangu_sigma.checkpoint.changes import Change
from pangu_sigma.checkpoint.checkpoint import (
    Checkpoint,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune,
    step_of,
)
from pangu_sigma.checkpoint.model_files import CONFIG_FILE, ROUTING_FILE, TOKENIZER_FOLDER, read_config
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import Override, changed, override, parse_config
from pangu_sigma.errors import argument
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks
from pangu_sigma.sealed import SEAL, DamagedFile, sync
from pangu_sigma.writable import LOCK, folder_lock, refuse_link

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LINEAGE_FILE = "lineage.json"
"""Receipt (origin of the weights) of a run whose weights were inherited, extended, extracted or converted from another model."""

_METRICS = "metrics.jsonl"
_MOVED = (CHECKPOINTS, _METRICS, "tensorboard", "report")
_COPIED = (CONFIG_FILE, ROUTING_FILE, TOKENIZER_FOLDER, SEAL, LINEAGE_FILE)
_WRITTEN = (*_MOVED, "logs", "profile", "finetune")
"""Names of what training writes, prunes or cuts in a run folder, which may itself be reached through a link; they may not."""
_NOT_OF_STEPS = ("name", "data.path", "ecss.path", "chat.", "train.steps")
"""Beginnings of the keys that a run without a step to do may still change."""


def run_config(path: Path, overrides: Sequence[Override] = ()) -> Config:
    """Read the configuration of a run folder, and override some keys. If configuration.json is missing, edited or damaged, read the
    configuration from the newest checkpoint instead, and log a warning. Raises ConfigError if `path` is no run folder, and
    DamagedFile for a damaged configuration.json of a run without checkpoints."""
    has_file, fix = (path / CONFIG_FILE).exists(), "change keys with --set"
    try:
        return changed(read_config(path, "run", fix), overrides)
    except DamagedFile as damage:
        checkpoint = newest_checkpoint(path / CHECKPOINTS, verified=False)
        if checkpoint is None and has_file:
            raise
        if checkpoint is None:
            why = f"{path} is not a run folder: it has no {CONFIG_FILE}; pass a configuration, or name a run"
            raise ConfigError(why) from damage
        logger.warning("%s; the configuration of the newest checkpoint is used in its place", damage)
        return parse_config(override(checkpoint.identity.config, overrides))


def refuse_idle_changes(path: Path, changes: Sequence[Change], steps: int, step: int) -> None:
    """Raise ConfigError for changes of a run that has no step left: its folder would say that the run was trained with them. Keys
    that no step reads may change. steps: the new train.steps, refused too if it is below `step`, the newest checkpoint's."""
    if steps > step:
        return
    idle_changes = [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, _, value in changes
        if not key.startswith(_NOT_OF_STEPS) or (key == "train.steps" and steps < step)
    ]
    if idle_changes:
        raise ConfigError(
            f"{', '.join(idle_changes)}: {path} is at step {step}, nothing to do, and nothing was changed; raise train.steps "
            "to train on, or leave it as the run has it"
        )


@contextmanager
def one_writer(path: Path, ranks: Ranks = SINGLE_PROCESS) -> Iterator[None]:
    """Hold the write lock of a run folder in a `with` statement. A missing folder is created, and files that a killed save has left
    are removed. Rank 0 does it for all ranks.

    Raises OSError if the folder cannot be created, and NotWritable for another writer, or a link in place of what a run writes.
    """
    with ExitStack() as lock:
        with ranks.fail_together(f"locking {path}"):
            if ranks.first:
                for name in _WRITTEN:
                    refuse_link(path / name)
                lock.enter_context(folder_lock(path))
                prune(path / CHECKPOINTS)
        yield


def refuse_second_writer(path: Path) -> None:
    """Raise NotWritable if another process holds the lock of a run folder, before MindSpore is loaded."""
    if (path / LOCK).exists():
        with folder_lock(path):
            pass


def start_over(run: Path) -> None:
    """Move the checkpoints and logs of a run folder aside, so that the run starts at step 0.

    Raises ConfigError for a run whose weights come from another model, because a restart cannot restore these weights.
    """
    if (run / LINEAGE_FILE).exists():
        raise ConfigError(
            f"{run} has its weights from another model ({LINEAGE_FILE}), and starting over would draw new ones; make it again in "
            "another folder, with the command that made it"
        )
    if set_aside(run) is None:
        logger.warning("%s: %s holds no run, there was nothing to start over", argument("--start-over"), run)


def checkpoint_at(run: Path, step: int, verified: bool = False) -> Checkpoint:
    """Return the checkpoint of a step. verified: as in `load_checkpoint`. Raises ConfigError if there is none, CheckpointError for
    damage."""
    paths = {step_of(path): path for path in checkpoints(run / CHECKPOINTS)}
    if step not in paths:
        steps = ", ".join(map(str, reversed(paths))) or "none"
        raise ConfigError(
            f"{argument('--from-step')} {step}: {run} has no such checkpoint; those that it has are of steps {steps}"
        )
    return load_checkpoint(paths[step], verified=verified)


def go_back(run: Path, step: int) -> None:
    """Set the checkpoints of later steps aside, so that a run goes on from that of `step`. Raises as `checkpoint_at`."""
    checkpoint_at(run, step, verified=True)
    set_aside(run, step)


def set_aside(run: Path, after: int | None = None) -> Path | None:
    """Move checkpoints, metrics and reports of a run into a new folder inside its run folder. Return the new folder, which is a run
    folder too; or None if there is nothing to move.

    after: step; only checkpoints of later steps are moved then, and the metrics are copied. None: everything is moved.
    Checkpoints are moved first, the newest before others, so that another call completes an interrupted one.
    """
    root = run / CHECKPOINTS
    paths = [run / name for name in _MOVED if (run / name).exists()]
    if after is not None:
        paths = [path for path in checkpoints(root) if step_of(path) > after]
    if not paths:
        return None
    folders = (run / f"set_aside_{number}" for number in itertools.count(1))
    folder = next(path for path in folders if not path.exists())
    folder.mkdir()
    for name in (*_COPIED, *((_METRICS,) if after is not None else ())):
        if (run / name).is_dir():
            shutil.copytree(run / name, folder / name)
        elif (run / name).exists():
            shutil.copy2(run / name, folder / name)
    for path in paths:
        target = folder / path.relative_to(run)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    sync(run)
    logger.info("set aside %s of %s in %s", ", ".join(path.name for path in paths), run, folder)
    return folder
