"""The decoder over an exported graph: the tokens of the network that trains, for every domain, alone and together."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from helpers.slow_decoder import SlowDecoder
from helpers.toy_weights import ToyWeights
from mindspore import nn

from experiments.tiny import tiny_config
from pangu_sigma.config import ConfigError
from pangu_sigma.convert.mindir import write_graph
from pangu_sigma.data.prepared import PreparedData, drawn_tables
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.cpu.decoder import CpuDecoder
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.graph import decoder as graph_decoder
from pangu_sigma.generate.graph.cached import CachedGraph
from pangu_sigma.generate.graph.decoder import GraphDecoder
from pangu_sigma.stored.open import open_model

pytestmark = pytest.mark.usefixtures("graph_mode")

TEXTS = [("en", "the cat sees a small old"), ("zh", "今天天气不错"), ("code", "x y total")]


def prompts(decoder: Decoder, texts=TEXTS) -> list[tuple]:
    known = domains_of(decoder.config)
    return [(known.named(name), decoder.tokenizer.prompt(text, known.named(name))) for name, text in texts]


def begun(decoder: Decoder) -> list[tuple]:
    found = prompts(decoder)
    for lane, (domain, _) in enumerate(found):
        decoder.begin(lane, domain)
    return found


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    used = np.isfinite(expected)
    assert (used == np.isfinite(found)).all()
    np.testing.assert_allclose(found[used], expected[used], rtol=0, atol=2e-5)


def test_chunks_of_several_lanes_have_the_logits_of_the_exact_path(tiny_graph, tiny_run, monkeypatch):
    """Long ones in several calls, too."""
    monkeypatch.setattr(graph_decoder, "_AT_ONCE", 2)
    slow = SlowDecoder(open_model(tiny_run, "run"))
    texts = begun(tiny_graph), begun(slow)
    for first, last, wanted in ((0, 2, 0), (2, 3, 1), (3, 6, 3), (6, 7, 1)):
        parts = [(lane, ids[first:last]) for lane, (_, ids) in enumerate(texts[0]) if ids[first:last]]
        chunks = [Chunk(lane, ids, min(wanted, len(ids))) for lane, ids in parts]
        for one, other in zip(tiny_graph.read(chunks), slow.read(chunks), strict=True):
            same(one, other)
    domain, ids = texts[0][0]
    np.testing.assert_array_equal(tiny_graph.experts(domain, ids), slow.experts(domain, ids))


def test_a_copied_lane_goes_on_as_the_first_does(tiny_graph):
    (_, ids), *_ = begun(tiny_graph)
    tiny_graph.read([Chunk(0, ids[:4], 0)])
    tiny_graph.copy(0, 3)
    other = ids[1]
    domain = prompts(tiny_graph)[0][0]
    for lane, copied, token in ((1, 0, ids[4]), (2, 3, other)):
        tiny_graph.begin(lane, domain)
        same(*tiny_graph.read([Chunk(copied, [token])]), *tiny_graph.read([Chunk(lane, [*ids[:4], token])]))
        same(*tiny_graph.read([Chunk(copied, [ids[5]])]), *tiny_graph.read([Chunk(lane, [ids[5]])]))


def test_what_cannot_be_read_changes_no_lane(tiny_graph):
    (domain, ids), *_ = begun(tiny_graph)
    tiny_graph.begin(1, domain)
    tiny_graph.read([Chunk(0, ids[:3], 1)])
    limit = tiny_graph.config.model.seq_length
    for wrong, said in (
        ([10**6], "does not exist"),
        (ids[:1] * limit, f"longer than model.seq_length={limit}; shorten it"),
        ([], "of 0 new tokens are wanted"),
    ):
        with pytest.raises(ConfigError, match=said):
            tiny_graph.read([Chunk(1, ids[:1]), Chunk(0, wrong)])
    one = tiny_graph.read([Chunk(0, ids[3:])])[0]
    tiny_graph.begin(1, domain)
    same(one, tiny_graph.read([Chunk(1, ids)])[0])
    with pytest.raises(ConfigError, match="lane 4 does not exist; this decoder has the lanes 0 … 3"):
        tiny_graph.begin(4, domain)


@pytest.mark.parametrize("activation", [pytest.param("tanh", marks=pytest.mark.slow), "erf"])
def test_another_activation_is_that_of_the_exported_graph(tiny_data, tmp_path, activation):
    """Of dense layers and of experts, by standard operators, through a MindIR file."""
    config = tiny_config(tiny_data, model={"activation": activation, "rre_layers": 1})
    tokenizer = PreparedData(tiny_data).tokenizer()
    model, weights = (config, tokenizer, drawn_tables(config, tokenizer)), ToyWeights(config)
    write_graph(CachedGraph(*model, weights), tmp_path)
    loaded = nn.GraphCell(ms.load(str(tmp_path / "model.mindir")))
    logits = []
    for decoder in (GraphDecoder(loaded, *model, lanes=1), CpuDecoder(*model, weights, 1, "float32")):
        (domain, ids), *_ = prompts(decoder)
        decoder.begin(0, domain)
        logits += decoder.read([Chunk(0, ids, len(ids))])
    same(*logits)
