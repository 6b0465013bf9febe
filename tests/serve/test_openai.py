"""What requests become, and what is ready before the first."""

from __future__ import annotations

import pytest
from helpers.served import DrawnDecoder

from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.serve.openai import make_requests
from pangu_sigma.serve.schemas import CompletionRequest
from pangu_sigma.serve.served import Limits, Served
from pangu_sigma.text import tokenizer


@pytest.fixture(scope="module")
def served(decoder) -> Served:
    return Served(Engine(decoder), Limits(waiting=12))


def test_ready_means_warm(tiny_data, monkeypatch):
    """After the warm-up nothing is loaded any more, whatever domain is asked, and each has answered."""
    decoder = DrawnDecoder(tiny_data)
    decoder.tokenizer = PreparedData(tiny_data).tokenizer()
    served = Served(Engine(decoder))
    served.warm_up()
    assert decoder.read_ids >= len(served.domains)
    for name in ("restricted_model", "append_bytes", "sentencepiece"):
        monkeypatch.setattr(tokenizer, name, None)
    for domain in served.domains.values():
        assert served.prompts.read("今天 the cat", domain)


def test_openais_defaults_and_seeds(served):
    en = served.domains["sigma-en"]
    body = CompletionRequest(model="sigma-en", prompt="x", n=3, seed=7)
    found = make_requests(served, body, en, [[1], [2], [1]], [4, 5, 6], {})
    assert [(r.ids, r.max_new_tokens, r.seed) for r in found] == [
        *[((1,), 4, seed) for seed in (7, 8, 9)],
        *[((2,), 5, seed) for seed in (7, 8, 9)],
        *[((1,), 6, seed) for seed in (10, 11, 12)],
    ]
    assert {r.sampling for r in found} == {Sampling(temperature=1.0)}
    given = CompletionRequest(model="sigma-en", prompt="x", temperature=0, top_k=-1, logit_bias={"9": 1.5}, stop="q")
    (one,) = make_requests(served, given, en, [[1]], [1], {}, ("z",))
    assert (one.sampling, one.logit_bias, one.stop) == (Sampling(), ((9, 1.5),), ("q", "z"))
    assert served.fingerprint.startswith("tiny-")
