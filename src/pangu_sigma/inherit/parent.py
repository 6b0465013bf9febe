"""Parent of an inheritance: a dense PanGu-α.

a dense run of this project        slots, vocabulary and Adam state come from the run
a Hugging Face style folder of it  the same, without Adam state
files of a released PanGu-α        one embedding table of 40,000 rows, whose row is the token id; see foreign/README.md
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import LayoutError, argument
from pangu_sigma.sections import Activation
from pangu_sigma.stored.alpha import StoredAlpha
from pangu_sigma.stored.model import Kind, StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.tokenizer import Tokenizer

PUBLISHED = """\
a parent is a dense run of this project (`pangu-sigma train alpha_2_6b`, or sigma_tiny with model.rre_layers=0), a folder that
`pangu-sigma export --format hf` made of one, or one of the published PanGu-α weights, none of which is here:
  2.6B, 13B  MindSpore files filerted_*.ckpt with word_embedding.npy    PCL-Platform.Intelligence/PanGu-Alpha on OpenI
  2.6B, 13B  Megatron and DeepSpeed files mp_rank_*                     the same, folder panguAlpha_pytorch
  2.6B       pytorch_model*.bin, float32                                imone/pangu_2_6B on Hugging Face
  350M … 13B pytorch_model*.bin, float32                                sunzeyeah/pangu-350M, -2_6B, -13B on Hugging Face"""
"""Advice where to get a parent."""

_NO_PARENTS: dict[Kind, str] = {
    "checkpoint": "is a checkpoint, which has no tokenizer; name the run folder that it is in",
    "export": "is an export, whose weights are inside of its graph; inherit from the run that it came from",
}
"""Reason why models of a kind cannot be parents."""


def look_up(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return values[indices], -1 where an index is -1."""
    return np.where(indices >= 0, values[np.maximum(indices, 0)], -1)


def table_rows(tokenizer: Tokenizer, slot: int, ids: np.ndarray) -> np.ndarray:
    """Return the row in the whole word table, which has its slots end to end, of each token in a slot; -1: none."""
    rows = look_up(tokenizer.row_of[slot], ids)
    return np.where(rows >= 0, slot * tokenizer.slot_rows.shape[1] + rows, -1)


def open_parent(path: Path, heads: int | None = None, activation: Activation | None = None) -> StoredModel:
    """Open a dense parent model in a folder or file. heads, activation: used if the files do not record them.

    Raises ConfigError unless it is a dense model with a vocabulary, and if the files record other heads or another activation;
    LayoutError for files that cannot be used.
    """
    if not path.exists():
        raise LayoutError(f"{path} is not there; {PUBLISHED}")
    parent = open_model(path)
    if isinstance(parent, StoredAlpha):
        parent.assume(heads, activation)
    if refusal := parent_refusal(parent):
        raise ConfigError(f"{path}: {refusal}")
    for option, value, parent_value in (
        ("--heads", heads, parent.sizes.heads),
        ("--activation", activation, parent.sizes.activation),
    ):
        if value is not None and value != parent_value:
            raise ConfigError(f"{argument(option)} {value}: {path} says {parent_value}; leave the option out")
    return parent


def parent_refusal(model: StoredModel) -> str | None:
    """Return the reason why a model cannot be a parent, for messages; None if it can."""
    if model.kind in _NO_PARENTS:
        return _NO_PARENTS[model.kind]
    if isinstance(model, StoredAlpha):
        return model.vocabulary_refusal
    layers = model.config.model.rre_layers
    if not layers:
        rows = "has model.rows, which no run can take from it yet; a parent is a dense model with model.rows=[]"
        return rows if model.config.model.rows else None
    return (
        f"has model.rre_layers={layers}; only a dense model (rre_layers=0) can be inherited; to add domains to a sparse run "
        "use `pangu-sigma extend`"
    )
