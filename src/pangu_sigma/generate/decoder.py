"""Interface of decoders: growing texts, each in a lane of a KV cache.

Shape suffixes: N segments of the RRE layers, T tokens of a text, W wanted tokens, R rows of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pangu_sigma.config import Config
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


class Decoder(Protocol):
    """Interface to a model with a KV cache of `lanes` lanes, each for one text of up to model.seq_length tokens.

    An <eot> ends a document as in training: later tokens start at position 0 and do not attend to earlier ones.
    """

    config: Config
    tokenizer: Tokenizer
    lanes: int

    def begin(self, lane: int, domain: Domain) -> None:
        """Empty a lane of the KV cache for a new text of a domain."""

    def copy(self, source: int, target: int) -> None:
        """Copy the text in lane `source` to lane `target`, so that several texts share a prefix that is read once."""

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        """Read new tokens of several lanes, at most one chunk of each, together.

        Returns for each chunk the logits over the rows of the domain's slot, float32 [wanted, R]; -inf for rows without a token.
        Raises ConfigError, before anything is read, for an id that does not exist or has no row in the slot, and for more than
        model.seq_length tokens in a lane.
        """

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        """Return the expert of each token of a text in each segment of the RRE layers, numbered over the segment, int [N, T]."""


def experts_by_table(table: RoutingTable, tokenizer: Tokenizer, domain: Domain, ids: list[int]) -> np.ndarray:
    """Return the experts of a text's tokens, as `Decoder.experts` does, from a routing table. Raises ConfigError for an id that
    the domain cannot read."""
    tokenizer.rows(ids, domain)
    ids_T = np.asarray(ids, np.int64)
    _, positions_T = documents_and_positions(ids_T, tokenizer.eot)
    return table.route(ids_T, np.full_like(ids_T, domain.index), positions_T)
