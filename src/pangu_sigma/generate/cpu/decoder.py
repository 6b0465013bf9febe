"""Decoder on the CPU, without MindSpore: texts in lanes of a KV cache, computed by `hidden_states`.

A text gets the same bits alone and in any batch, whole and token by token: the kernels add in one order (`few_rows.py`).

Shape suffixes: N segments of the RRE layers, T new tokens of all lanes, A tokens that ask for their hidden
states, W wanted tokens, R rows of a slot, H hidden, L layers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ascend_ops.few_rows import GROUP, Precision
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.generate.cpu.network import hidden_states
from pangu_sigma.generate.cpu.operators import PASS_TOKENS, CpuOperators
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.rows import MetRows
from pangu_sigma.generate.weights import Weights
from pangu_sigma.host_memory import available_memory, check_cache_fits
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _NewTokens:
    """New tokens of all lanes, one chunk after another; all int [T].

    lane, at, first: as in `CpuOperators.take`. row: row of the token in the flattened slots. wanted: True if logits are needed.
    before: id of the token before it in the lane, -1 for none.
    """

    id: np.ndarray
    before: np.ndarray
    domain: np.ndarray
    slot: np.ndarray
    lane: np.ndarray
    at: np.ndarray
    first: np.ndarray
    row: np.ndarray
    wanted: np.ndarray


class CpuDecoder(Decoder):
    """`Decoder` on the CPU, without MindSpore. Its weights are memory-mapped files, or copies in the chosen precision.

    cache_bytes: size of the KV cache in bytes, with all lanes full. resident_bytes: size of weights (mapped files too) and cache.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        table: RoutingTable,
        weights: Weights,
        lanes: int = 4,
        precision: Precision = "float32",
    ):
        """precision: precision of the matrices of experts, attention, dense FFNs and output head. Sums are float32.

        Matrices are copied into large pages, which are faster than mapped files. float32 ones that would take more than half of
        the free memory stay in their files, with a warning. Raises ConfigError if the KV cache does not fit in it, and for int4
        if a row of a matrix is not made of whole groups.
        """
        super().__init__(config, tokenizer, table, lanes)
        if precision == "int4" and config.model.hidden % GROUP:
            raise ConfigError(
                f"weights of int4 have a scale for {GROUP} columns, and model.hidden={config.model.hidden} is not a multiple of "
                f"{GROUP}; take weights of int8"
            )
        check_cache_fits(config, lanes)
        mapped = precision == "float32" and _is_large(config)
        self._rows = MetRows(config, table, weights, PASS_TOKENS)
        self._operators = CpuOperators(config, weights, lanes, precision, mapped, self._rows.e)
        self._unused = [np.flatnonzero(rows < 0) for rows in tokenizer.slot_rows]
        self.cache_bytes = self._operators.cache_bytes
        self.resident_bytes = self._operators.weight_bytes + self._rows.nbytes + self.cache_bytes
        mib = [n / (1 << 20) for n in (self._operators.weight_bytes, self._operators.copied_bytes, self.cache_bytes)]
        logger.info(
            "weights %.1f MiB, %.1f of them copied as %s; cache of %d lanes %.1f MiB",
            *mib[:2],
            precision,
            lanes,
            mib[2],
        )

    def copy(self, source: int, target: int) -> None:
        super().copy(source, target)
        self._operators.copy(source, target, self._texts[source].length)

    def hidden_states(self, lane: int, ids: list[int]) -> np.ndarray:
        chunk = Chunk(lane, ids, len(ids))
        texts, new = self._texts_after([chunk]), self._new_tokens([chunk])
        experts_NT = self._table.route(new.id, new.domain, new.at - new.first)
        self._texts |= texts
        passes: list[np.ndarray] = []
        for begin in range(0, len(ids), PASS_TOKENS):
            layers: list[np.ndarray] = []
            self._network(slice(begin, begin + PASS_TOKENS), new, experts_NT, None, layers)
            passes.append(np.stack(layers))
        return np.concatenate(passes, axis=1)

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        if not chunks:
            return []
        texts = self._texts_after(chunks)
        new = self._new_tokens(chunks)
        experts_NT = self._table.route(new.id, new.domain, new.at - new.first)
        self._texts |= texts
        logits: dict[int, list[np.ndarray]] = {chunk.lane: [] for chunk in chunks}
        for begin in range(0, len(new.id), PASS_TOKENS):
            self._pass(slice(begin, begin + PASS_TOKENS), new, experts_NT, logits)
        no_rows = np.empty((0, self.config.model.slot_rows), np.float32)
        of_chunks = [logits[chunk.lane] for chunk in chunks]
        return [parts[0] if len(parts) == 1 else np.concatenate([no_rows, *parts]) for parts in of_chunks]

    def _pass(self, part: slice, new: _NewTokens, experts_NT: np.ndarray, logits: dict[int, list[np.ndarray]]) -> None:
        """Compute a part of the new tokens, and append to logits[lane] the logits of its wanted tokens, slot by slot."""
        lane_T, wanted_W = new.lane[part], np.flatnonzero(new.wanted[part])
        # None: all are wanted
        hidden_WH = self._network(part, new, experts_NT, wanted_W if len(wanted_W) < len(lane_T) else None)
        slot_W, lane_W = new.slot[part][wanted_W], lane_T[wanted_W]
        for slot in set(slot_W.tolist()):
            of_slot_W = np.flatnonzero(slot_W == slot)
            logits_WR = self._operators.logits(hidden_WH, of_slot_W, slot)
            if len(self._unused[slot]):
                logits_WR[:, self._unused[slot]] = -np.inf
            # the tokens of a lane follow each other, and all have its slot
            for lane, rows in groupby(range(len(of_slot_W)), lane_W[of_slot_W].tolist().__getitem__):
                numbers = list(rows)
                logits[lane].append(logits_WR[numbers[0] : numbers[-1] + 1])

    def _network(
        self,
        part: slice,
        new: _NewTokens,
        experts_NT: np.ndarray,
        asking_A: np.ndarray | None,
        trace: list[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Run the network on a part of the new tokens, and return the hidden states of its tokens asking_A, float32 [A, H].

        experts_NT: expert of each new token in each segment. asking_A: None for all tokens of the part. trace: see `hidden_states`.
        """
        lane_T, at_T, first_T = new.lane[part], new.at[part], new.first[part]
        self._operators.take(lane_T, at_T, first_T)
        positions_T, experts_NT = at_T - first_T, experts_NT[:, part]
        e_TH = self._rows.of(new.id[part], new.domain[part], positions_T, new.before[part])
        return hidden_states(
            self.config.model, self._operators, new.row[part], positions_T, experts_NT, e_TH, asking_A, trace
        )

    def _new_tokens(self, chunks: list[Chunk]) -> _NewTokens:
        """Return the tokens of the chunks. Raises ConfigError for an id that does not exist or has no row."""
        tokens = []
        for chunk in chunks:  # a Python loop: most chunks have one token
            text, count = self._texts[chunk.lane], len(chunk.ids)
            first, before, index, slot = text.first, text.last, text.domain.index, text.domain.slot
            for i, token in enumerate(chunk.ids):
                at = text.length + i
                tokens.append((token, before, index, slot, chunk.lane, at, first, i >= count - chunk.wanted))
                before = token
                if token == self.tokenizer.eot:
                    first = at + 1
        id_T, before_T, domain_T, slot_T, lane_T, at_T, first_T, wanted_T = np.array(tokens, np.int64).T
        if id_T.min() < 0 or id_T.max() >= self.tokenizer.size or (self.tokenizer.row_of[slot_T, id_T] < 0).any():
            for chunk in chunks:
                self.tokenizer.rows(chunk.ids, self._texts[chunk.lane].domain)  # one of them raises the error
        row_T = slot_T * self.config.model.slot_rows + self.tokenizer.row_of[slot_T, id_T]
        return _NewTokens(id_T, before_T, domain_T, slot_T, lane_T, at_T, first_T, row_T, wanted_T)


def _is_large(config: Config) -> bool:
    """Return True, and warn, if a copy of the weights would take more than half of the free memory."""
    free, size = available_memory(swap=False), 4 * config.num_params().total
    if free is None or size <= free // 2:
        return False
    logger.warning(
        "%.1f GiB of weights are more than half of the %.1f GiB of memory that are free: they are read from their files, which is "
        "slower; weights of int8 take a quarter, of int4 a seventh",
        size / (1 << 30),
        free / (1 << 30),
    )
    return True
