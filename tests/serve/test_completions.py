"""POST /v1/completions: what comes is what the engine says, whole or in a stream, one by one or together."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.served import LENGTH, client_of, events

import pangu_sigma as ps
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.text import BLANK_AT_THE_END, open_decoder

PROMPT = "the cat sees 今天"


def ask(client, **parameters):
    body = {"model": "sigma-en", "prompt": PROMPT, "max_tokens": 12, "seed": 5} | parameters
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def whole(client, **parameters):
    return ask(client, **parameters).json()


def domain_of(decoder, name="en"):
    return domains_of(decoder.config).named(name)


def test_it_says_what_the_engine_says(client, decoder):
    domain = domain_of(decoder)
    ids = decoder.tokenizer.prompt(PROMPT, domain)
    factors = {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3}
    sampling = Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, **factors)
    (expected,) = Engine(decoder).complete([Request(domain, tuple(ids), 12, sampling, 5, ("q",), logprobs=2)])
    options = {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1}
    penalties = {"presence_penalty": 0.2, "frequency_penalty": 0.3}
    found = whole(client, temperature=0.8, **options, **penalties, stop="q", logprobs=2)
    (choice,) = found["choices"]
    assert (choice["text"], choice["finish_reason"], choice["index"]) == (expected.text, expected.finish, 0)
    assert choice["logprobs"]["token_logprobs"] == [token.logprob for token in expected.tokens]
    assert found["usage"] == {
        "prompt_tokens": len(ids),
        "completion_tokens": len(expected.tokens),
        "total_tokens": len(ids) + len(expected.tokens),
    }
    assert found["object"] == "text_completion"
    assert "warnings" not in found


@pytest.mark.parametrize(
    "parameters",
    [{}, {"stop": [" ", "e"]}, {"prompt": "x", "max_tokens": 90}, {"echo": True, "logprobs": 2, "experts": True}],
)
def test_a_stream_joined_is_the_answer(client, parameters):
    expected = whole(client, n=2, **parameters)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(ask(client, n=2, **options, **parameters).text)
    assert (last["choices"], last["usage"]) == ([], expected["usage"])
    assert all(chunk["usage"] is None for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in expected["choices"]:
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        for name, values in (choice["logprobs"] or {}).items():
            assert [value for part in own if part["logprobs"] for value in part["logprobs"][name]] == values
    assert "usage" not in events(ask(client, stream=True, **parameters).text)[0]


def test_prompts_come_as_text_or_ids_alone_or_many(client):
    ids = client.post("/tokenize", json={"model": "sigma-en", "prompt": PROMPT}).json()["tokens"]
    text = whole(client)["choices"][0]["text"]
    for prompt in (ids, [ids], [PROMPT]):
        assert whole(client, prompt=prompt)["choices"][0]["text"] == text
    many = whole(client, prompt=["a red house", PROMPT], n=2)
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    assert many["choices"][2]["text"] == text
    assert many["choices"][3]["text"] == whole(client, seed=6)["choices"][0]["text"], "answer i takes seed + i"
    counted = client.post("/tokenize", json={"model": "sigma-en", "prompt": "a red house"}).json()["count"]
    assert many["usage"]["prompt_tokens"] == counted + len(ids), "a prompt counts once"
    assert many["usage"]["completion_tokens"] <= 4 * 12


def test_without_a_seed_answers_differ(client):
    texts = {whole(client, seed=None, n=3)["choices"][i]["text"] for i in range(3)}
    assert len(texts) == 3
    assert (
        len({each["text"] for each in whole(client, seed=None, prompt=[PROMPT] * 3)["choices"]}) > 1
    )  # two may be short and equal


@pytest.mark.parametrize("domain", ["sigma-en", "sigma-zh", "sigma-code"])
def test_echo_with_logprobs_is_exact(client, decoder, domain):
    """In float64 from the logits, as `lm_eval` needs it: nothing before the first token, one new token at the end."""
    completion = whole(client, model=domain, echo=True, logprobs=1, max_tokens=1, temperature=0)
    (choice,), logprobs = completion["choices"], completion["choices"][0]["logprobs"]
    assert choice["text"].startswith(PROMPT)
    for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
        if not token.startswith(("bytes:", "<", "▁")):  # these have no text of their own
            assert choice["text"][offset : offset + len(token)] == token
    ids = client.post("/tokenize", json={"model": domain, "prompt": PROMPT}).json()["tokens"]
    assert len(logprobs["tokens"]) == len(ids) + 1 == len(logprobs["top_logprobs"])
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    of = domain_of(decoder, domain.removeprefix("sigma-"))
    for at in range(1, len(ids)):
        logits_R = decoder.logits(of, ids[:at]).astype(np.float64)
        row = decoder.tokenizer.row_of[of.slot, ids[at]]
        expected = logits_R[row] - np.logaddexp.reduce(logits_R)
        assert logprobs["token_logprobs"][at] == pytest.approx(expected, abs=1e-9)
        assert max(logprobs["top_logprobs"][at].values()) == pytest.approx(
            logits_R.max() - np.logaddexp.reduce(logits_R), abs=1e-9
        )
    assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values()), "greedy"


def test_logprobs_of_0_tell_the_tokens_themselves(client):
    logprobs = whole(client, logprobs=0)["choices"][0]["logprobs"]
    for token, logprob, top in zip(*(logprobs[k] for k in ("tokens", "token_logprobs", "top_logprobs")), strict=True):
        assert top == {token: logprob}


def test_max_tokens_of_0_scores_a_prompt(client):
    found = whole(client, max_tokens=0, echo=True, logprobs=1)
    (choice,) = found["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert len(choice["logprobs"]["tokens"]) == found["usage"]["prompt_tokens"]
    assert found["usage"]["completion_tokens"] == 0
    assert events(ask(client, max_tokens=0, echo=True, stream=True).text)[0]["choices"][0]["text"] == PROMPT


HARMLESS = {
    "user": "me",
    "safety_identifier": "me",
    "store": False,
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "reasoning_effort": "low",
    "parallel_tool_calls": True,
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_harmless_parameters_of_clients_are_taken_with_a_warning(client, path):
    asked = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hi"}]}
    body = {"model": "sigma-en", "max_tokens": 3, "seed": 5} | asked
    plain, found = (client.post(path, json=body | more).json() for more in ({}, HARMLESS))
    assert found["choices"] == plain["choices"]
    assert found["warnings"] == [f"{', '.join(HARMLESS)}: without effect on this server"]
    assert "warnings" not in plain
    for name, value in {"tool_choice": "auto", "verbosity": "low"}.items():
        refused = client.post(path, json=body | {name: value})
        assert refused.status_code == 400 and name in refused.json()["error"]["param"], "it would change the answer"


def test_own_experts_are_never_shared_and_common_ones_are(drawn_segmented_run):
    """Layer by layer, and in a layer segment by segment, as the list of models says."""
    with client_of(open_decoder(drawn_segmented_run)) as client:
        (segments,) = {tuple(model["segments"]) for model in client.get("/v1/models").json()["data"]}
        assert segments == ("own", "own", "common", "common")
        told = [
            whole(client, model=f"sigma-{domain}", experts=True, echo=True)["choices"][0]["logprobs"]["experts"]
            for domain in ("en", "zh")
        ]
    assert {len(of_token) for each in told for of_token in each} == {2 * len(segments)}
    for at in range(8):
        one, other = ({of_token[at] for of_token in each} for each in told)
        if segments[at % 4] == "own":
            assert one <= {2, 3} and other <= {0, 1}
        else:
            assert one <= {0, 1, 2} and one & other


def test_experts_are_those_of_the_tokens(client, decoder):
    ids, domain = (
        client.post("/tokenize", json={"model": "sigma-en", "prompt": PROMPT}).json()["tokens"],
        domain_of(decoder),
    )
    (answer,) = Engine(decoder).complete([Request(domain, tuple(ids), 3, Sampling())])
    expected_TN = decoder.experts(domain, ids + [token.id for token in answer.tokens]).T.tolist()
    asked = {"experts": True, "temperature": 0, "max_tokens": 3}
    assert whole(client, echo=True, **asked)["choices"][0]["logprobs"]["experts"] == expected_TN
    chunks = [chunk["choices"][0]["logprobs"] for chunk in events(ask(client, stream=True, **asked).text)]
    assert [of_token for each in chunks if each for of_token in each["experts"]] == expected_TN[len(ids) :]
    assert "experts" not in whole(client, logprobs=1)["choices"][0]["logprobs"]


def test_the_end_of_a_document_is_a_token_of_the_answer(client, decoder):
    """`lm_eval` leaves out the last log-probability as that of a new token: there must be one, whatever it is."""
    found = None
    for seed in range(40):
        found = whole(client, prompt=f"tree {seed}", max_tokens=60, logprobs=0, temperature=0)
        if found["choices"][0]["finish_reason"] == "stop":
            break
    choice = found["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"][-1] == "<eot>"
    assert found["usage"]["completion_tokens"] == len(choice["logprobs"]["tokens"])
    longer = whole(client, prompt=f"tree {seed}", max_tokens=60, temperature=0, ignore_eos=True)
    assert longer["choices"][0]["finish_reason"] == "length"


def test_stop_strings_ids_and_bias(client, decoder):
    text = whole(client)["choices"][0]["text"]
    stop = text[3:5]
    stopped = whole(client, stop=["\x00\x00", stop])["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.index(stop)], "stop")
    token = int(decoder.tokenizer.slot_rows[1, 100])
    biased = whole(client, logit_bias={str(token): 100}, temperature=0, stop_token_ids=[token])
    assert biased["usage"]["completion_tokens"] == 1


def test_no_prompt_is_a_new_document(client):
    body = {"prompt": "", "max_tokens": 4, "temperature": 0}
    assert (
        whole(client, **body)["choices"][0]["text"] == whole(client, **body | {"prompt": "<eot>"})["choices"][0]["text"]
    )


def test_too_much_is_refused_with_the_numbers(client, decoder):
    absent = int(np.flatnonzero(decoder.tokenizer.row_of[1] < 0)[0])
    ids = client.post("/tokenize", json={"model": "sigma-en", "prompt": "x" * LENGTH}).json()["tokens"][:LENGTH]
    for parameters, reason in (
        ({"prompt": ids, "max_tokens": 1}, f"{LENGTH} tokens and max_tokens is 1; together they may be {LENGTH}"),
        ({"prompt": [*ids, ids[0]], "max_tokens": 0, "echo": True}, f"{LENGTH + 1} tokens"),
        ({"prompt": "x" * 100_000}, "100000 characters"),
        ({"max_tokens": 97}, "max_tokens is 97"),
        ({"n": 17}, "n: it must be less than or equal to 16"),
        ({"prompt": ["x"] * 129}, "a list of at most 128 texts"),
        (
            {"prompt": ["x"] * 128, "n": 16},
            "128 prompts with 16 answers each are more than 256, the texts that may wait here",
        ),
        ({"logprobs": 21}, "logprobs: it must be less than or equal to 20"),
        ({"stop": ["x"] * 17}, "stop: must be a Unicode text, or a list of at most 16"),
        ({"stop": "x" * 101}, "of 1 to 100 characters each"),
        ({"prompt": [absent]}, "has no row in the embedding slot of domain en"),
        ({"prompt": [999_999]}, "does not exist"),
        ({"best_of": 2}, "best_of=2 is not supported"),
        ({"suffix": "x"}, "suffix"),
        ({"max_tokens": 0}, "asks for nothing"),
        ({"frobnicate": 1}, "frobnicate: this parameter is not known here"),
    ):
        body = {"model": "sigma-en", "prompt": PROMPT} | parameters
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 400, (parameters, answer.text)
        assert reason in answer.json()["error"]["message"], (parameters, answer.text)
    assert whole(client, prompt=ids, max_tokens=0, echo=True)["usage"]["prompt_tokens"] == LENGTH
    for prompt, default in ((ids[:-4], 4), ("the", 16)):
        usage = whole(client, prompt=prompt, max_tokens=None, ignore_eos=True)["usage"]
        assert usage["completion_tokens"] == default, "16, or what fits"


def test_a_prompt_that_ends_in_a_blank_is_warned_of(client):
    """An English piece has the blank before its word, so a blank at the end stands where none has stood in training."""
    for prompt in ("the cat ", ["the cat", "a red "]):
        assert whole(client, prompt=prompt)["warnings"] == [BLANK_AT_THE_END]
        assert events(ask(client, prompt=prompt, stream=True).text)[0]["warnings"] == [BLANK_AT_THE_END]
    for parameters in ({"prompt": "the cat"}, {"prompt": "the cat ", "max_tokens": 0, "echo": True}):
        assert "warnings" not in whole(client, **parameters)


def test_an_echo_of_folded_text_is_said_not_to_be_what_was_sent(tiny_data):
    from helpers.served import DrawnDecoder

    with client_of(DrawnDecoder(tiny_data)) as client:
        said = whole(client, model="sigma-zh", prompt="ＡＢ", echo=True)
        assert "as the model reads it" in said["warnings"][-1]
        chunks = events(ask(client, model="sigma-zh", prompt="ＡＢ", echo=True, stream=True).text)
        assert [chunk.get("warnings") for chunk in chunks] == [said["warnings"]] + [None] * (len(chunks) - 1)


def test_a_model_with_rows_says_here_what_it_says_in_python(rows_run):
    """Several at a time, whole and in a stream."""
    model, prompts = ps.load(rows_run), ["the cat sees", "a small old", "the cat sees a"]
    options = {"max_new_tokens": 16, "temperature": 0.8, "seed": 5}
    expected = [model.generate(prompt, domain="en", **options) for prompt in prompts]
    with client_of(open_decoder(rows_run)) as client:
        asked = {"prompt": prompts, "max_tokens": 16, "temperature": 0.8}
        assert [choice["text"] for choice in whole(client, **asked)["choices"]] == expected
        chunks = [chunk["choices"][0] for chunk in events(ask(client, stream=True, **asked).text)]
        for i, text in enumerate(expected):
            assert "".join(chunk["text"] for chunk in chunks if chunk["index"] == i) == text
