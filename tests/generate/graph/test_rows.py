"""Keys of rows in an exported graph, in the decoder and in the loader: the same for a thousand documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.toy_weights import NumberedRows
from mindspore import Tensor

from experiments.tiny import TINY_ROWS, tiny_config
from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.data.prepared import PreparedData, drawn_tables
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.graph.rows import GraphRows
from pangu_sigma.generate.rows import MetRows

pytestmark = pytest.mark.usefixtures("graph_mode")
DOCUMENTS = 1_000


def test_keys_of_a_thousand_documents_are_equal_in_loader_decoder_and_graph(tiny_data):
    config = tiny_config(tiny_data, model={"rows": TINY_ROWS}, train={"batch_size": 2})
    tokenizer, rng, length = PreparedData(tiny_data).tokenizer(), np.random.default_rng(3), config.model.seq_length
    table, weights = drawn_tables(config, tokenizer), NumberedRows(config)
    loader, domains = BatchLoader(config, Path(config.data.path), tokenizer, table), domains_of(config)
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
        ids_T, positions_T = (of[0].ravel() for of in (batch.ids_GBS, batch.positions_GBS))
        domains_T, before_T = np.repeat(domains_B, length), np.roll(ids_T, 1)
        assert np.array_equal(met.of(ids_T, domains_T, positions_T, before_T)[:, ends].T, expected_ET)
        for first in (0, length):  # of a graph that has one lane
            some, one = slice(first, first + length), np.zeros((1, 1), int)
            inputs = (ids_T[some], domains_T[some], positions_T[some], one, np.arange(length)[None])
            e_TH = graph(*(Tensor(values.astype(np.int32)) for values in inputs)).asnumpy()
            assert np.array_equal(e_TH[:, ends].T, expected_ET[:, some])
