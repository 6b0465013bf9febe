"""Parent of an inheritance: a dense PanGu-α.

a dense run of this project        slots, vocabulary and Adam state are those of the run
a Hugging Face style folder of it  the same, without Adam state
files of a released PanGu-α        one embedding table of 40,000 rows, whose row is the token id; see foreign/README.md
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain, domains_of, matching_slot
from pangu_sigma.errors import argument
from pangu_sigma.foreign.dense_model import LayoutError
from pangu_sigma.sections import Activation
from pangu_sigma.stored.alpha import StoredAlpha
from pangu_sigma.stored.model import Kind, StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import ALPHA_SIZE, Vocabulary, parent_ids

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


def looked_up(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return values[indices], -1 where an index is -1."""
    return np.where(indices >= 0, values[np.maximum(indices, 0)], -1)


class ParentWords:
    """Lookup of the tokens of a new run (child) in the embedding table of the dense model that it inherits from (parent).

    slots: names of the parent's slots. A released PanGu-α has a row for each id. A table of this project has its slots end to end.
    """

    def __init__(self, parent: StoredModel):
        self._own = None if parent.kind == "alpha" else parent
        self._whole: Tokenizer | None = None
        self.slots = domains_of(self._own.config).slot_names if self._own else ["alpha"]

    def lost(self, slot: int, vocabulary: Vocabulary, ids: np.ndarray, languages: set[str]) -> list[str]:
        """Return the pieces that have a row in slot `slot` of the parent and none in a slot of the child, although text in a
        language of both slots can contain them. vocabulary: the child's. ids: tokens with a row in the
        child's slot. languages: those of its domains."""
        if self._own is None:
            its, there, languages = vocabulary, set(range(ALPHA_SIZE)), languages & {"zh", "mixed"}
        else:
            its, there = self._own.tokenizer.vocabulary, set(self._own.tokenizer.slot_rows[slot].tolist())
            languages = languages & domains_of(self._own.config).languages(slot)
        kept = set(self.ids(vocabulary)[ids].tolist())
        return [its.pieces[token] for token in sorted((there & its.producible(languages)) - kept)]

    def ids(self, vocabulary: Vocabulary) -> np.ndarray:
        """Return the parent's id of each token of the child's `vocabulary`, -1 for none, int64 [V]."""
        if self._own is None:
            return np.where(np.arange(len(vocabulary)) < ALPHA_SIZE, np.arange(len(vocabulary)), -1)
        return parent_ids(self._own.tokenizer.vocabulary, vocabulary)

    def reading(self, tokenizer: Tokenizer, domain: Domain, slot: int) -> tuple[Tokenizer, Domain]:
        """Return the parent's tokenizer, and `domain` as this tokenizer needs it: with the parent's slot number `slot`.

        A released PanGu-α cuts all text as Chinese. tokenizer, domain: the child's."""
        if self._own is not None:
            return self._own.tokenizer, replace(domain, slot=slot)
        if self._whole is None:
            self._whole = tokenizer.whole_again()
            self._whole.row_of[:, ALPHA_SIZE:] = -1  # its table ends there: characters that it drops have no row
        return self._whole, replace(domain, language="zh", slot=0)

    def rows(self, slot: int, vocabulary: Vocabulary, ids: np.ndarray) -> np.ndarray:
        """Return the row of the parent's whole table for each of the child's token ids, in the parent's slot `slot`; -1: none."""
        known = looked_up(self.ids(vocabulary), ids)
        if self._own is None:
            return known
        rows = looked_up(self._own.tokenizer.row_of[slot], known)
        return np.where(rows >= 0, slot * self._own.config.model.slot_rows + rows, -1)


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
    for option, given, has in (
        ("--heads", heads, parent.sizes.heads),
        ("--activation", activation, parent.sizes.activation),
    ):
        if given is not None and given != has:
            raise ConfigError(f"{argument(option)} {given}: {path} says {has}; leave the option out")
    return parent


def parent_refusal(model: StoredModel) -> str | None:
    """Return the reason why a model cannot be a parent, for messages; None if it can."""
    if model.kind in _NO_PARENTS:
        return _NO_PARENTS[model.kind]
    if isinstance(model, StoredAlpha):
        return model.foreign_words
    layers = model.config.model.rre_layers
    if not layers:
        rows = "has model.rows, which no run can take from it yet; a parent is a dense model with model.rows=[]"
        return rows if model.config.model.rows else None
    return (
        f"has model.rre_layers={layers}; only a dense model (rre_layers=0) can be inherited; to add domains to a sparse run "
        "use `pangu-sigma extend`"
    )


def parent_slot(name: str, parent_names: list[str]) -> int:
    """Return the number of the parent's slot called `name`, or else of its only slot. Raises ConfigError if there is neither."""
    slot = matching_slot(name, parent_names)
    if slot is None:
        raise ConfigError(
            f"domains: slot {name!r} has no parent: the parent's slots are {', '.join(parent_names)}; use one of these names"
        )
    return slot
