"""Comparison of a child's logits with its parent's on the same text, by an exact path that adds in one order.

Shape suffixes: T tokens, N segments of the RRE layers, R rows of a slot of the child, W the rows that both have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.generate.rows import MetRows
from pangu_sigma.generate.score import token_losses
from pangu_sigma.inherit.parent import look_up, table_rows
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.text.vocabulary import matching_ids

COMPARED_TOKENS = 16
"""Number of held-out tokens of each domain on which logits are compared."""
COMPARED_TEXTS = 100
"""Number of held-out texts, of at most as many tokens each, that both models cut."""


@dataclass(frozen=True)
class Agreement:
    """Differences between a new run (child) and the model that it was made of (parent) in one domain.

    text, tokens: text that both models read as the same tokens, and its length; logits are compared after each token, for the
    tokens that both models have. exact: largest |Δlogit| if both compute by the NumPy network of generate/cpu/exact.py, with the
    parent's activation. own_activation: as `exact`, but with the child's activation. activation_nats: loss that the child's
    activation adds, in nats per token; both None if the activations are equal.
    texts: number of held-out texts that both models cut into tokens. other: texts that the two cut differently.
    """

    text: str
    tokens: int
    exact: float
    own_activation: float | None = None
    activation_nats: float | None = None
    texts: int = 0
    other: int = 0


@dataclass(frozen=True)
class _Reader:
    """Model that reads text, with the GELU `activation`. ids_R: its token id of each row of the child's slot, -1 for none."""

    model: StoredModel
    ids_R: np.ndarray
    domain: Domain
    activation: str

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return the row of each token in the flattened slots, -1 for none."""
        return table_rows(self.model.tokenizer, self.domain.slot, ids)

    def cut(self, text: str) -> np.ndarray:
        """Return the token ids of a text, int64 [T]."""
        return np.array(self.model.tokenizer.encode(text, self.domain), np.int64)

    def logits(self, ids_T: np.ndarray, common_W: np.ndarray) -> np.ndarray:
        """Return logits by the exact path, float32 [T, W]. common_W: rows of the child's slot for whose tokens logits are asked."""
        model, of_tokens = self.model, (ids_T, np.full_like(ids_T, self.domain.index), np.arange(len(ids_T)))
        # the last argument is the token before each token; at position 0 it is not read
        e_TH = MetRows(model.config, model.table, model).of(*of_tokens, np.roll(ids_T, 1))
        exact, experts_NT = ExactModel(model.config.model, model, self.activation), model.table.route(*of_tokens)
        return exact.logits(self.rows(ids_T), experts_NT, self.rows(self.ids_R[common_W]), e_TH=e_TH)


def compare(
    child: StoredModel, parent: StoredModel, answers: Mapping[str, Domain], data: Path | None
) -> dict[str, Agreement]:
    """Compare the logits of domains of a new run with the logits of the model that it was made of.

    answers: name of a domain of `child` → domain of `parent` as which it must answer. data: folder of the child's held-out text;
    None: tokens are drawn.
    """
    domains, old_id_V = domains_of(child.config), matching_ids(parent.tokenizer.vocabulary, child.tokenizer.vocabulary)
    activation, agreements = parent.sizes.activation, {}
    for name, parent_domain in Bar(answers.items(), desc="comparing", unit="domain"):
        domain = domains.named(name)
        ids_R = child.tokenizer.slot_rows[domain.slot]
        old = _Reader(parent, look_up(old_id_V, ids_R), parent_domain, activation)
        held_out_T = None if data is None else _held_out_tokens(child, domain, data)
        agreements[name] = _agreement(old, _Reader(child, ids_R, domain, activation), held_out_T)
    return agreements


def _agreement(parent: _Reader, child: _Reader, held_out_T: np.ndarray | None) -> Agreement:
    """Compare parent and child in one domain; both readers have the parent's activation. If the child's configuration has another,
    compare the child once more with that, and measure its cost. held_out_T: held-out tokens of the child; None: draw tokens."""
    tokenizer, own_activation = child.model.tokenizer, child.model.config.model.activation
    # columns of logits: the rows W of the child's slot whose token has a row in the parent, too
    common_W = np.flatnonzero(parent.rows(parent.ids_R) >= 0)
    ids_T = _comparable_text(child.model, held_out_T, child.ids_R[common_W])
    rows_T = tokenizer.row_of[child.domain.slot, ids_T]
    parent_TW, child_TW = parent.logits(parent.ids_R[rows_T], common_W), child.logits(ids_T, common_W)
    own_difference = nats = None
    if own_activation != parent.activation:
        own_TW = replace(child, activation=own_activation).logits(ids_T, common_W)
        own_difference, next_columns = _largest_difference(own_TW, parent_TW), np.searchsorted(common_W, rows_T[1:])
        cost_T = token_losses(own_TW[:-1], next_columns) - token_losses(child_TW[:-1], next_columns)
        nats = float(cost_T.sum()) / max(len(cost_T), 1)
    text, exact = tokenizer.decode(ids_T.tolist()), _largest_difference(child_TW, parent_TW)
    counts = () if held_out_T is None else _count_texts(parent, child, held_out_T)
    return Agreement(text, len(ids_T), exact, own_difference, nats, *counts)


def _largest_difference(logits_TW: np.ndarray, other_TW: np.ndarray) -> float:
    return float(np.abs(logits_TW - other_TW).max())


def _held_out_tokens(run: StoredModel, domain: Domain, data: Path) -> np.ndarray:
    """Return the first held-out tokens of a domain, int64: enough for COMPARED_TEXTS texts. data: folder of prepared text."""
    prepared = PreparedData(data, [domain.name]).tokens(domain.name, "held_out", run.tokenizer.size)
    return prepared.read(0, min(prepared.tokens, COMPARED_TEXTS * COMPARED_TOKENS)).astype(np.int64)


def _comparable_text(child: StoredModel, held_out_T: np.ndarray | None, shared_ids: np.ndarray) -> np.ndarray:
    """Return the longest stretch of held-out tokens that both models have, without <eot>, cut to COMPARED_TOKENS and to the
    child's sequences.

    held_out_T: held-out tokens; None: tokens are drawn. shared_ids: tokens that both models have.
    """
    max_tokens, eot = min(COMPARED_TOKENS, child.config.model.seq_length), child.tokenizer.eot
    if held_out_T is None:
        drawable_ids = shared_ids[shared_ids != eot].astype(np.int64)
        return np.random.default_rng(child.config.seed).choice(drawable_ids, max_tokens)
    stretches = _stretches(held_out_T, np.isin(held_out_T, shared_ids) & (held_out_T != eot))
    # without a stretch one token, any that both have, is compared
    return max(stretches, key=len, default=shared_ids[:1].astype(np.int64))[:max_tokens]


def _stretches(ids_T: np.ndarray, is_readable_T: np.ndarray) -> list[np.ndarray]:
    """Return the stretches of readable tokens, in order: every other one of the stretches between the changes of the mask."""
    return np.split(ids_T, np.flatnonzero(np.diff(is_readable_T)) + 1)[0 if is_readable_T[0] else 1 :: 2]


def _count_texts(parent: _Reader, child: _Reader, held_out_T: np.ndarray) -> tuple[int, int]:
    """Cut held-out texts by both tokenizers. Return the number of texts, and of texts that the child cuts into other tokens."""
    tokenizer, length = child.model.tokenizer, min(COMPARED_TOKENS, child.model.config.model.seq_length)
    documents_T = _stretches(held_out_T, held_out_T != tokenizer.eot)
    texts = [
        tokenizer.decode(ids_T[start : start + length].tolist())
        for ids_T in documents_T
        for start in range(0, len(ids_T), length)
    ]
    parent_id_V = parent.ids_R[tokenizer.row_of[child.domain.slot]]  # for tokens with a row, as in texts
    differing = [text for text in texts if not np.array_equal(parent_id_V[child.cut(text)], parent.cut(text))]
    return len(texts), len(differing)
