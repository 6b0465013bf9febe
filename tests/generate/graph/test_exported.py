"""The graph of an export gives the logits and tokens of the decoder, for every domain."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from helpers.slow_decoder import SlowDecoder
from helpers.toy_weights import ToyWeights
from mindspore import nn

from experiments.tiny import tiny_config
from pangu_sigma.convert.mindir import write_graph
from pangu_sigma.data.prepared import PreparedData, drawn_tables
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.graph.cached import CachedGraph
from pangu_sigma.generate.graph.exported import ExportedGraph
from pangu_sigma.stored.open import open_model

pytestmark = pytest.mark.usefixtures("graph_mode")

TEXTS = {"en": "the cat sees a small old", "zh": "今天天气不错", "code": "x y total"}


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    used = np.isfinite(expected)
    assert (used == np.isfinite(found)).all()
    np.testing.assert_allclose(found[used], expected[used], rtol=0, atol=2e-5)


def test_a_text_read_in_parts_has_the_logits_of_the_exact_path(tiny_graph, tiny_run):
    run = open_model(tiny_run, "run")
    slow = SlowDecoder(run)
    for domain in domains_of(run.config):
        ids = run.tokenizer.prompt(TEXTS[domain.name], domain)
        slow.begin(0, domain)
        (expected,) = slow.read([Chunk(0, ids, len(ids))])
        parts = [tiny_graph.read(domain, ids[begin:end], begin) for begin, end in ((0, 2), (2, 3), (3, len(ids)))]
        logits, tokens = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        same(logits, expected)
        assert tokens.tolist() == run.tokenizer.slot_rows[domain.slot, expected.argmax(axis=1)].tolist()
        more = tiny_graph.continue_greedily(domain, ids, 3)
        again, _ = tiny_graph.read(domain, [*ids, *more])
        assert more == run.tokenizer.slot_rows[domain.slot, again.argmax(axis=1)[len(ids) - 1 : -1]].tolist()


@pytest.mark.parametrize("activation", [pytest.param("tanh", marks=pytest.mark.slow), "erf"])
def test_another_activation_is_that_of_the_exported_graph(tiny_data, tmp_path, activation):
    """Of dense layers and of experts, by standard operators, through a MindIR file."""
    config = tiny_config(tiny_data, model={"activation": activation, "rre_layers": 1})
    tokenizer = PreparedData(tiny_data).tokenizer()
    model, weights = (config, tokenizer, drawn_tables(config, tokenizer)), ToyWeights(config)
    write_graph(CachedGraph(*model, weights), tmp_path)
    graph = ExportedGraph(nn.GraphCell(ms.load(str(tmp_path / "model.mindir"))))
    decoder = Decoder(*model, weights, 1, "float32")
    domain = domains_of(config).named("en")
    ids = tokenizer.prompt(TEXTS["en"], domain)
    decoder.begin(0, domain)
    same(graph.read(domain, ids)[0], decoder.read([Chunk(0, ids, len(ids))])[0])
