"""Rows of tokens: their keys are those of training in the decoder and in an exported graph. That they are the same however a text
is cut into chunks is in cpu/test_decoder.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.toy_weights import NumberedRows, ToyWeights
from mindspore import Tensor

from experiments.tiny import TINY_ROWS, tiny_config
from pangu_sigma.config import Config
from pangu_sigma.data.batches import BatchLoader, open_samples
from pangu_sigma.data.prepared import PreparedData, drawn_tables
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.graph.rows import GraphRows
from pangu_sigma.generate.rows import MetRows
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.text.tokenizer import Tokenizer

DOCUMENTS = 1_000


@pytest.fixture(scope="module")
def config(tiny_data) -> Config:
    return tiny_config(tiny_data, model={"rows": TINY_ROWS}, train={"batch_size": 2})


@pytest.fixture(scope="module")
def tokenizer(tiny_data) -> Tokenizer:
    return PreparedData(tiny_data).tokenizer()


@pytest.fixture(scope="module")
def table(config, tokenizer) -> RoutingTable:
    return drawn_tables(config, tokenizer)


@pytest.mark.usefixtures("graph_mode")
def test_keys_of_a_thousand_documents_are_equal_in_loader_decoder_and_graph(config, tokenizer, table):
    rng, length, weights = np.random.default_rng(3), config.model.seq_length, NumberedRows(config)
    samples = open_samples(config, Path(config.data.path), "train", tokenizer.size)
    loader, domains = BatchLoader(config, samples, tokenizer, table), domains_of(config)
    ends = np.cumsum([entry.width for entry in config.model.rows]) - 1
    graph, met = GraphRows(config, table, weights), MetRows(config, table, weights, 2 * length)
    documents = 0
    while documents < DOCUMENTS:
        of_batch = [domains[d] for d in rng.choice(len(domains), 2, replace=False)]
        texts = []
        for domain in of_batch:
            used = tokenizer.slot_rows[domain.slot]
            ids_S1 = rng.choice(used[(used >= 0) & (used != tokenizer.eot)], length + 1)
            ids_S1[rng.random(length + 1) < 0.3] = tokenizer.eot
            texts.append(ids_S1)
            documents += int((ids_S1 == tokenizer.eot).sum())
        ids_BS1, domains_B = np.stack(texts), np.array([domain.index for domain in of_batch])
        batch = loader.assemble(ids_BS1[None], domains_B)
        expected_ET = batch.row_keys_EGBS.reshape(len(ends), -1)
        ids_T, positions_T = (values_GBS[0].ravel() for values_GBS in (batch.ids_GBS, batch.positions_GBS))
        domains_T, before_T = np.repeat(domains_B, length), np.roll(ids_T, 1)
        assert np.array_equal(met.of(ids_T, domains_T, positions_T, before_T)[:, ends].T, expected_ET)
        for first in (0, length):  # of a graph that has one lane
            lane, zero = slice(first, first + length), np.zeros((1, 1), int)
            inputs = (ids_T[lane], domains_T[lane], positions_T[lane], zero, np.arange(length)[None])
            e_TH = graph(*(Tensor(values.astype(np.int32)) for values in inputs)).asnumpy()
            assert np.array_equal(e_TH[:, ends].T, expected_ET[:, lane])


def test_a_row_that_no_token_met_is_zeros(config, table):
    weights, ids_T = ToyWeights(config), np.arange(200)
    zeros = np.zeros_like(ids_T)
    e_TH = MetRows(config, table, weights, 200).of(ids_T, zeros, zeros, zeros)
    first = 0
    for e, entry in enumerate(config.model.rows):
        keys_U, weight = weights.rows(e)
        stored = np.zeros((config.stored_rows(entry), entry.width), np.float32)
        stored[keys_U] = weight
        keys_T = table.row_keys(config.model.rows, ids_T[:, None], zeros[:, None], zeros[:, None])[e, :, 0]
        np.testing.assert_array_equal(e_TH[:, first : first + entry.width], stored[keys_T])
        first += entry.width
    without = MetRows(config, table, Unmet(config), 200).of(ids_T, zeros, zeros, zeros)
    assert without.shape == e_TH.shape and not without.any() and e_TH.any()


class Unmet(ToyWeights):
    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        return np.empty(0, np.int64), np.empty((0, self._rows[entry][1]), np.float32)
