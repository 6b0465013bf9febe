"""Conversion of a trained model: a run into a Hugging Face style folder, and such a folder into a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.checkpoint.model_files import write_model_files
from pangu_sigma.checkpoint.run_folder import LINEAGE_FILE
from pangu_sigma.config import ConfigError
from pangu_sigma.convert.hf_folder import write_hf_folder
from pangu_sigma.sealed import add_to_seal, sealed, write_atomically
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import KIND_NAMES, open_model
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.first_checkpoint import check_absent, unfinished_folder, write_step_0
from pangu_sigma.writable import check_folder_writable

logger = logging.getLogger(__name__)

Form = Literal["hf", "run"]


def convert_model(source: Path, output: Path, to: Form) -> Path:
    """Convert the model in `source` to the folder `output`, which is created atomically. to: "hf" (Hugging Face style) or "run".

    Raises ConfigError if `output` exists or `source` has that form already, and the errors of a missing or damaged model.
    """
    check_absent(output)
    check_folder_writable(output, "--output")
    model = open_model(source, "run", "hf")
    if model.kind == to:
        raise ConfigError(f"{source} is {KIND_NAMES[to]} already; to have it twice, copy the folder")
    return write_hf_folder(model, output) if to == "hf" else write_run(model, output)


def write_run(model: StoredModel, folder: Path) -> Path:
    """Write a model to `folder` as a run at step 0. Prepared data is not needed until the run is trained.

    Adam state and the position in the data start from zero, which is logged. The folder is created atomically. Raises ConfigError
    if it cannot be created.
    """
    config = model.config.model_copy(update={"finetune": None})  # it can be trained again
    with unfinished_folder(folder) as path:
        write_model_files(path, config, model.tokenizer, model.table)
        write_step_0(StoredRun(path), compose(config, lambda shard, name, shape: model.array(shard, name)))
        receipt = {
            "kind": "export",
            "parent": str(model.path),
            "layout": model.layout,
            "parent_step": model.step,
            "parent_hash": model.hash,
            "before": model.lineage,
        }
        write_atomically(path / LINEAGE_FILE, sealed(receipt, record=True))
        add_to_seal(path, LINEAGE_FILE)
    logger.info(
        "%s: the weights of step %d are its step 0; Adam's state and the position in the data start from nothing. To train on, set "
        "data.path to data prepared with the same vocabulary (hash %s…); it is %s now",
        *(folder, model.step, model.tokenizer.hash[:12], model.config.data.path),
    )
    return folder
