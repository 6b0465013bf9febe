"""The decoder over an exported graph: the tokens of the network that trains, for every domain, alone and together."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.grown import law_tree, write_law
from helpers.slow_decoder import SlowDecoder
from mindspore import nn

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.convert.mindir import export_mindir, write_graph
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.cpu.decoder import CpuDecoder
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.graph import decoder as graph_decoder
from pangu_sigma.generate.graph.cached import CachedGraph
from pangu_sigma.generate.graph.decoder import GraphDecoder
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.text import open_decoder
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.loop import train

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
    one, _, _ = (*tiny_graph.read([Chunk(0, [ids[4]])]), *tiny_graph.read([Chunk(3, [other])]), None)
    domain = prompts(tiny_graph)[0][0]
    for lane, text, expected in ((1, [*ids[:4], ids[4]], one), (2, [*ids[:4], other], None)):
        tiny_graph.begin(lane, domain)
        found = tiny_graph.read([Chunk(lane, text)])[0]
        if expected is not None:
            same(found, expected)
    same(tiny_graph.read([Chunk(3, [ids[5]])])[0], tiny_graph.read([Chunk(2, [ids[5]])])[0])


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


def test_the_domain_decides_the_answer(tiny_graph):
    """Same ids, same slot, other experts."""
    known = domains_of(tiny_graph.config)
    ids, logits = tiny_graph.tokenizer.prompt("the cat", known.named("en")), []
    for name in ("en", "code"):
        tiny_graph.begin(0, known.named(name))
        logits += tiny_graph.read([Chunk(0, ids)])
    used = np.isfinite(logits[0])
    assert np.abs(logits[0][used] - logits[1][used]).max() > 1e-3


@pytest.mark.parametrize("activation", ["tanh", "erf"])
def test_another_activation_is_that_of_the_exported_graph(tiny_run, tmp_path, activation):
    """Of dense layers and of experts, by standard operators, through a MindIR file."""
    run = open_model(tiny_run, "run")
    tree = run.config.model_dump()
    tree["model"]["activation"] = activation
    model = run.config.model_validate(tree), run.tokenizer, run.table
    weights = run
    write_graph(CachedGraph(*model, weights), tmp_path)
    loaded = nn.GraphCell(ms.load(str(tmp_path / "model.mindir")))
    logits = []
    for decoder in (GraphDecoder(loaded, *model, lanes=1), CpuDecoder(*model, weights, 1, "float32")):
        (domain, ids), *_ = prompts(decoder)
        decoder.begin(0, domain)
        logits += decoder.read([Chunk(0, ids, len(ids))])
    same(*logits)


def greedy(decoder: Decoder, requests: list[Request]) -> list[list[int]]:
    return [[token.id for token in answer.tokens] for answer in Engine(decoder).complete(requests)]


def test_greedy_tokens_are_those_of_a_run_alone_and_together_past_the_end_of_documents(tiny_graph, tiny_run):
    requests = [Request(domain, tuple(ids), 12, ignore_eot=True) for domain, ids in prompts(tiny_graph)]
    expected = greedy(open_decoder(tiny_run), requests)
    assert greedy(tiny_graph, requests) == expected
    assert [greedy(tiny_graph, [request])[0] for request in requests] == expected


@pytest.fixture(scope="module")
def four_domains(tiny_data, tmp_path_factory) -> Path:
    """A run of four domains in three slots, trained for some steps."""
    folder = tmp_path_factory.mktemp("four_domains")
    config = parse_config(law_tree(folder / "prepared"))
    write_law(folder / "text.jsonl", tiny_data.parent / "text.jsonl")
    prepare(config, [folder / "text.jsonl"], folder / "prepared")
    train(config, folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_200_prompts_over_four_domains_alone_and_eight_at_once(four_domains, tmp_path):
    """Against the decoder without MindSpore. Prompts are drawn among the ids of the slot, <eot> among them."""
    export = export_mindir(four_domains, tmp_path / "export")
    eight, trained = GraphDecoder.of(open_model(export, "export"), 8), open_decoder(four_domains, 8)
    assert len(domains_of(trained.config)) == 4
    rng, requests = np.random.default_rng(0), []
    for number in range(200):
        domain = domains_of(trained.config)[number % 4]
        rows = trained.tokenizer.slot_rows[domain.slot]
        ids = rng.choice(rows[rows >= 0], int(rng.integers(1, 20)))
        requests.append(Request(domain, tuple(ids.tolist()), 12, ignore_eot=number % 2 == 0))
    expected = greedy(trained, requests)
    assert greedy(eight, requests) == expected
    alone = GraphDecoder.of(open_model(export, "export"), 1)
    assert [greedy(alone, [request])[0] for request in requests] == expected
