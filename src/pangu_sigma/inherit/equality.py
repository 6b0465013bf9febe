"""Does a child answer as its parent? Logits of the same text, by a path that adds in one order, and by the graph beside it.

Shape suffixes: T tokens, N RRE layers, R rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pangu_sigma.checkpoint.checkpoint import Checkpoint, load_checkpoint
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.convert.dense_model import DenseModel
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.exact import ExactModel
from pangu_sigma.generate.weights import SavedWeights
from pangu_sigma.generate.predictor import Predictor
from pangu_sigma.inherit.descent import SlotRows
from pangu_sigma.inherit.parent import parent_ids

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


class ParentWeights:
    """The weights of a dense model, whose every layer is dense."""

    def __init__(self, model: DenseModel):
        self._model = model

    def tensor(self, name: str) -> np.ndarray:
        return self._model.tensors[name].read()

    def expert(self, layer: int, number: int, name: str) -> np.ndarray:
        raise KeyError(f"a dense model has no experts: {layer}, {number}, {name}")


def agreements(
    model: DenseModel, slots: list[SlotRows], child: Path, tokens: int = COMPARED_TOKENS
) -> dict[str, Agreement]:
    """How each domain of a child agrees with its parent, on held-out text of the domain."""
    run = RunFolder.open(child)
    sizes = run.config.model.model_copy(update={"dense_layers": run.config.model.layers, "rre_layers": 0})
    parent = ExactModel(sizes, ParentWeights(model), model.activation)
    weights = SavedWeights(load_checkpoint(run.checkpoints, run.identity))
    mine = ExactModel(run.config.model, weights, model.activation)
    changed = ExactModel(run.config.model, weights, run.config.model.activation)
    graph = None if model.activation != run.config.model.activation else _graph(run)
    found = {}
    for domain in tqdm(domains_of(run.config).all, desc="comparing", unit="domain", disable=None):
        slot = slots[domain.slot]
        both = np.flatnonzero(slot.parent_R >= 0)
        ids_T = _text(run, domain, slot.ids_R[both], tokens, Path(run.config.data.path))
        rows_T = run.tokenizer.row_of[domain.slot, ids_T]
        experts_NT = run.table.route(ids_T, np.full_like(ids_T, domain.index), np.arange(len(ids_T)))
        at = domain.slot * run.config.model.slot_rows
        its_TR = parent.logits(slot.parent_R[rows_T], np.empty((0, len(ids_T)), np.int32), slot.parent_R[both])
        own = (at + rows_T, experts_NT, at + both)
        mine_TR = mine.logits(*own)
        found[domain.name] = Agreement(
            run.tokenizer.decode(ids_T.tolist()),
            len(ids_T),
            float(np.abs(mine_TR - its_TR).max()),
            None if graph is None else _difference(graph, ids_T, domain, both, its_TR),
            None
            if graph is not None or model.activation == run.config.model.activation
            else _nats(changed.logits(*own), ids_T, slot, both) - _nats(mine_TR, ids_T, slot, both),
        )
    return found


def compare_trained(
    old: RunFolder,
    saved: Checkpoint,
    child: RunFolder,
    origins: dict[str, str],
    data: Path | None,
    graphs: bool = True,
    tokens: int = COMPARED_TOKENS,
) -> dict[str, Agreement]:
    """How domains of a run agree with those of the trained run that it was made of.

    saved: the checkpoint of `old`. origins: the domain of `old` that a domain of `child` must answer as. data: folder of held-out
    text of the child; None: tokens are drawn. graphs: False to compile nothing, and compare the exact path alone.
    """
    known_V = parent_ids(old.tokenizer.vocabulary, child.tokenizer.vocabulary)
    its = ExactModel(old.config.model, SavedWeights(saved), old.config.model.activation)
    checkpoint = load_checkpoint(child.checkpoints, child.identity)
    mine = ExactModel(child.config.model, SavedWeights(checkpoint), child.config.model.activation)
    its_graph, graph = (_graph(old), _graph(child)) if graphs else (None, None)
    found = {}
    for name, origin in tqdm(origins.items(), desc="comparing", unit="domain", disable=None):
        domain, theirs = domains_of(child.config).named(name), domains_of(old.config).named(origin)
        ids_R = child.tokenizer.slot_rows[domain.slot]
        its_rows_R = np.where(ids_R >= 0, _rows_of(old, theirs, known_V[np.maximum(ids_R, 0)]), -1)
        both = np.flatnonzero(its_rows_R >= 0)
        ids_T = _text(child, domain, ids_R[both], tokens, data)
        exact = [
            model.logits(
                of.slot * run.config.model.slot_rows + run.tokenizer.row_of[of.slot, text_T],
                run.table.route(text_T, np.full_like(text_T, of.index), np.arange(len(text_T))),
                of.slot * run.config.model.slot_rows + rows,
            )
            for model, run, of, text_T, rows in (
                (mine, child, domain, ids_T, both),
                (its, old, theirs, known_V[ids_T], its_rows_R[both]),
            )
        ]
        fast = None
        if graph is not None and its_graph is not None:
            of_parent = its_graph.logits_along(known_V[ids_T].tolist(), theirs)[:, its_rows_R[both]]
            fast = _difference(graph, ids_T, domain, both, of_parent)
        text = child.tokenizer.decode(ids_T.tolist())
        found[name] = Agreement(text, len(ids_T), float(np.abs(exact[0] - exact[1]).max()), fast)
    return found


def _rows_of(run: RunFolder, domain: Domain, ids: np.ndarray) -> np.ndarray:
    """Rows of token ids in the slot of a domain, -1 where there is none."""
    return np.where(ids >= 0, run.tokenizer.row_of[domain.slot, np.maximum(ids, 0)], -1)


def _graph(run: RunFolder) -> Predictor | None:
    """The graph of the child; None, and a word, if it is large."""
    size = 4 * run.config.num_params().total
    if size > GRAPH_BYTES:
        logger.warning(
            "the graph's logits are not compared: the model has %.1f GiB, and with more than %.1f a graph fills the memory; those "
            "of the exact path are",
            size / (1 << 30),
            GRAPH_BYTES / (1 << 30),
        )
        return None
    return Predictor.from_run(run.path)


def _text(run: RunFolder, domain: Domain, known: np.ndarray, tokens: int, data: Path | None) -> np.ndarray:
    """The first tokens of a domain's held-out text, without document ends and those that the parent lacks. int64 [T]

    data: the folder of that text; None: there is none, and tokens are drawn.
    """
    if data is None:
        words = known[known != run.tokenizer.eot].astype(np.int64)
        return np.random.default_rng(run.config.seed).choice(words, min(tokens, run.config.model.seq_length))
    prepared = PreparedData(data).tokens(domain.name, "held_out", run.tokenizer.size)
    ids = prepared.read(0, min(prepared.tokens, 50 * tokens)).astype(np.int64)
    ids = ids[np.isin(ids, known) & (ids != run.tokenizer.eot)][: min(tokens, run.config.model.seq_length)]
    return ids if len(ids) else known[:1].astype(np.int64)


def _difference(graph: Predictor, ids_T: np.ndarray, domain: Domain, both: np.ndarray, its_TR: np.ndarray) -> float:
    return float(np.abs(graph.logits_along(ids_T.tolist(), domain)[:, both] - its_TR).max())


def _nats(logits_TR: np.ndarray, ids_T: np.ndarray, slot: SlotRows, both: np.ndarray) -> float:
    """Mean loss of each next token of a text, over the tokens that both have."""
    if len(ids_T) < 2:
        return 0.0
    column = {int(token): i for i, token in enumerate(slot.ids_R[both])}
    columns = [column[int(token)] for token in ids_T[1:]]
    logits = logits_TR[:-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(-logs[np.arange(len(columns)), columns].mean())
