"""The training-side graph behind the decoder's interface gives what the exact path gives."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.slow_decoder import SlowDecoder

from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.graph.predictor import Predictor
from pangu_sigma.generate.graph.rereading import RereadingDecoder
from pangu_sigma.generate.request import Request

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def graph(graph_mode, tiny_run) -> RereadingDecoder:
    return RereadingDecoder(Predictor.from_run(tiny_run))


@pytest.fixture(scope="module")
def slow(tiny_run) -> SlowDecoder:
    return SlowDecoder(RunFolder.open(tiny_run))


def prompts(decoder: RereadingDecoder) -> list[tuple]:
    known = domains_of(decoder.config)
    texts = [("en", "the cat sees a small old"), ("zh", "今天天气不错"), ("code", "x y total")]
    return [(known.named(name), decoder.tokenizer.prompt(text, known.named(name))) for name, text in texts]


def test_chunks_of_several_lanes_have_the_logits_of_the_exact_path(graph, slow):
    for lane, (domain, _) in enumerate(prompts(graph)):
        for decoder in (graph, slow):
            decoder.begin(lane, domain)
    for first, last, wanted in ((0, 2, 0), (2, 3, 1), (3, 6, 3), (6, 7, 1)):
        parts = [(lane, ids[first:last]) for lane, (_, ids) in enumerate(prompts(graph)) if ids[first:last]]
        chunks = [Chunk(lane, ids, min(wanted, len(ids))) for lane, ids in parts]
        for one, other in zip(graph.read(chunks), slow.read(chunks), strict=True):
            assert one.shape == other.shape
            used = np.isfinite(other)
            assert (used == np.isfinite(one)).all()
            np.testing.assert_allclose(one[used], other[used], rtol=0, atol=2e-5)
    domain, ids = prompts(graph)[0]
    np.testing.assert_array_equal(graph.experts(domain, ids), slow.experts(domain, ids))


def test_what_cannot_be_read_changes_no_lane(graph):
    (domain, ids), *_ = prompts(graph)
    graph.begin(0, domain)
    graph.begin(1, domain)
    graph.read([Chunk(0, ids[:3], 1)])
    for wanted in (0, 1):
        with pytest.raises(ConfigError, match="does not exist"):
            graph.read([Chunk(0, ids[3:], 1), Chunk(1, [10**6], wanted)])
    graph.copy(0, 1)
    one, other = graph.read([Chunk(0, ids[3:], 1), Chunk(1, ids[3:], 1)])
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_the_engine_over_it_says_the_tokens_and_log_probabilities_of_the_exact_path(graph, slow):
    requests = [Request(domain, tuple(ids), 5, logprobs=1, prompt_logprobs=0) for domain, ids in prompts(graph)]
    for one, other in zip(Engine(graph).complete(requests), Engine(slow).complete(requests), strict=True):
        assert (one.text, one.ids, one.finish) == (other.text, other.ids, other.finish)
        for mine, its in zip([*one.prompt[1:], *one.tokens], [*other.prompt[1:], *other.tokens], strict=True):
            assert mine.logprob == pytest.approx(its.logprob, abs=1e-5)
            assert (mine.id, mine.text, mine.experts) == (its.id, its.text, its.experts)
