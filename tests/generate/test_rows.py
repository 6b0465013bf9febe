"""The rows of a text are those that training reads for it, however a decoder reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.toy_weights import NumberedRows, ToyWeights

from experiments.tiny import TINY_ROWS, tiny_config
from pangu_sigma.config import Config
from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.data.prepared import PreparedData, drawn_tables
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.cpu.decoder import CpuDecoder
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.rows import MetRows
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def config(tiny_data) -> Config:
    return tiny_config(tiny_data, model={"rows": TINY_ROWS}, train={"batch_size": 2})


@pytest.fixture(scope="module")
def tokenizer(tiny_data) -> Tokenizer:
    return PreparedData(tiny_data).tokenizer()


@pytest.fixture(scope="module")
def table(config, tokenizer) -> RoutingTable:
    return drawn_tables(config, tokenizer)


def test_a_decoder_reads_the_rows_that_training_reads(config, tokenizer, table, monkeypatch):
    """Of two texts in two lanes that held others, chunk by chunk, alone or together; documents end in chunks and between them."""
    rng, length, domains = np.random.default_rng(0), config.model.seq_length, domains_of(config)
    decoder = CpuDecoder(config, tokenizer, table, NumberedRows(config), lanes=3)
    texts = []
    for domain in (domains[0], domains[2]):
        used = tokenizer.slot_rows[domain.slot]
        ids = rng.choice(used[(used >= 0) & (used != tokenizer.eot)], length)
        ids[[4, 5, 15]] = tokenizer.eot
        texts.append((domain, ids))
    loader = BatchLoader(config, Path(config.data.path), tokenizer, table)
    ids_GBS1 = np.stack([np.append(ids, tokenizer.eot) for _, ids in texts])[None]
    expected_EBS = loader.assemble(ids_GBS1, np.array([domain.index for domain, _ in texts])).row_keys_EGBS[:, 0]
    ends = np.cumsum([entry.width for entry in config.model.rows]) - 1
    seen: list[np.ndarray] = []
    found = MetRows.of
    monkeypatch.setattr(MetRows, "of", lambda *each: seen.append(found(*each)) or seen[-1])

    def keys(chunks: list[Chunk]) -> list[np.ndarray]:
        seen.clear()
        decoder.read(chunks)
        cuts = np.cumsum([len(chunk.ids) for chunk in chunks])[:-1]
        return np.split(np.concatenate(seen)[:, ends].T, cuts, axis=1)

    for size in (1, 5, 16, length):
        parts: list[list[np.ndarray]] = [[], []]
        for lane, (domain, _) in enumerate(texts):
            decoder.begin(lane, domain)
        for first in range(0, length, size):
            chunks = [Chunk(lane, ids[first : first + size].tolist()) for lane, (_, ids) in enumerate(texts)]
            of_each = keys(chunks) if size % 2 else [keys([chunk])[0] for chunk in chunks]
            for part, keys_ES in zip(parts, of_each, strict=True):
                part.append(keys_ES)
        for lane, part in enumerate(parts):
            np.testing.assert_array_equal(np.concatenate(part, axis=1), expected_EBS[:, lane])
    (domain, ids), cut = texts[0], 9
    decoder.begin(1, domain)
    decoder.read([Chunk(1, ids[:cut].tolist())])
    decoder.copy(1, 2)
    (keys_ES,) = keys([Chunk(2, ids[cut:].tolist())])
    np.testing.assert_array_equal(keys_ES, expected_EBS[:, 0, cut:])


def test_a_row_that_no_token_met_is_zeros(config, table):
    weights, ids_T = ToyWeights(config), np.arange(200)
    nothing = np.zeros_like(ids_T)
    e_TH = MetRows(config, table, weights, 200).of(ids_T, nothing, nothing, nothing)
    first = 0
    for e, entry in enumerate(config.model.rows):
        keys_U, weight = weights.rows(e)
        whole = np.zeros((config.stored_rows(entry), entry.width), np.float32)
        whole[keys_U] = weight
        keys_T = table.row_keys(config.model.rows, ids_T[:, None], nothing[:, None], nothing[:, None])[e, :, 0]
        np.testing.assert_array_equal(e_TH[:, first : first + entry.width], whole[keys_T])
        first += entry.width
    none = MetRows(config, table, Unmet(config), 200).of(ids_T, nothing, nothing, nothing)
    assert none.shape == e_TH.shape and not none.any() and e_TH.any()


class Unmet(ToyWeights):
    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        return np.empty(0, np.int64), np.empty((0, self._rows[entry][1]), np.float32)
