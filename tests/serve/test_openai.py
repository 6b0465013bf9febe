"""Domains as models, and what requests become."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.served import LENGTH, DrawnDecoder

from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.serve.openai import domain_of, make_requests, room_for, without_effect
from pangu_sigma.serve.refusals import ApiError
from pangu_sigma.serve.schemas import CompletionRequest
from pangu_sigma.serve.served import Limits, Served
from pangu_sigma.text import tokenizer


@pytest.fixture(scope="module")
def served(decoder) -> Served:
    return Served(Engine(decoder), Limits(n=4))


def asked_at(served: Served, of_path: str | None = None) -> Any:
    """A request whose path begins with a model's name, or does not."""
    state = SimpleNamespace(state=SimpleNamespace(served=served))
    return SimpleNamespace(app=state, path_params={"of_path": of_path} if of_path else {})


def test_a_domain_is_a_model(served):
    assert list(served.domains) == ["sigma-zh", "sigma-en", "sigma-code"]
    for name, path in (("sigma-en", None), (None, "sigma-en"), ("sigma-en", "sigma-en")):
        assert domain_of(asked_at(served, path), name)[1].name == "en"
    for name, path, status in (("en", None, 404), (None, None, 400), ("sigma-en", "sigma-zh", 400), (None, "en", 404)):
        with pytest.raises(ApiError) as refused:
            domain_of(asked_at(served, path), name)
        assert refused.value.status_code == status


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


def test_what_is_harmless_is_named_and_logged_once(served, caplog):
    caplog.set_level("INFO")

    def warnings(**parameters: Any) -> list[str]:
        body = CompletionRequest(model="sigma-en", prompt="x", **parameters)
        return without_effect(served, body)

    assert warnings(store=True, user="me", reasoning_effort=None) == ["user, store: without effect on this server"]
    assert warnings(metadata={}, store=False)
    assert [record.message.split()[3] for record in caplog.records] == ["user,", "metadata,"]
    assert warnings() == []


@pytest.mark.parametrize("name", ["logit_bias", "stop_token_ids"])
def test_a_token_out_of_range_is_told_by_the_name_of_its_parameter(served, name):
    wrong = {"logit_bias": {"9999999": 1.0}, "stop_token_ids": [9999999]}[name]
    body = CompletionRequest(model="sigma-en", prompt="x", **{name: wrong})
    with pytest.raises(ApiError, match=f"{name}: token id 9999999 does not exist") as refused:
        make_requests(served, body, served.domains["sigma-en"], [[1]], [1], {})
    assert refused.value.body["error"]["param"] == name


def test_room_is_what_fits_or_what_is_wanted(served):
    ids = [0] * (LENGTH - 10)
    assert room_for(served, [ids, [0]], None, 16) == [10, 16]
    assert room_for(served, [ids, [0]], 7, 16) == [7, 7]
    for wanted, prompt in ((11, ids), (0, [0] * (LENGTH + 1)), (None, [0] * (LENGTH + 1))):
        with pytest.raises(ApiError, match=f"together they may be {LENGTH}"):
            room_for(served, [prompt], wanted, 16)


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
