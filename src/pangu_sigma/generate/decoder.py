"""Decoder on the CPU, without MindSpore: growing texts, each in a lane of a KV cache, computed by `hidden_states`.

A text gets the same bits alone and in any batch, whole and token by token: the kernels add in one order (`few_rows.py`).

Shape suffixes: N segments of the RRE layers, T new tokens of all lanes, W wanted tokens, R rows of a slot, L layers, H hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ascend_ops.few_rows import GROUP, Precision
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.batches import documents_and_positions
from pangu_sigma.domains import Domain
from pangu_sigma.generate.cpu.network import hidden_states
from pangu_sigma.generate.cpu.operators import PASS_TOKENS, CpuOperators
from pangu_sigma.generate.rows import MetRows
from pangu_sigma.generate.weights import Weights
from pangu_sigma.host_memory import available_memory, check_cache_fits
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """New tokens of one text for a decoder to read.

    lane: number of the text's lane. ids: one or more tokens that follow those in the lane. wanted: number of tokens, counted from
    the last, whose successors' logits are requested: 0 … len(ids).
    """

    lane: int
    ids: list[int]
    wanted: int = 1


class LaneText(NamedTuple):
    """Text of a lane. length: number of its tokens. first: number of the first token of its last document, which continues.
    last: id of its last token, -1 before the first one."""

    domain: Domain
    length: int = 0
    first: int = 0
    last: int = -1


class _NewTokens(NamedTuple):
    """New tokens of all lanes, one chunk after another; int [T].

    before: id of the token before it in the lane, -1 for none. lane, at, first: as in `CpuOperators.take`. wanted: 1 if logits are
    needed. word: index of the token in the word table of all slots. experts_NT: expert of the token in each segment.
    """

    id: np.ndarray
    before: np.ndarray
    domain: np.ndarray
    slot: np.ndarray
    lane: np.ndarray
    at: np.ndarray
    first: np.ndarray
    wanted: np.ndarray
    word: np.ndarray
    experts_NT: np.ndarray

    def passes(self) -> Iterator[_NewTokens]:
        """Yield the tokens that the network computes together, at most PASS_TOKENS at a time."""
        for begin in range(0, len(self.id), PASS_TOKENS):
            yield _NewTokens(*(array[..., begin : begin + PASS_TOKENS] for array in self))


class Decoder:
    """Model with a KV cache of `lanes` lanes, each for one text of up to model.seq_length tokens. Its weights are memory-mapped
    files, or copies in the chosen precision.

    An <eot> ends a document as in training: later tokens start at position 0 and do not attend to earlier ones.

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

        Matrices are copied into large pages, which are faster than mapped files. float32 matrices that would take more than half
        of the free memory stay in their files, with a warning. Raises ConfigError if the KV cache does not fit in the free
        memory, and if model.hidden is not a multiple of the columns that share a scale in int4.
        """
        if precision == "int4" and config.model.hidden % GROUP:
            raise ConfigError(
                f"weights of int4 have a scale for {GROUP} columns, and model.hidden={config.model.hidden} is not a multiple of "
                f"{GROUP}; take weights of int8"
            )
        check_cache_fits(config, lanes)
        self.config, self.tokenizer, self.lanes = config, tokenizer, lanes
        self._table = table
        self._texts: dict[int, LaneText] = {}
        self._rows = MetRows(config, table, weights, PASS_TOKENS)
        is_mapped = precision == "float32" and not _copy_fits(config)
        self._operators = CpuOperators(config, weights, lanes, precision, is_mapped, self._rows.e)
        self._unused_rows = [np.flatnonzero(ids_R < 0) for ids_R in tokenizer.slot_rows]
        self.cache_bytes = self._operators.cache_bytes
        self.resident_bytes = self._operators.weight_bytes + self._rows.nbytes + self.cache_bytes
        weights_mib, cache_mib = (size / (1 << 20) for size in (self._operators.weight_bytes, self.cache_bytes))
        place = "in their files" if is_mapped else f"copied as {precision}"
        logger.info("weights %.1f MiB, matrices %s; cache of %d lanes %.1f MiB", weights_mib, place, lanes, cache_mib)

    def begin(self, lane: int, domain: Domain) -> None:
        """Empty a lane of the KV cache for a new text of a domain. Raises ConfigError if there is no such lane."""
        self._check_lane(lane)
        self._texts[lane] = LaneText(domain)

    def copy(self, source: int, target: int) -> None:
        """Copy the text in lane `source` to lane `target`, so that several texts share a prefix that is read once."""
        self._check_lane(target)
        self._texts[target] = self._texts[source]
        self._operators.copy(source, target, self._texts[source].length)

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        """Read new tokens of several lanes (each has one text in the KV cache), at most one chunk of a lane, together.

        Returns for each chunk the logits over the rows of the domain's slot (its share of the word table), float32 [wanted, R];
        -inf for rows without a token. Raises ConfigError, before anything is read, for an id that does not exist or has no row in
        the slot, and for more than model.seq_length tokens in a lane.
        """
        if not chunks:
            return []
        pass_logits: dict[int, list[np.ndarray]] = {chunk.lane: [] for chunk in chunks}  # of each pass, by lane
        for tokens in self._append(chunks).passes():
            wanted_W = np.flatnonzero(tokens.wanted)
            outputs_A = None if len(wanted_W) == len(tokens.id) else wanted_W
            hidden_WH = self._hidden_states(tokens, outputs_A)
            self._add_logits(hidden_WH, tokens.slot[wanted_W], tokens.lane[wanted_W], pass_logits)
        empty_0R = np.empty((0, self.config.model.slot_rows), np.float32)  # for a chunk without wanted tokens
        all_arrays = [pass_logits[chunk.lane] for chunk in chunks]
        return [arrays[0] if len(arrays) == 1 else np.concatenate([empty_0R, *arrays]) for arrays in all_arrays]

    def hidden_states(self, lane: int, ids: list[int]) -> np.ndarray:
        """Read new tokens of one lane, as `read` does, and return their hidden states before the first layer and after each,
        float32 [L + 1, T, H]."""
        passes: list[np.ndarray] = []
        for tokens in self._append([Chunk(lane, ids)]).passes():
            layers: list[np.ndarray] = []
            self._hidden_states(tokens, trace=layers)
            passes.append(np.stack(layers))
        return np.concatenate(passes, axis=1)

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        """Return the expert of each token of a text in each segment of the RRE layers, numbered over the segment, int [N, T].
        Raises ConfigError for an id that the domain cannot read."""
        self.tokenizer.rows(ids, domain)  # refuses ids that the domain cannot read
        ids_T = np.asarray(ids, np.int64)
        _, positions_T = documents_and_positions(ids_T, self.tokenizer.eot)
        return self._table.route(ids_T, np.full_like(ids_T, domain.index), positions_T)

    def _check_lane(self, lane: int) -> None:
        if not 0 <= lane < self.lanes:
            raise ConfigError(f"lane {lane} does not exist; this decoder has the lanes 0 … {self.lanes - 1}")

    def _append(self, chunks: list[Chunk]) -> _NewTokens:
        """Append chunks to the texts of their lanes, and return the new tokens. Raises ConfigError, before any text is changed, for
        an id that does not exist, a text that becomes too long, and a chunk that `Chunk` does not allow or whose lane has two."""
        tokens, texts = [], dict[int, LaneText]()
        for chunk in chunks:  # a Python loop: most chunks have one token
            text, count = self._texts[chunk.lane], len(chunk.ids)
            if not count or not 0 <= chunk.wanted <= count or chunk.lane in texts:
                raise ConfigError(
                    f"lane {chunk.lane}: logits of {chunk.wanted} of {count} new tokens are wanted; give each lane one chunk, of "
                    "one token or more, and want at most as many"
                )
            domain, length, first, last = text
            first_wanted = length + count - chunk.wanted
            for token in chunk.ids:
                is_wanted = length >= first_wanted
                tokens.append((token, last, domain.index, domain.slot, chunk.lane, length, first, is_wanted))
                length, last = length + 1, token
                if token == self.tokenizer.eot:
                    first = length  # the next token begins a document
            if length > self.config.model.seq_length:
                raise ConfigError(
                    f"a sequence of {length} tokens is longer than model.seq_length={self.config.model.seq_length}; shorten it"
                )
            texts[chunk.lane] = LaneText(domain, length, first, last)
        id_T, before_T, domain_T, slot_T, lane_T, at_T, first_T, wanted_T = np.array(tokens, np.int64).T
        if id_T.min() < 0 or id_T.max() >= self.tokenizer.size or (self.tokenizer.row_of[slot_T, id_T] < 0).any():
            for chunk in chunks:
                self.tokenizer.rows(chunk.ids, texts[chunk.lane].domain)  # raises an error for such an id
        word_T = slot_T * self.config.model.slot_rows + self.tokenizer.row_of[slot_T, id_T]
        experts_NT = self._table.route(id_T, domain_T, at_T - first_T)
        self._texts |= texts
        return _NewTokens(id_T, before_T, domain_T, slot_T, lane_T, at_T, first_T, wanted_T, word_T, experts_NT)

    def _hidden_states(
        self, tokens: _NewTokens, outputs_A: np.ndarray | None = None, trace: list[np.ndarray] | None = None
    ) -> np.ndarray:
        """Run the network on the new tokens of a pass, and return the last hidden states, [T, H], or [A, H] of the tokens with the
        indices `outputs_A` only. trace: list to which the hidden states of all layers are appended."""
        self._operators.take(tokens.lane, tokens.at, tokens.first)
        positions_T = tokens.at - tokens.first
        e_TH = self._rows.of(tokens.id, tokens.domain, positions_T, tokens.before)
        return hidden_states(
            self.config.model, self._operators, tokens.word, positions_T, tokens.experts_NT, e_TH, outputs_A, trace
        )

    def _add_logits(
        self, hidden_WH: np.ndarray, slot_W: np.ndarray, lane_W: np.ndarray, pass_logits: dict[int, list[np.ndarray]]
    ) -> None:
        """Append to pass_logits[lane] the logits of the wanted tokens of a pass, given their hidden states, slot by slot."""
        for slot in set(slot_W.tolist()):
            tokens_W = np.flatnonzero(slot_W == slot)
            logits_WR = self._operators.logits(hidden_WH, tokens_W, slot)
            if len(self._unused_rows[slot]):
                logits_WR[:, self._unused_rows[slot]] = -np.inf
            lanes = lane_W[tokens_W].tolist()
            for lane in dict.fromkeys(lanes):  # the tokens of a lane follow each other, and all have its slot
                begin = lanes.index(lane)
                pass_logits[lane].append(logits_WR[begin : begin + lanes.count(lane)])


def _copy_fits(config: Config) -> bool:
    """Return True if a float32 copy of the weights takes at most half of the free memory; else log a warning and return False."""
    free, size = available_memory(swap=False), 4 * config.num_params().total
    if free is None or size <= free // 2:
        return True
    logger.warning(
        "%.1f GiB of weights are more than half of the %.1f GiB of memory that are free: they are read from their files, which is "
        "slower; weights of int8 take a quarter, of int4 a seventh",
        size / (1 << 30),
        free / (1 << 30),
    )
    return False
