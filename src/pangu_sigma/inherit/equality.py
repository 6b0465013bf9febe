"""Comparison of a child's logits with its parent's on the same text, by an exact path that adds in one order, and by the graph.

Shape suffixes: T tokens, N segments of the RRE layers, R rows of a slot of the child, W those of them that both have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.rows import MetRows
from pangu_sigma.inherit.parent import ParentWords, looked_up, parent_slot
from pangu_sigma.sections import Activation
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import parent_ids

if TYPE_CHECKING:
    from pangu_sigma.generate.graph.decoder import GraphDecoder

logger = logging.getLogger(__name__)

COMPARED_TOKENS = 16
"""Number of held-out tokens of each domain on which logits are compared."""
COMPARED_TEXTS = 100
"""Number of held-out texts, of at most as many tokens each, that both models cut."""
GRAPH_BYTES = 2 << 30
"""Maximum bytes of weights of a model whose graph is compared too: it is in memory whole, and copied when it is compiled."""


@dataclass(frozen=True)
class Cutting:
    """Comparison of how a new run (child) and the model that it was made of (parent) cut held-out texts into tokens.

    texts: number of texts. other: number of texts that the two cut differently. example: the first of these; None if there is none.
    delta: largest |Δlogit| after the example, of which each model reads its own tokens; None without an example, if the parent has
    no row for a token, or if the example is too long.
    """

    texts: int
    other: int = 0
    example: str | None = None
    delta: float | None = None


@dataclass(frozen=True)
class Agreement:
    """Differences between the logits of a new run (child) and of the model that it was made of (parent) in one domain.

    text, tokens: text that both models read as the same tokens, and its length; logits are compared after each token, for the
    tokens that both models have. exact: largest |Δlogit| if both compute by the NumPy network of generate/cpu/exact.py, with the
    parent's activation. fast: the same by compiled graphs, that of the child and the parent's if it has one; None without graphs.
    own_activation: as `exact`, but with the child's activation. activation_nats: loss that the child's activation adds, in nats
    per token; both None if the activations are equal. cutting: comparison of the tokens; None without held-out text.
    """

    text: str
    tokens: int
    exact: float
    fast: float | None = None
    own_activation: float | None = None
    activation_nats: float | None = None
    cutting: Cutting | None = None


@dataclass(frozen=True)
class _Reader:
    """Model that reads text. ids_R: its token id of each row of the child's slot, -1 for none. tokenizer, domain: how it cuts text.
    run: model whose tables route the tokens; None for a dense model. graph: None if it is not compared."""

    model: ExactModel
    ids_R: np.ndarray
    tokenizer: Tokenizer
    domain: Domain
    run: StoredModel | None = None
    graph: GraphDecoder | None = None

    @cached_property
    def met(self) -> MetRows | None:
        """Rows of pairs of tokens of a run."""
        return None if self.run is None else MetRows(self.run.config, self.run.table, self.run)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return the row of each token in the flattened slots, -1 for none."""
        rows = looked_up(self.tokenizer.row_of[self.domain.slot], ids)
        return np.where(rows >= 0, self.domain.slot * self.model.model.slot_rows + rows, -1)

    def cut(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, self.domain), np.int64)

    @property
    def cuts_by(self) -> tuple[str, list[str], set[int]]:
        """What decides into which tokens a text is cut: language, vocabulary, and tokens with a row in the slot."""
        tokens = set(self.tokenizer.slot_rows[self.domain.slot].tolist()) - {-1}
        return self.domain.language, self.tokenizer.vocabulary.pieces, tokens

    def logits(self, ids_T: np.ndarray, wanted_W: np.ndarray, last: int = 0) -> np.ndarray:
        """Return logits by the exact path, float32 [T, W]. wanted_W: rows of the child's slot. last: as in `ExactModel.logits`."""
        experts_NT, e_TH = np.empty((0, len(ids_T)), np.int32), None
        if self.run is not None and self.met is not None:
            of_tokens = ids_T, np.full_like(ids_T, self.domain.index), np.arange(len(ids_T))
            experts_NT = self.run.table.route(*of_tokens)
            e_TH = self.met.of(*of_tokens, np.roll(ids_T, 1))
        return self.model.logits(self.rows(ids_T), experts_NT, self.rows(self.ids_R[wanted_W]), last, e_TH)

    def graph_logits(self, ids_T: np.ndarray, wanted_W: np.ndarray) -> np.ndarray | None:
        """Return logits by the graph, float32 [T, W]; None if it is not compared."""
        if self.graph is None:
            return None
        self.graph.begin(0, self.domain)
        (logits_TR,) = self.graph.read([Chunk(0, ids_T.tolist(), len(ids_T))])
        return logits_TR[:, self.tokenizer.row_of[self.domain.slot, self.ids_R[wanted_W]]]


def agreements(model: StoredModel, child: Path, tokens: int = COMPARED_TOKENS) -> dict[str, Agreement]:
    """Compare each domain of a child with its dense parent `model`, on held-out text. child: run folder. tokens: most to read."""
    run, activation, words = open_model(child, "run"), model.sizes.activation, ParentWords(model)
    sizes = run.config.model.model_copy(update={"dense_layers": run.config.model.layers, "rre_layers": 0, "rows": []})
    parent = ExactModel(sizes if model.kind == "alpha" else model.config.model, model, activation)
    domains, known_V = domains_of(run.config), words.ids(run.tokenizer.vocabulary)

    def parent_of(domain: Domain) -> _Reader:
        slot, ids_R = parent_slot(domains.slot_names[domain.slot], words.slots), run.tokenizer.slot_rows[domain.slot]
        return _Reader(parent, looked_up(known_V, ids_R), *words.reading(run.tokenizer, domain, slot))

    graph = _graph(run) if activation == run.config.model.activation else None
    return _compare(run, domains, parent_of, activation, graph, Path(run.config.data.path), tokens)


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
    tokens are drawn. graphs: False to compare the NumPy networks of generate/cpu/exact.py alone, and compile no graph. tokens:
    maximum number of tokens of a domain.
    """
    known_V = parent_ids(old.tokenizer.vocabulary, child.tokenizer.vocabulary)
    activation = child.config.model.activation
    parent = ExactModel(old.config.model, old, old.config.model.activation)
    its_graph, graph = (_graph(old), _graph(child)) if graphs else (None, None)

    def parent_of(domain: Domain) -> _Reader:
        ids_R = child.tokenizer.slot_rows[domain.slot]
        its = replace(domains_of(old.config).named(origins[domain.name]), language=domain.language)
        return _Reader(parent, looked_up(known_V, ids_R), old.tokenizer, its, old, its_graph)

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
        parent = parent_of(domain)
        reader = _Reader(mine, child.tokenizer.slot_rows[domain.slot], child.tokenizer, domain, child, graph)
        wanted_W = np.flatnonzero(parent.rows(parent.ids_R) >= 0)
        held_out_T = None if data is None else _held_out(child, domain, data, tokens)
        ids_T = _common(child, held_out_T, reader.ids_R[wanted_W], tokens)
        rows_T = child.tokenizer.row_of[domain.slot, ids_T]
        its_TW, own_TW = parent.logits(parent.ids_R[rows_T], wanted_W), reader.logits(ids_T, wanted_W)
        graph_TW, its_graph_TW = (
            reader.graph_logits(ids_T, wanted_W),
            parent.graph_logits(parent.ids_R[rows_T], wanted_W),
        )
        fast = own_activation = nats = None
        if graph_TW is not None:
            fast = _largest(graph_TW, its_TW if its_graph_TW is None else its_graph_TW)
        if activation != model.activation:
            changed_TW = replace(reader, model=changed).logits(ids_T, wanted_W)
            own_activation, columns = _largest(changed_TW, its_TW), np.searchsorted(wanted_W, rows_T[1:])
            nats = _nats(changed_TW, columns) - _nats(own_TW, columns)
        words, exact = child.tokenizer.decode(ids_T.tolist()), _largest(own_TW, its_TW)
        cutting = None if held_out_T is None else _cutting(parent, reader, held_out_T, wanted_W, tokens)
        found[domain.name] = Agreement(words, len(ids_T), exact, fast, own_activation, nats, cutting)
    return found


def _largest(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


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
    from pangu_sigma.generate.graph.decoder import GraphDecoder

    return GraphDecoder.of(run, 1)


def _held_out(run: StoredModel, domain: Domain, data: Path, tokens: int) -> np.ndarray:
    """Return the first held-out tokens of a domain, int64: enough for COMPARED_TEXTS texts. data: folder of prepared text."""
    prepared = PreparedData(data).tokens(domain.name, "held_out", run.tokenizer.size)
    return prepared.read(0, min(prepared.tokens, COMPARED_TEXTS * tokens)).astype(np.int64)


def _common(run: StoredModel, held_out_T: np.ndarray | None, known: np.ndarray, tokens: int) -> np.ndarray:
    """Return the beginning of the longest text without <eot> and tokens that the parent lacks.

    held_out_T: held-out tokens; None: tokens are drawn. known: tokens that both models have. tokens: maximum length.
    """
    most = min(tokens, run.config.model.seq_length)
    if held_out_T is None:
        words = known[known != run.tokenizer.eot].astype(np.int64)
        return np.random.default_rng(run.config.seed).choice(words, most)
    readable = _stretches(held_out_T, np.isin(held_out_T, known) & (held_out_T != run.tokenizer.eot))
    return max(readable, key=len, default=known[:1].astype(np.int64))[:most]


def _stretches(ids_T: np.ndarray, kept_T: np.ndarray) -> list[np.ndarray]:
    """Return the stretches of tokens that are kept, in order."""
    return np.split(ids_T, np.flatnonzero(np.diff(kept_T)) + 1)[0 if kept_T[0] else 1 :: 2]


def _cutting(parent: _Reader, child: _Reader, held_out_T: np.ndarray, wanted_W: np.ndarray, tokens: int) -> Cutting:
    """Cut held-out texts as both models do. wanted_W: rows of the child's slot whose logits are compared."""
    longest, tokenizer = child.model.model.seq_length, child.tokenizer
    most = min(tokens, longest)
    documents = _stretches(held_out_T, held_out_T != tokenizer.eot)
    texts = [tokenizer.decode(each[at : at + most].tolist()) for each in documents for at in range(0, len(each), most)]
    if parent.cuts_by == child.cuts_by:
        return Cutting(len(texts))
    row_of = tokenizer.row_of[child.domain.slot]
    cut = [(text, child.cut(text), parent.cut(text)) for text in texts]
    other = [each for each in cut if not np.array_equal(parent.ids_R[row_of[each[1]]], each[2])]
    if not other:
        return Cutting(len(texts))
    text, own_T, its_T = other[0]
    delta = None
    if (parent.rows(its_T) >= 0).all() and max(len(own_T), len(its_T)) <= longest:
        delta = _largest(child.logits(own_T, wanted_W, 1), parent.logits(its_T, wanted_W, 1))
    return Cutting(len(texts), len(other), text, delta)


def _nats(logits_TW: np.ndarray, columns: np.ndarray) -> float:
    """Return the mean loss, in nats, of the next token in a text. columns: columns of these tokens, [T - 1]."""
    if not len(columns):
        return 0.0
    logits = logits_TW[:-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(-logs[np.arange(len(columns)), columns].mean())
