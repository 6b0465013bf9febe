"""The training-side graph as a decoder: every token reads the whole text again, so it is slow, and what a cache must agree with."""

from __future__ import annotations

import numpy as np

from pangu_sigma.data.sequences import documents_and_positions
from pangu_sigma.domains import Domain
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.graph.predictor import Predictor


class RereadingDecoder:
    """A `Decoder` whose lanes hold ids instead of keys and values."""

    def __init__(self, predictor: Predictor, lanes: int = 8):
        self.config, self.tokenizer, self.lanes = predictor.config, predictor.tokenizer, lanes
        self._predictor = predictor
        self._texts: dict[int, tuple[Domain, list[int]]] = {}

    def begin(self, lane: int, domain: Domain) -> None:
        """Empty a lane for a text of a domain."""
        self._texts[lane] = domain, []

    def copy(self, source: int, target: int) -> None:
        """Make the lane `target` hold what `source` holds."""
        domain, ids = self._texts[source]
        self._texts[target] = domain, list(ids)

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        """Logits, float32 [W, R] for each chunk, as `Decoder.read` has them."""
        texts = [(self._texts[chunk.lane][0], self._texts[chunk.lane][1] + chunk.ids) for chunk in chunks]
        nexts = [text for text, chunk in zip(texts, chunks, strict=True) if chunk.wanted == 1]
        together = iter(self._predictor.next_logits([ids for _, ids in nexts], [d for d, _ in nexts]) if nexts else ())
        found = []
        for (domain, ids), chunk in zip(texts, chunks, strict=True):
            if chunk.wanted == 1:
                found.append(next(together)[None])
            elif chunk.wanted:
                found.append(self._predictor.logits_along(ids, domain)[-chunk.wanted :])
            else:
                self._predictor.inputs([ids], [domain])  # refuses what cannot be read
                found.append(np.empty((0, self.config.model.slot_rows), np.float32))
        for text, chunk in zip(texts, chunks, strict=True):
            self._texts[chunk.lane] = text
        return found

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        """The expert of each token in each RRE layer, numbered within the domain's group, int [N, T]."""
        ids_T = np.array(ids)
        _, positions_T = documents_and_positions(ids_T, self.tokenizer.eot)
        return self._predictor.table.route(ids_T, np.full_like(ids_T, domain.index), positions_T) - domain.first_expert
