"""Does a child answer as its parent? Logits of the same text, by a path that adds in one order, and by the graph beside it.

Shape suffixes: T tokens, N RRE layers, R rows of a slot of the child, W those of them that both have.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.graph.decoder import GraphDecoder
from pangu_sigma.inherit.parent import parent_ids
from pangu_sigma.inherit.tensor_origin import SlotRows
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model

logger = logging.getLogger(__name__)

COMPARED_TOKENS = 16
"""Tokens of held-out text of each domain on which logits are compared."""
GRAPH_BYTES = 2 << 30
"""Weights of the largest model whose graph is compared too: it is in memory whole, and copied when it is compiled."""


@dataclass(frozen=True)
class Agreement:
    """How a domain of the child agrees with the parent.

    text: the text that both read. tokens: its number of tokens; logits of the token after each are compared, over the tokens that
    both have. exact: largest |Δlogit| on the path that adds in one order. fast: that of the graph against it; None if it was not
    computed. activation_nats: what the child's activation costs on this text against the parent's, in nats per token; None if
    equal.
    """

    text: str
    tokens: int
    exact: float
    fast: float | None = None
    activation_nats: float | None = None


@dataclass(frozen=True)
class _Text:
    """What both models read, in the rows of a slot of the child: its tokens, and the rows whose logits are compared."""

    rows_T: np.ndarray
    wanted_W: np.ndarray


@dataclass(frozen=True)
class _Reader:
    """A model as it reads a text.

    rows_R: its row, in its flattened slots, for each row of the child's slot; -1 if it has none. The others are of a trained run,
    and None for a dense model: ids_R, its token id for each of these rows; domain, as which it reads them; graph, if compared.
    """

    model: ExactModel
    rows_R: np.ndarray
    ids_R: np.ndarray | None = None
    run: StoredModel | None = None
    domain: Domain | None = None
    graph: GraphDecoder | None = None

    @classmethod
    def trained(
        cls, run: StoredModel, model: ExactModel, domain: Domain, ids_R: np.ndarray, graph: GraphDecoder | None
    ) -> _Reader:
        rows_R = run.tokenizer.row_of[domain.slot, np.maximum(ids_R, 0)]
        first = domain.slot * run.config.model.slot_rows
        return cls(model, np.where((ids_R >= 0) & (rows_R >= 0), first + rows_R, -1), ids_R, run, domain, graph)

    def logits(self, text: _Text) -> np.ndarray:
        """By the exact path, float32 [T, W]."""
        experts_NT = np.empty((0, len(text.rows_T)), np.int32)
        if self.run is not None and self.ids_R is not None and self.domain is not None:
            ids_T = self.ids_R[text.rows_T]
            experts_NT = self.run.table.route(ids_T, np.full_like(ids_T, self.domain.index), np.arange(len(ids_T)))
        return self.model.logits(self.rows_R[text.rows_T], experts_NT, self.rows_R[text.wanted_W])

    def graph_logits(self, text: _Text) -> np.ndarray | None:
        """By the graph, float32 [T, W]; None if it is not compared."""
        if self.graph is None or self.ids_R is None or self.domain is None:
            return None
        first = self.domain.slot * self.model.model.slot_rows
        self.graph.begin(0, self.domain)
        (logits_TR,) = self.graph.read([Chunk(0, self.ids_R[text.rows_T].tolist(), len(text.rows_T))])
        return logits_TR[:, self.rows_R[text.wanted_W] - first]


def agreements(
    model: StoredModel, slots: list[SlotRows], child: Path, tokens: int = COMPARED_TOKENS
) -> dict[str, Agreement]:
    """How each domain of a child agrees with its parent, on held-out text of the domain."""
    run, activation = open_model(child, "run"), model.sizes.activation
    sizes = run.config.model.model_copy(update={"dense_layers": run.config.model.layers, "rre_layers": 0})
    parent = ExactModel(sizes, model, activation)
    mine, changed = (ExactModel(run.config.model, run, g) for g in (activation, run.config.model.activation))
    same = activation == run.config.model.activation
    graph = _graph(run) if same else None
    found = {}
    for domain in tqdm(domains_of(run.config).all, desc="comparing", unit="domain", disable=None):
        slot = slots[domain.slot]
        its = _Reader(parent, slot.parent_R)
        child_reader = _Reader.trained(run, mine, domain, slot.ids_R, graph)
        text = _text(run, domain, its.rows_R >= 0, tokens, Path(run.config.data.path))
        nats = None
        if not same:
            other = replace(child_reader, model=changed)
            nats = _nats(other.logits(text), text) - _nats(child_reader.logits(text), text)
        found[domain.name] = _agreement(child_reader, its, text, nats)
    return found


def compare_trained(
    old: StoredModel,
    child: StoredModel,
    origins: dict[str, str],
    data: Path | None,
    graphs: bool = True,
    tokens: int = COMPARED_TOKENS,
) -> dict[str, Agreement]:
    """How domains of a run agree with those of the trained run that it was made of.

    origins: the domain of `old` that a domain of `child` must answer as. data: folder of held-out
    text of the child; None: tokens are drawn. graphs: False to compile nothing, and compare the exact path alone.
    """
    known_V = parent_ids(old.tokenizer.vocabulary, child.tokenizer.vocabulary)
    parent, mine = (ExactModel(each.config.model, each, each.config.model.activation) for each in (old, child))
    its_graph, graph = (_graph(old), _graph(child)) if graphs else (None, None)
    found = {}
    for name, origin in tqdm(origins.items(), desc="comparing", unit="domain", disable=None):
        domain, theirs = domains_of(child.config).named(name), domains_of(old.config).named(origin)
        ids_R = child.tokenizer.slot_rows[domain.slot]
        its_ids_R = np.where(ids_R >= 0, known_V[np.maximum(ids_R, 0)], -1)
        its = _Reader.trained(old, parent, theirs, its_ids_R, its_graph)
        text = _text(child, domain, its.rows_R >= 0, tokens, data)
        found[name] = _agreement(_Reader.trained(child, mine, domain, ids_R, graph), its, text)
    return found


def _agreement(child: _Reader, parent: _Reader, text: _Text, nats: float | None = None) -> Agreement:
    """nats: what another activation costs. The graph of the child is compared with that of the parent, or its exact path."""
    assert child.run is not None and child.ids_R is not None
    its_TW, fast = parent.logits(text), None
    if (graph_TW := child.graph_logits(text)) is not None:
        of_graph_TW = parent.graph_logits(text)
        fast = float(np.abs(graph_TW - (its_TW if of_graph_TW is None else of_graph_TW)).max())
    words = child.run.tokenizer.decode(child.ids_R[text.rows_T].tolist())
    exact = float(np.abs(child.logits(text) - its_TW).max())
    return Agreement(words, len(text.rows_T), exact, fast, nats)


def _graph(run: StoredModel) -> GraphDecoder | None:
    """The graph of a run; None, and a word, if it is large."""
    size = 4 * run.config.num_params().total
    if size > GRAPH_BYTES:
        logger.warning(
            "the graph's logits are not compared: the model has %.1f GiB, and with more than %.1f a graph fills the memory; those "
            "of the exact path are",
            size / (1 << 30),
            GRAPH_BYTES / (1 << 30),
        )
        return None
    return GraphDecoder.of(run, 1)


def _text(run: StoredModel, domain: Domain, both_R: np.ndarray, tokens: int, data: Path | None) -> _Text:
    """The first tokens of a domain's held-out text, without document ends and those that the parent lacks.

    both_R: True for rows of the slot that both have. data: the folder of that text; None: there is none, and tokens are drawn.
    """
    wanted_W = np.flatnonzero(both_R)
    known, eot = run.tokenizer.slot_rows[domain.slot, wanted_W], run.tokenizer.eot
    most = min(tokens, run.config.model.seq_length)
    if data is None:
        words = known[known != eot].astype(np.int64)
        ids_T = np.random.default_rng(run.config.seed).choice(words, most)
    else:
        prepared = PreparedData(data).tokens(domain.name, "held_out", run.tokenizer.size)
        ids_T = prepared.read(0, min(prepared.tokens, 50 * tokens)).astype(np.int64)
        ids_T = ids_T[np.isin(ids_T, known) & (ids_T != eot)][:most]
    return _Text(run.tokenizer.row_of[domain.slot, ids_T if len(ids_T) else known[:1]], wanted_W)


def _nats(logits_TW: np.ndarray, text: _Text) -> float:
    """Mean loss of each next token of a text, over the tokens that both have."""
    if len(text.rows_T) < 2:
        return 0.0
    columns = np.searchsorted(text.wanted_W, text.rows_T[1:])
    logits = logits_TW[:-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(-logs[np.arange(len(columns)), columns].mean())
