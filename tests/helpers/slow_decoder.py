"""A decoder that reads each text again from its start, in one order of addition: what other decoders are compared with."""

from __future__ import annotations

import numpy as np

from pangu_sigma.data.batches import documents_and_positions
from pangu_sigma.domains import Domain
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.rows import MetRows
from pangu_sigma.stored.model import StoredModel


class SlowDecoder:
    """A `Decoder` without a cache, of texts of one document."""

    def __init__(self, run: StoredModel, lanes: int = 4):
        self.config, self.tokenizer, self.lanes = run.config, run.tokenizer, lanes
        self._table = run.table
        self._rows = MetRows(run.config, run.table, run)
        self._model = ExactModel(run.config.model, run, run.config.model.activation)
        self._texts: dict[int, tuple[Domain, list[int]]] = {}

    def begin(self, lane: int, domain: Domain) -> None:
        self._texts[lane] = domain, []

    def copy(self, source: int, target: int) -> None:
        domain, ids = self._texts[source]
        self._texts[target] = domain, list(ids)

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        return [self._read(chunk) for chunk in chunks]

    def _read(self, chunk: Chunk) -> np.ndarray:
        domain, ids = self._texts[chunk.lane]
        ids += chunk.ids
        assert self.tokenizer.eot not in ids[:-1], "one document"
        ids_T = np.array(ids)
        first = domain.slot * self.config.model.slot_rows
        rows_T = first + self.tokenizer.row_of[domain.slot, ids_T]
        used_R = self.tokenizer.slot_rows[domain.slot] >= 0
        logits_WR = np.full((chunk.wanted, len(used_R)), -np.inf, np.float32)
        if chunk.wanted:
            experts_NT = self._route(domain, ids_T)
            wanted = first + np.flatnonzero(used_R)
            before_T = np.append(-1, ids_T[:-1])
            e_TH = self._rows.of(ids_T, np.full_like(ids_T, domain.index), np.arange(len(ids)), before_T)
            logits_WR[:, used_R] = self._model.logits(rows_T, experts_NT, wanted, e_TH)[-chunk.wanted :]
        return logits_WR

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        return self._route(domain, np.array(ids))

    def _route(self, domain: Domain, ids_T: np.ndarray) -> np.ndarray:
        _, positions_T = documents_and_positions(ids_T, self.tokenizer.eot)
        return self._table.route(ids_T, np.full_like(ids_T, domain.index), positions_T)
