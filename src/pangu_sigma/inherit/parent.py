"""Parent of an inheritance: a dense PanGu-α.

a dense run of this project        slots, vocabulary and Adam state are those of the run
a Hugging Face style folder of it  the same, without Adam state
files of a released PanGu-α        one embedding table of 40,000 rows, whose row is the token id; see foreign/README.md
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pangu_sigma.config import Activation, ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.foreign.dense_model import LayoutError
from pangu_sigma.stored.model import Kind, StoredModel
from pangu_sigma.stored.open import StoredAlpha, open_model
from pangu_sigma.text.vocabulary import ALPHA_SIZE, FIRST_ENGLISH, Vocabulary

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
    "weights": "has weights and a configuration but no tokenizer, so nothing says what the rows of its word table mean; inherit "
    "from the run that it came from, or from a folder of `pangu-sigma export RUN --format hf`",
}
"""Reason why models of a kind cannot be parents."""


class ParentWords:
    """Lookup of a child's tokens in the parent's embedding table. slots: names of the parent's embedding slots.

    A released PanGu-α has a row for each token id. A table of this project has its slots end to end.
    """

    def __init__(self, parent: StoredModel):
        self._own = None if parent.kind == "alpha" else parent
        self.slots = domains_of(self._own.config).slot_names if self._own else ["alpha"]

    def rows(self, slot: int, vocabulary: Vocabulary, ids: np.ndarray) -> np.ndarray:
        """Return the row of the flattened table for each id of the child's `vocabulary` in a slot of the parent; -1: none."""
        if self._own is None:
            return np.where(ids < ALPHA_SIZE, ids, -1)
        known = parent_ids(self._own.tokenizer.vocabulary, vocabulary)[ids]
        rows = self._own.tokenizer.row_of[slot, np.maximum(known, 0)]
        return np.where((known >= 0) & (rows >= 0), slot * self._own.config.model.slot_rows + rows, -1)


def open_parent(path: Path, heads: int | None = None, activation: Activation | None = None) -> StoredModel:
    """Open a dense parent model in a folder or file. heads, activation: used if the files do not record them.

    Raises ConfigError unless it is a dense model with a vocabulary, LayoutError for files that cannot be used.
    """
    if not path.exists():
        raise LayoutError(f"{path} is not there; {PUBLISHED}")
    parent = open_model(path, heads=heads, activation=activation)
    if refusal := parent_refusal(parent):
        raise ConfigError(f"{path}: {refusal}")
    return parent


def parent_refusal(model: StoredModel) -> str | None:
    """Return the reason why a model cannot be a parent, for messages; None if it can."""
    if model.kind in _NO_PARENTS:
        return _NO_PARENTS[model.kind]
    if isinstance(model, StoredAlpha):
        rows = model.sizes.vocabulary
        if rows == ALPHA_SIZE:
            return None
        return (
            f"its word table has {rows} rows, PanGu-α's vocabulary has {ALPHA_SIZE}; only models with that vocabulary can be "
            "inherited from files, because nothing else says what their ids mean"
        )
    layers = model.config.model.rre_layers
    if not layers:
        return None
    return (
        f"has model.rre_layers={layers}; only a dense model (rre_layers=0) can be inherited; to add domains to a sparse run "
        "use `pangu-sigma extend`"
    )


def parent_ids(parent: Vocabulary, child: Vocabulary) -> np.ndarray:
    """Return the parent's id of each of the child's tokens, -1 for none, int64 [V].

    PanGu-α's pieces, tags and bytes have the same ids everywhere; English pieces are matched by the bytes they stand for.
    """
    english = {surface: FIRST_ENGLISH + i for i, surface in enumerate(parent.surfaces[FIRST_ENGLISH:])}
    return np.array([*range(FIRST_ENGLISH), *(english.get(s, -1) for s in child.surfaces[FIRST_ENGLISH:])])


def parent_slot(name: str, parent_names: list[str]) -> int:
    """Return the number of the parent's slot `name`, else of its only slot. Raises ConfigError if there is neither."""
    if name in parent_names:
        return parent_names.index(name)
    if len(parent_names) == 1:
        return 0
    raise ConfigError(
        f"domains: slot {name!r} has no parent: the parent's slots are {', '.join(parent_names)}; use one of these names"
    )
