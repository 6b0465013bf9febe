"""A decoder without a network: logits of a hash of the text so far, ids that are letters, and a check of each call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.text.tokenizer import Tokenizer

EOT = 9
SURFACES = [*(letter.encode() for letter in "abcdefghi"), b"", b" ", b"\xe4", b"\xbb", b"\x8a", b"."]
"""Surfaces of the ids; 9 is <eot>, 11 to 13 are the bytes of 今."""


class FakeDecoder:
    """A `Decoder` that remembers each lane's text. Slot 0 has a row for each id, slot 1 has them in reverse, each an empty row.

    asked: number of chunks of each reading. tokens: number of tokens that were read.
    """

    def __init__(
        self,
        lanes: int = 4,
        seq_length: int = 24,
        logits: Callable[[Domain, Sequence[int]], np.ndarray] | None = None,
        surfaces: Sequence[bytes] = SURFACES,
    ):
        """logits: of the ids that follow a text, [V]; by default drawn by its hash."""
        self.lanes = lanes
        sizes = {"hidden": 4, "ffn": 4, "heads": 1, "dense_layers": 1, "rre_layers": 2, "seq_length": seq_length}
        domains = [{"name": "up", "slot": "a"}, {"name": "reversed", "slot": "b"}]
        self.config = parse_config({"name": "fake", "model": sizes, "domains": domains})
        self.up, self.reversed = domains_of(self.config)
        self.tokenizer: Any = _tokenizer(surfaces)
        self._logits = logits or self._drawn
        self.texts: dict[int, tuple[Domain, list[int]]] = {}
        self.asked: list[int] = []
        self.tokens = 0

    def begin(self, lane: int, domain: Domain) -> None:
        assert 0 <= lane < self.lanes
        self.texts[lane] = domain, []

    def copy(self, source: int, target: int) -> None:
        domain, ids = self.texts[source]
        assert self.texts[target] == (domain, []), "an empty lane of the same domain"
        self.texts[target] = domain, list(ids)

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        assert chunks and len({chunk.lane for chunk in chunks}) == len(chunks), "one chunk of a lane"
        self.asked.append(len(chunks))
        return [self._read(chunk) for chunk in chunks]

    def _read(self, chunk: Chunk) -> np.ndarray:
        domain, ids = self.texts[chunk.lane]
        assert 0 <= chunk.wanted <= len(chunk.ids) and chunk.ids
        rows_V = self.tokenizer.row_of[domain.slot]
        if min(rows_V[chunk.ids]) < 0 or len(ids) + len(chunk.ids) > self.config.model.seq_length:
            raise ConfigError("not readable")
        ids += chunk.ids
        self.tokens += len(chunk.ids)
        found = np.full((chunk.wanted, self.tokenizer.slot_rows.shape[1]), -np.inf, np.float32)
        for row, end in enumerate(range(len(ids) - chunk.wanted + 1, len(ids) + 1)):
            found[row, rows_V] = self._logits(domain, ids[:end])
        return found

    def _drawn(self, domain: Domain, ids: Sequence[int]) -> np.ndarray:
        digest = hashlib.blake2b(bytes([domain.index, *ids]), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest, "little")).normal(size=self.tokenizer.size) * 2

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        """Depends on the position, as tables that spread a token over experts do; <eot> ends a document."""
        positions, at = [], 0
        for token in ids:
            positions.append(at)
            at = 0 if token == EOT else at + 1
        return np.array([np.array(ids) + positions, np.array(ids) + domain.index])


def _tokenizer(surfaces: Sequence[bytes]) -> SimpleNamespace:
    ids = np.arange(len(surfaces))
    slot_rows = np.stack([[*ids, -1], [-1, *ids[::-1]]]).astype(np.int32)
    found = SimpleNamespace(
        eot=EOT,
        size=len(surfaces),
        slot_rows=slot_rows,
        row_of=np.stack([ids, len(surfaces) - ids]).astype(np.int32),
        vocabulary=SimpleNamespace(surfaces=list(surfaces)),
        prompt=lambda text, domain: [list(surfaces).index(letter.encode()) for letter in text],
        decode=lambda some: b"".join(surfaces[i] for i in some).decode("utf-8", errors="replace"),
    )
    found.rows = lambda ids, domain: Tokenizer.rows(found, ids, domain)
    return found
