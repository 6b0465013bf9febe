"""Comparison of a child's logits with its parent's on the same text, by an exact path that adds in one order, and by the graph.

Shape suffixes: T tokens, N RRE layers, R rows of a slot of the child, W those of them that both have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.config import Activation
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
"""Number of held-out tokens of each domain on which logits are compared."""
GRAPH_BYTES = 2 << 30
"""Maximum bytes of weights of a model whose graph is compared too: it is in memory whole, and copied when it is compiled."""


@dataclass(frozen=True)
class Agreement:
    """Differences between the logits of a new run (child) and of the model that it was made of (parent) in one domain.

    text: text that both models read. tokens: its length; after each token, logits of the vocabulary that both have are compared.
    exact: largest |Δlogit| on the path that adds in one order. fast: largest |Δlogit| of the graph; None if it was not computed.
    activation_nats: loss that the child's other activation adds, in nats per token; None if the activations are equal.
    """

    text: str
    tokens: int
    exact: float
    fast: float | None = None
    activation_nats: float | None = None


@dataclass(frozen=True)
class _Text:
    """Text that both models read, as rows of a slot of the child: its tokens, and the rows whose logits are compared."""

    rows_T: np.ndarray
    wanted_W: np.ndarray


@dataclass(frozen=True)
class _Reader:
    """Model that reads a text.

    rows_R: its row, in its flattened slots, for each row of the child's slot; -1 if it has none. The other fields are of a trained
    run, and None for a dense model: ids_R, its token id of each row; domain of the text; graph, if it is compared.
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
        """Return logits by the exact path, float32 [T, W]."""
        experts_NT = np.empty((0, len(text.rows_T)), np.int32)
        if self.run is not None and self.ids_R is not None and self.domain is not None:
            ids_T = self.ids_R[text.rows_T]
            experts_NT = self.run.table.route(ids_T, np.full_like(ids_T, self.domain.index), np.arange(len(ids_T)))
        return self.model.logits(self.rows_R[text.rows_T], experts_NT, self.rows_R[text.wanted_W])

    def graph_logits(self, text: _Text) -> np.ndarray | None:
        """Return logits by the graph, float32 [T, W]; None if it is not compared."""
        if self.graph is None or self.ids_R is None or self.domain is None:
            return None
        first = self.domain.slot * self.model.model.slot_rows
        self.graph.begin(0, self.domain)
        (logits_TR,) = self.graph.read([Chunk(0, self.ids_R[text.rows_T].tolist(), len(text.rows_T))])
        return logits_TR[:, self.rows_R[text.wanted_W] - first]


def agreements(
    model: StoredModel, slots: list[SlotRows], child: Path, tokens: int = COMPARED_TOKENS
) -> dict[str, Agreement]:
    """Compare each domain of a child with its dense parent `model`, on held-out text. child: run folder. slots: their rows."""
    run, activation = open_model(child, "run"), model.sizes.activation
    sizes = run.config.model.model_copy(update={"dense_layers": run.config.model.layers, "rre_layers": 0})
    parent = ExactModel(sizes, model, activation)
    graph = _graph(run) if activation == run.config.model.activation else None
    domains, data = domains_of(run.config).all, Path(run.config.data.path)
    return _compare(run, domains, lambda d: _Reader(parent, slots[d.slot].parent_R), activation, graph, data, tokens)


def compare_trained(
    old: StoredModel,
    child: StoredModel,
    origins: dict[str, str],
    data: Path | None,
    graphs: bool = True,
    tokens: int = COMPARED_TOKENS,
) -> dict[str, Agreement]:
    """Compare the logits of domains of a run with those of the trained run `old` that it was made of.

    origins: domain of `child` → domain of `old` whose answers it must give. data: folder of held-out text of the child; None:
    tokens are drawn. graphs: False to compile nothing, and compare the exact path alone.
    """
    known_V = parent_ids(old.tokenizer.vocabulary, child.tokenizer.vocabulary)
    activation = child.config.model.activation
    parent = ExactModel(old.config.model, old, old.config.model.activation)
    its_graph, graph = (_graph(old), _graph(child)) if graphs else (None, None)

    def parent_of(domain: Domain) -> _Reader:
        ids_R = child.tokenizer.slot_rows[domain.slot]
        its_ids_R = np.where(ids_R >= 0, known_V[np.maximum(ids_R, 0)], -1)
        return _Reader.trained(old, parent, domains_of(old.config).named(origins[domain.name]), its_ids_R, its_graph)

    domains = [domains_of(child.config).named(name) for name in origins]
    return _compare(child, domains, parent_of, activation, graph, data, tokens)


def _compare(
    child: StoredModel,
    domains: Sequence[Domain],
    parent_of: Callable[[Domain], _Reader],
    activation: Activation,
    graph: GraphDecoder | None,
    data: Path | None,
    tokens: int,
) -> dict[str, Agreement]:
    """Compare domains of a child with their parents.

    activation: the parent's, which the child computes too. graph: the child's; it is compared with that of the parent, or with the
    parent's exact path. data: folder of held-out text; None: tokens are drawn.
    """
    model = child.config.model
    mine, changed = (ExactModel(model, child, each) for each in (activation, model.activation))
    found = {}
    for domain in Bar(domains, desc="comparing", unit="domain"):
        parent, ids_R = parent_of(domain), child.tokenizer.slot_rows[domain.slot]
        reader = _Reader.trained(child, mine, domain, ids_R, graph)
        text = _text(child, domain, parent.rows_R >= 0, tokens, data)
        its_TW, own_TW, graph_TW = parent.logits(text), reader.logits(text), reader.graph_logits(text)
        fast = nats = None
        if graph_TW is not None:
            its_graph_TW = parent.graph_logits(text)
            fast = float(np.abs(graph_TW - (its_TW if its_graph_TW is None else its_graph_TW)).max())
        if activation != model.activation:
            nats = _nats(replace(reader, model=changed).logits(text), text) - _nats(own_TW, text)
        words = child.tokenizer.decode(ids_R[text.rows_T].tolist())
        exact = float(np.abs(own_TW - its_TW).max())
        found[domain.name] = Agreement(words, len(text.rows_T), exact, fast, nats)
    return found


def _graph(run: StoredModel) -> GraphDecoder | None:
    """Return the graph of a run; None, with a warning, if it is large."""
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
    """Return the first tokens of a domain's held-out text, without <eot> and tokens that the parent lacks.

    both_R: True for rows of the slot that both have. data: folder of that text; None: tokens are drawn.
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
    """Return the mean loss of the next token in a text, in nats, over the tokens that both have."""
    if len(text.rows_T) < 2:
        return 0.0
    columns = np.searchsorted(text.wanted_W, text.rows_T[1:])
    logits = logits_TW[:-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(-logs[np.arange(len(columns)), columns].mean())
