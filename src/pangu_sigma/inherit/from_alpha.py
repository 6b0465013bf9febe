"""Inheritance: a dense model becomes step 0 of a sparse run, with the tensors of `tensor_origin.py`."""

from __future__ import annotations

import logging
from pathlib import Path

from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.config import Config
from pangu_sigma.data.prepared import read_prepared_tokenizer
from pangu_sigma.data.samples import open_samples
from pangu_sigma.errors import DataError
from pangu_sigma.inherit.equality import agreements
from pangu_sigma.inherit.receipt import Receipt, make_receipt
from pangu_sigma.inherit.tensor_origin import Child, check_child, check_rows, slot_rows
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.training.first_checkpoint import check_absent, new_run, write_step_0

logger = logging.getLogger(__name__)


def plan_inheritance(parent: StoredModel, config: Config, moments: bool = False, drop_rows: bool = False) -> Child:
    """Plan a sparse run that inherits from `parent`, without reading values. moments: True to copy Adam state.

    The new run computes the parent's GELU unless the configuration names one. drop_rows: True to leave out embedding rows of a
    parent run whose tokens the prepared text does not have; False raises ConfigError for such rows. (Of a released PanGu-α only
    the rows of the prepared text's tokens are ever copied.) Without prepared text, nothing is known of rows. Raises ConfigError
    also if a key does not fit the parent, and if the parent lacks the moments.
    """
    activation = parent.sizes.activation
    if "activation" not in config.model.model_fields_set:
        config = config.model_copy(update={"model": config.model.model_copy(update={"activation": activation})})
    if config.model.activation != activation:
        logger.warning(
            "model.activation=%s is asked for, the parent computes %s, so step 0 answers otherwise; leave the key out to take it",
            *(config.model.activation, activation),
        )
    check_child(parent, config, moments)
    try:
        slots = slot_rows(parent, config, read_prepared_tokenizer(config))
    except DataError:
        return Child(parent, config, None, moments)
    if parent.kind != "alpha" and not drop_rows:
        check_rows(parent, config, slots)
    return Child(parent, config, slots, moments)


def inherit(
    parent: StoredModel,
    config: Config,
    folder: Path,
    moments: bool = False,
    drop_rows: bool = False,
) -> Receipt:
    """Write `folder`, atomically, as a run of `config` whose step 0 answers as `parent`; `train` resumes from it.

    moments, drop_rows: as in `plan_inheritance`.
    Raises ConfigError if `folder` exists or a key does not fit the parent; DataError without prepared text; LayoutError or
    CheckpointError if the parent cannot be read.
    """
    check_absent(folder)
    child = plan_inheritance(parent, config, moments, drop_rows)
    config = child.config
    tokenizer = read_prepared_tokenizer(config)  # raises what is wrong
    open_samples(config, Path(config.data.path), "train", tokenizer.size)  # too little text is refused before any work
    with new_run(folder, config) as run:
        write_step_0(run, compose(run.config, child.find))
        agreement = agreements(parent, run.path)
        receipt = make_receipt(child, agreement)
        receipt.save(run.path)
    return receipt
