"""Restart of a run at step 0 in its run folder: the contents are moved aside, and nothing is deleted."""

from __future__ import annotations

import itertools
import logging
import shutil
from pathlib import Path

from pangu_sigma.checkpoint.model_files import CONFIG_FILE, ROUTING_FILE, TOKENIZER_FOLDER
from pangu_sigma.checkpoint.root import recover_interrupted_save
from pangu_sigma.config import ConfigError
from pangu_sigma.errors import argument
from pangu_sigma.sealed import SEAL, sync

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LINEAGE_FILE = "lineage.json"
"""Receipt (origin of the weights) of a run whose weights were inherited, extended, extracted or converted from another model."""
SET_ASIDE = "set_aside_"
"""Prefix of the names of the folders, numbered from 1, that hold earlier contents of a run."""

_METRICS = "metrics.jsonl"
_MOVED = (CHECKPOINTS, _METRICS, "tensorboard", "report")
_COPIED = (CONFIG_FILE, ROUTING_FILE, TOKENIZER_FOLDER, SEAL, LINEAGE_FILE)


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


def set_aside(run: Path) -> Path | None:
    """Move checkpoints, metrics and reports of a run into a new folder inside its run folder, which becomes a run folder too, and
    return that; None if there are none.

    Checkpoints are moved first, so that after an interrupted call the run also starts at step 0.
    """
    there = [name for name in _MOVED if (run / name).exists()]
    if not there:
        return None
    folder = next(path for n in itertools.count(1) if not (path := run / f"{SET_ASIDE}{n}").exists())
    folder.mkdir()
    if (run / CHECKPOINTS).is_dir():  # files of a killed save are no checkpoint, and take the room of one
        recover_interrupted_save(run / CHECKPOINTS)
    for name in _COPIED:
        if (run / name).is_dir():
            shutil.copytree(run / name, folder / name)
        elif (run / name).exists():
            shutil.copy2(run / name, folder / name)
    for name in there:
        (run / name).rename(folder / name)
    sync(run)
    logger.info("set aside %s of %s in %s", ", ".join(there), run, folder)
    return folder
