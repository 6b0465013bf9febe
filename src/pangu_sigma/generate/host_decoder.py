"""A decoder on the CPU, without MindSpore: texts in lanes of a KV cache, read by `hidden_states`.

A text gets the same bits alone and in any batch, whole and token by token: the kernels add in one order (`few_rows.py`).

Shape suffixes: N RRE layers, T new tokens of all lanes, W wanted tokens, R rows of a slot, H hidden.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from ascend_ops.few_rows import Precision
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.sequences import documents_and_positions
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import Domain
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.host_network import hidden_states
from pangu_sigma.generate.host_operators import PASS_TOKENS, HostOperators
from pangu_sigma.generate.weights import Weights
from pangu_sigma.rre.table import RoutingTable

logger = logging.getLogger(__name__)


@dataclass
class _Text:
    """The text of a lane. length: number of its tokens. first: the number of its last document's first token, which the next token
    belongs to."""

    domain: Domain
    length: int = 0
    first: int = 0


@dataclass(frozen=True)
class _NewTokens:
    """New tokens of all lanes, one chunk after another; all int [T].

    row: in the flattened slots. lane, at, first: as in `HostOperators.take`.
    """

    id: np.ndarray
    row: np.ndarray
    domain: np.ndarray
    lane: np.ndarray
    at: np.ndarray
    first: np.ndarray


class HostDecoder:
    """A `Decoder` whose weights are read where they lie, mapped files for instance, or from copies of less precision."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        table: RoutingTable,
        weights: Weights,
        lanes: int = 4,
        precision: Precision = "float32",
    ):
        """precision: that of the matrices: experts, attention, dense FFN, and the word table as the head. Sums are float32."""
        self.config, self.tokenizer, self.lanes = config, tokenizer, lanes
        self._table = table
        self._operators = HostOperators(config, weights, lanes, precision)
        self._unused = [np.flatnonzero(rows < 0) for rows in tokenizer.slot_rows]
        self._texts: dict[int, _Text] = {}
        mib = [n / (1 << 20) for n in (self._operators.weight_bytes, self._operators.copied_bytes, self.cache_bytes)]
        logger.info("weights %.1f MiB, %.1f of them copied as %s; cache of %d lanes %.1f MiB", *mib[:2], precision, lanes, mib[2])

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache, when all lanes are full."""
        return self._operators.cache_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights and cache that are in memory when all experts and lanes are used; mapped files are counted."""
        return self._operators.weight_bytes + self.cache_bytes

    def begin(self, lane: int, domain: Domain) -> None:
        self._check_lane(lane)
        self._texts[lane] = _Text(domain)

    def copy(self, source: int, target: int) -> None:
        self._check_lane(target)
        self._texts[target] = text = replace(self._texts[source])
        self._operators.copy(source, target, text.length)

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        self.tokenizer.rows(ids, domain)
        ids_T = np.asarray(ids, np.int64)
        _, positions_T = documents_and_positions(ids_T, self.tokenizer.eot)
        return self._table.route(ids_T, np.full_like(ids_T, domain.index), positions_T) - domain.first_expert

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        new, texts = self._new_tokens(chunks)
        experts_NT = self._table.route(new.id, new.domain, new.at - new.first)
        wanted_T = np.concatenate([np.arange(len(chunk.ids)) >= len(chunk.ids) - chunk.wanted for chunk in chunks])
        self._texts |= texts
        found: dict[int, list[np.ndarray]] = defaultdict(list)
        for begin in range(0, len(new.id), PASS_TOKENS):
            self._pass(slice(begin, begin + PASS_TOKENS), new, experts_NT, wanted_T, found)
        nothing = np.empty((0, self.config.model.slot_rows), np.float32)
        logits = [found.get(chunk.lane, [nothing]) for chunk in chunks]
        return [each[0] if len(each) == 1 else np.concatenate(each) for each in logits]

    def _pass(
        self,
        some: slice,
        new: _NewTokens,
        experts_NT: np.ndarray,
        wanted_T: np.ndarray,
        found: dict[int, list[np.ndarray]],
    ) -> None:
        """Compute some of the new tokens, and append the wanted logits to those found for each lane."""
        lane_T, at_T, first_T = new.lane[some], new.at[some], new.first[some]
        self._operators.take(lane_T, at_T, first_T)
        hidden_TH = hidden_states(
            self.config.model, self._operators, new.row[some], at_T - first_T, experts_NT[:, some]
        )
        by_slot: dict[int, list[int]] = defaultdict(list)
        for t in np.flatnonzero(wanted_T[some]).tolist():
            by_slot[self._texts[int(lane_T[t])].domain.slot].append(t)
        for slot, wanted_W in by_slot.items():
            logits_WR = self._operators.logits(hidden_TH, np.array(wanted_W), slot)
            logits_WR[:, self._unused[slot]] = -np.inf
            lanes_W = lane_T[wanted_W]
            ends = [0, *(np.flatnonzero(np.diff(lanes_W)) + 1).tolist(), len(wanted_W)]
            for first, end in zip(ends[:-1], ends[1:], strict=True):
                found[int(lanes_W[first])].append(logits_WR[first:end])

    def _new_tokens(self, chunks: list[Chunk]) -> tuple[_NewTokens, dict[int, _Text]]:
        """What the chunks hold, and the texts of their lanes after them. Raises ConfigError for what cannot be read."""
        model, found, texts = self.config.model, [], {}
        for chunk in chunks:
            text, ids_T = self._texts[chunk.lane], np.asarray(chunk.ids, np.int64)
            if not 0 <= chunk.wanted <= len(ids_T) or not len(ids_T) or chunk.lane in texts:
                raise ConfigError(
                    f"lane {chunk.lane}: logits of {chunk.wanted} of {len(ids_T)} new tokens are wanted; give each lane one "
                    "chunk, of one token or more, and want at most as many"
                )
            row_T = self.tokenizer.rows(ids_T, text.domain) + text.domain.slot * model.slot_rows
            length = text.length + len(ids_T)
            if length > model.seq_length:
                raise ConfigError(
                    f"a sequence of {length} tokens is longer than model.seq_length={model.seq_length}; shorten it"
                )
            at_T = np.arange(text.length, length)
            begins_T = np.where(ids_T == self.tokenizer.eot, at_T + 1, text.first)  # of the token after each
            following_T = np.maximum.accumulate(begins_T)
            texts[chunk.lane] = _Text(text.domain, length, int(following_T[-1]))
            first_T = np.concatenate(([text.first], following_T[:-1]))
            domain_T, lane_T = np.full(len(ids_T), text.domain.index), np.full(len(ids_T), chunk.lane)
            found.append((ids_T, row_T, domain_T, lane_T, at_T, first_T))
        return _NewTokens(*(np.concatenate(each) for each in zip(*found, strict=True))), texts

    def _check_lane(self, lane: int) -> None:
        if not 0 <= lane < self.lanes:
            raise ConfigError(f"lane {lane} does not exist; this decoder has the lanes 0 … {self.lanes - 1}")
