"""A dense model becomes the step 0 of a sparse run: `tensor_origin.py` says how, this file does it, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.config import Config
from pangu_sigma.data.prepared import read_prepared_tokenizer
from pangu_sigma.data.samples import open_samples
from pangu_sigma.errors import DataError
from pangu_sigma.inherit.equality import agreements
from pangu_sigma.inherit.receipt import Receipt, make_receipt
from pangu_sigma.inherit.tensor_origin import Child, check_child, slot_rows
from pangu_sigma.inherit.variation import Variation
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.train.first_checkpoint import check_absent, new_run, write_step_0


def plan_inheritance(parent: StoredModel, config: Config, variation: Variation, moments: bool = False) -> Child:
    """The child of `parent`, and none of its values read. Without prepared text it has no rows yet.

    Raises ConfigError when it differs from the parent in a key that must be equal, or when there is nothing to carry over.
    """
    check_child(parent, config, moments)
    try:
        slots = slot_rows(parent, config, read_prepared_tokenizer(config))
    except DataError:
        slots = None
    return Child(parent, config, slots, variation, moments)


def inherit(
    parent: StoredModel, config: Config, folder: Path, variation: Variation | None = None, moments: bool = False
) -> Receipt:
    """Make `folder` a run of `config` whose step 0 answers as `parent`.

    The folder appears whole or not at all, and `train` goes on from it. variation: how experts differ from the parent's FFN; by
    default they do not. moments: True to carry Adam's state over. Raises ConfigError when `folder` exists or as
    `plan_inheritance`; DataError without prepared text; LayoutError, CheckpointError for a parent that cannot be read.
    """
    check_absent(folder)
    child = plan_inheritance(parent, config, variation or Variation(seed=config.seed), moments)
    tokenizer = read_prepared_tokenizer(config)  # raises what is wrong
    open_samples(config, Path(config.data.path), "train", tokenizer.size)  # too little text is refused before any work
    with new_run(folder, config) as run:
        write_step_0(run, compose(run.config, child.find))
        agreement = agreements(parent, child.slots or [], run.path)
        receipt = make_receipt(child, agreement)
        receipt.save(run.path)
    return receipt
