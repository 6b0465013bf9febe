"""A decoder on the CPU, without MindSpore: texts in lanes of a KV cache, read by `hidden_states`.

Shape suffixes: N RRE layers, T new tokens of all lanes, W wanted tokens, R rows of a slot, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.sequences import documents_and_positions
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import Domain
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.host_network import hidden_states
from pangu_sigma.generate.host_operators import HostOperators
from pangu_sigma.generate.weights import Weights
from pangu_sigma.rre.table import RoutingTable

Precision = Literal["float32", "float16", "int8"]


@dataclass
class _Lane:
    """The text of a lane. length: number of its tokens. first: the number of the first token of its last document."""

    domain: Domain
    length: int = 0
    first: int = 0


class HostDecoder:
    """A `Decoder`."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        table: RoutingTable,
        weights: Weights,
        lanes: int = 4,
        precision: Precision = "float32",
    ):
        self.config, self.tokenizer, self.lanes = config, tokenizer, lanes
        self._table = table
        self._operators = HostOperators(config.model, weights, lanes)
        self._texts: dict[int, _Lane] = {}

    def begin(self, lane: int, domain: Domain) -> None:
        self._texts[lane] = _Lane(domain)

    def copy(self, source: int, target: int) -> None:
        text = self._texts[source]
        self._texts[target] = _Lane(text.domain, text.length, text.first)
        self._operators.copy(source, target, text.length)

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        ids_T = np.array(ids)
        _, positions_T = documents_and_positions(ids_T, self.tokenizer.eot)
        return self._table.route(ids_T, np.full_like(ids_T, domain.index), positions_T) - domain.first_expert

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        model, rows = self.config.model, []
        for chunk in chunks:
            text = self._texts[chunk.lane]
            rows.append(self.tokenizer.rows(chunk.ids, text.domain) + text.domain.slot * model.slot_rows)
            if text.length + len(chunk.ids) > model.seq_length:
                raise ConfigError(
                    f"a text of {text.length + len(chunk.ids)} tokens is longer than model.seq_length={model.seq_length}; shorten it"
                )
        lanes, numbers, firsts, ids, domains = [], [], [], [], []
        for chunk in chunks:
            text = self._texts[chunk.lane]
            for token in chunk.ids:
                lanes.append(chunk.lane)
                numbers.append(text.length)
                firsts.append(text.first)
                ids.append(token)
                domains.append(text.domain.index)
                text.length += 1
                if token == self.tokenizer.eot:
                    text.first = text.length
        at_T, first_T = np.array(numbers), np.array(firsts)
        self._operators.take(np.array(lanes), at_T, first_T)
        experts_NT = self._table.route(np.array(ids), np.array(domains), at_T - first_T)
        hidden_TH = hidden_states(model, self._operators, np.concatenate(rows), at_T - first_T, experts_NT)
        found, end = [], 0
        for chunk in chunks:
            end += len(chunk.ids)
            slot = self._texts[chunk.lane].domain.slot
            logits_WR = self._operators.logits(hidden_TH[end - chunk.wanted : end], slot * model.slot_rows)
            found.append(np.where(self.tokenizer.slot_rows[slot] >= 0, logits_WR, np.float32(-np.inf)))
        return found
