"""Token ids in, logits of the next token out, from a training run: every call reads whole texts.

Shape suffixes: B sequences, S tokens of the longest, R rows of a slot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.state import load_trained
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.sequences import documents_and_positions
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.device import one_thread, use_cpu
from pangu_sigma.domains import Domain
from pangu_sigma.generate.exported import GRAPH_FILE, Export
from pangu_sigma.generate.graph.inference import InferenceGraph, any_length, signature
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.model.pangu_sigma import FFN_TENSORS
from pangu_sigma.rre.plan import pad_to_capacity, plan_batch
from pangu_sigma.rre.table import RoutingTable

logger = logging.getLogger(__name__)

_TABLE_BYTES = 64 << 20
"""Copies of a slot's word table that one call may make; the graph makes one for each position that is asked for."""


class Predictor:
    """A model that answers. `graph` takes the inputs of `InferenceGraph`."""

    def __init__(self, graph: Callable[..., Tensor], config: Config, tokenizer: Tokenizer, table: RoutingTable):
        self.graph = graph
        self.config = config
        self.tokenizer = tokenizer
        self.table = table

    @classmethod
    def from_run(cls, path: Path) -> Predictor:
        """The model of the newest intact checkpoint of a run folder. Raises ConfigError when it is none."""
        run = RunFolder.open(path)
        graph = inference_graph(run)
        graph.set_inputs(*any_length(run.config))
        return cls(graph, run.config, run.tokenizer, run.table)

    @classmethod
    def of_old_export(cls, export: Export) -> Predictor:
        """An export of before its graph had a cache. Raises ConfigError for one that takes and gives other arrays."""
        if export.facts and export.facts["signature"] != signature(export.config):
            raise ConfigError(
                f"{export.folder} takes and gives other arrays than this version; run `pangu-sigma export` on its run again"
            )
        logger.warning(
            "%s was exported before there was a cache, and reads the whole text for each token: export its run again",
            export.folder,
        )
        use_cpu()
        graph = nn.GraphCell(ms.load(str(export.folder / GRAPH_FILE)))
        graph.set_inputs(*any_length(export.config))  # one compilation for every length
        return cls(graph, export.config, export.tokenizer, export.table)

    def next_logits(self, sequences: list[list[int]], domains: list[Domain]) -> np.ndarray:
        """Logits over the rows of each sequence's slot, float32 [B, R]; rows without a token hold -inf.

        Raises ConfigError for an empty sequence, one longer than model.seq_length, an id that does not exist, or one for which the
        domain's slot has no row.
        """
        return self._logits(self.inputs(sequences, domains))

    def logits_along(self, ids: list[int], domain: Domain) -> np.ndarray:
        """Logits of the token after each token of one sequence, float32 [S, R]; what `next_logits` gives for each beginning of it.

        Raises ConfigError for what `next_logits` refuses.
        """
        rows_BS, positions_BS, documents_BS, _, _, *plan = self.inputs([ids], [domain])
        model = self.config.model
        at_once = max(1, _TABLE_BYTES // (4 * model.slot_rows * model.hidden))
        found = []
        for first in range(0, len(ids), at_once):
            last = np.arange(first, min(first + at_once, len(ids)), dtype=np.int32)
            slots = np.full_like(last, domain.slot)  # the graph takes any number of positions, of any sequence
            found.append(self._logits((rows_BS, positions_BS, documents_BS, slots, last, *plan)))
        return np.concatenate(found)

    def _logits(self, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        """Logits of the graph, with -inf for the rows that hold no token."""
        used = self.tokenizer.slot_rows[inputs[3]] >= 0
        with one_thread:
            logits = self.graph(*map(as_tensor, inputs)).asnumpy()
        return np.where(used, logits, np.float32(-np.inf))

    def inputs(self, sequences: list[list[int]], domains: list[Domain]) -> tuple[np.ndarray, ...]:
        """Inputs of the graph; shorter sequences are filled up with <eot>, which nobody before it sees."""
        lengths_B = np.array([len(ids) for ids in sequences])
        self._check_lengths(lengths_B)
        ids_BS = np.full((len(sequences), lengths_B.max()), self.tokenizer.eot, np.int64)
        for b, ids in enumerate(sequences):
            ids_BS[b, : len(ids)] = ids
        domains_B = np.array([d.index for d in domains])
        slots_B = np.array([d.slot for d in domains], np.int32)
        rows_BS = np.stack([self.tokenizer.rows(ids_S, d) for ids_S, d in zip(ids_BS, domains, strict=True)])
        documents_BS, positions_BS = documents_and_positions(ids_BS, self.tokenizer.eot)
        rows_BS = (slots_B[:, None] * self.config.model.slot_rows + rows_BS).astype(np.int32)
        last_B = (np.arange(len(sequences)) * ids_BS.shape[1] + lengths_B - 1).astype(np.int32)
        plan = self._plan(ids_BS, domains_B, positions_BS)
        return (rows_BS, positions_BS, documents_BS, slots_B, last_B, *plan)

    def _plan(self, ids_BS: np.ndarray, domains_B: np.ndarray, positions_BS: np.ndarray) -> tuple[np.ndarray, ...]:
        if not self.table.layers:
            return np.zeros((1, 1), np.int32), np.zeros((1, 1, 1), np.int32), np.zeros((1, 1), np.int32)
        return pad_to_capacity(plan_batch(self.table, ids_BS, domains_B, positions_BS, self.config.experts, None))

    def _check_lengths(self, lengths_B: np.ndarray) -> None:
        if lengths_B.min() < 1:
            raise ConfigError("a prompt has no tokens; give at least one character, or a domain with a language tag")
        if lengths_B.max() > self.config.model.seq_length:
            raise ConfigError(
                f"a sequence of {lengths_B.max()} tokens is longer than model.seq_length={self.config.model.seq_length}; shorten it"
            )


def inference_graph(run: RunFolder) -> InferenceGraph:
    """The deployed graph with the weights of a run's newest intact checkpoint."""
    use_cpu()
    trained, store = load_trained(run)
    layers = range(run.config.model.rre_layers * len(FFN_TENSORS))
    graph = InferenceGraph(run.config, [store.weights[i].asnumpy() for i in layers])
    for target, source in zip(graph.network.trainable_params(), trained.trainable_params(), strict=True):
        target.set_data(source)
    return graph
