"""Decoders: growing texts, each in a lane of a KV cache.

Shape suffixes: N segments of the RRE layers, T tokens of a text, W wanted tokens, R rows of a slot, L layers, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.sequences import documents_and_positions
from pangu_sigma.domains import Domain
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chunk:
    """New tokens of one text for a decoder to read.

    lane: number of the text's lane. ids: one or more tokens that follow those in the lane. wanted: number of tokens, counted from
    the last, whose successors' logits are requested: 0 … len(ids).
    """

    lane: int
    ids: list[int]
    wanted: int = 1


@dataclass(frozen=True)
class LaneText:
    """Text of a lane. length: number of its tokens. first: number of the first token of its last document, which continues.
    last: id of its last token, -1 before the first one."""

    domain: Domain
    length: int = 0
    first: int = 0
    last: int = -1


class Decoder:
    """Model with a KV cache of `lanes` lanes, each for one text of up to model.seq_length tokens.

    An <eot> ends a document as in training: later tokens start at position 0 and do not attend to earlier ones.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, table: RoutingTable, lanes: int):
        self.config, self.tokenizer, self.lanes = config, tokenizer, lanes
        self._table = table
        self._texts: dict[int, LaneText] = {}

    def begin(self, lane: int, domain: Domain) -> None:
        """Empty a lane of the KV cache for a new text of a domain. Raises ConfigError if there is no such lane."""
        self._check_lane(lane)
        self._texts[lane] = LaneText(domain)

    def copy(self, source: int, target: int) -> None:
        """Copy the text in lane `source` to lane `target`, so that several texts share a prefix that is read once."""
        self._check_lane(target)
        self._texts[target] = self._texts[source]

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        """Read new tokens of several lanes, at most one chunk of each, together.

        Returns for each chunk the logits over the rows of the domain's slot, float32 [wanted, R]; -inf for rows without a token.
        Raises ConfigError, before anything is read, for an id that does not exist or has no row in the slot, and for more than
        model.seq_length tokens in a lane.
        """
        raise NotImplementedError

    def hidden_states(self, lane: int, ids: list[int]) -> np.ndarray:
        """Read new tokens of one lane, as `read` does, and return their hidden states before the first layer and after each,
        float32 [L + 1, T, H]."""
        raise NotImplementedError

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

    def _texts_after(self, chunks: list[Chunk]) -> dict[int, LaneText]:
        """Return the texts of the lanes after the chunks. Raises ConfigError for chunks that cannot be read, whatever their ids."""
        texts: dict[int, LaneText] = {}
        for chunk in chunks:
            text, count = self._texts[chunk.lane], len(chunk.ids)
            if not count or not 0 <= chunk.wanted <= count or chunk.lane in texts:
                raise ConfigError(
                    f"lane {chunk.lane}: logits of {chunk.wanted} of {count} new tokens are wanted; give each lane one chunk, of "
                    "one token or more, and want at most as many"
                )
            length = text.length + count
            if length > self.config.model.seq_length:
                raise ConfigError(
                    f"a sequence of {length} tokens is longer than model.seq_length={self.config.model.seq_length}; shorten it"
                )
            ends = [text.length + i for i, token in enumerate(chunk.ids, 1) if token == self.tokenizer.eot]
            texts[chunk.lane] = LaneText(text.domain, length, ends[-1] if ends else text.first, chunk.ids[-1])
        return texts
