"""A model with a weight that overflows in one expert of one domain: who asks that domain is told so, and others are answered as if
nobody had asked it. tests/generate/test_engine.py has every kind of number that is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2
import pytest
from helpers.served import client_of, server_of, toy_decoder
from helpers.toy_weights import OneBrokenExpert

from pangu_sigma.text.vocabulary import FIRST_BYTE

PROMPT = "the small old cat sees a red house"
"""Tokens of it go to the broken expert, the first of domain en."""
BROKEN, HEALTHY = ({"model": model, "prompt": PROMPT, "max_tokens": 8, "seed": 1} for model in ("sigma-en", "sigma-zh"))


@pytest.fixture(scope="module")
def decoder(tiny_data):
    return toy_decoder(tiny_data, weights=partial(OneBrokenExpert, number=2, value=1e38))


@pytest.fixture(scope="module")
def client(decoder) -> Iterator:
    with client_of(decoder) as client:
        yield client


def check_told(error: dict) -> None:
    assert (error["code"], error["type"]) == ("model_failed", "server_error")
    assert "the model failed: domain en: the logits after " in error["message"]
    assert "are not finite" in error["message"]


FORMS = [
    {"temperature": 0},
    {"temperature": 0.8},
    {"echo": True, "logprobs": 1, "max_tokens": 0},
    {"echo": True, "logprobs": 1, "temperature": 0},
    {"temperature": 0.8, "logit_bias": {str(FIRST_BYTE + ord("a")): 100.0}},
    {"structured_outputs": {"regex": "[a-z]{4}"}},
    {"n": 3},
]


def test_who_asks_is_told_the_domain_and_the_cause(client):
    for form in FORMS:
        for stream in (False, True):  # before the first token a stream has no status yet
            answer = client.post("/v1/completions", json=BROKEN | form | {"stream": stream})
            assert answer.status_code == 500
            check_told(answer.json()["error"])
    body = {"model": "sigma-en", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
    check_told(client.post("/v1/chat/completions", json=body).json()["error"])


def test_others_are_answered_at_the_same_time_to_the_last_bit_and_the_server_stays(decoder):
    healthy = [HEALTHY | {"temperature": t, "logprobs": 2, "seed": s} for s in range(5) for t in (0, 0.8)]
    broken = [BROKEN | {"temperature": t} for t in (0, 0.8)] * 5
    with server_of(decoder) as url, httpx2.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(20) as together:

        def ask(body: dict) -> httpx2.Response:
            return http.post("/v1/completions", json=body)

        alone = [ask(body).json()["choices"] for body in healthy]
        asked = list(together.map(ask, [body for pair in zip(healthy, broken, strict=True) for body in pair]))
        assert [answer.json()["choices"] for answer in asked[::2]] == alone
        assert [answer.status_code for answer in asked[1::2]] == [500] * len(broken)
        assert http.get("/health").status_code == 200
        assert ask(healthy[0]).json()["choices"] == alone[0], "also in a lane that has held what is not finite"
