"""Malformed requests: each is refused with a reason that names its parameter, and the next one is answered."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import pytest

COMPLETION = {"model": "sigma-en", "prompt": "the cat", "max_tokens": 2}
CHAT = {"model": "sigma-en", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TOKENIZE = {"model": "sigma-en", "prompt": "the"}
DETOKENIZE = {"model": "sigma-en", "tokens": [260]}
VALID = {
    "/v1/completions": COMPLETION,
    "/v1/chat/completions": CHAT,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}

NOT_NUMBERS = ["1", True, [1], float("nan"), float("inf")]
NOT_WHOLE = [*NOT_NUMBERS, 0.5, 2.0, 10**30, -1]
NOT_TEXTS = [1, True, [1], {"a": 1}, "\ud800"]
NOT_BOOLEANS = ["true", 1]

WRONG: dict[str, list[Any]] = {
    "model": [None, *NOT_TEXTS, "", "zh", "/etc/passwd", "x" * 1000],
    "n": [0, *NOT_WHOLE, 17],
    "max_tokens": [*NOT_WHOLE, 1000],
    "temperature": [-0.1, 2.1, *NOT_NUMBERS],
    "top_p": [0, -1, 1.1, *NOT_NUMBERS],
    "top_k": [-2, *(value for value in NOT_WHOLE if value != -1)],
    "min_p": [-0.1, 1.1, *NOT_NUMBERS],
    "presence_penalty": [-2.1, 2.1, *NOT_NUMBERS],
    "frequency_penalty": [-2.1, 2.1, *NOT_NUMBERS],
    "repetition_penalty": [0, -1, 1e10, *NOT_NUMBERS],
    "seed": NOT_WHOLE,
    "stop": [1, True, {}, [1], [""], "", ["a", None], ["a"] * 17, "a" * 101, "\ud800", [["a"]]],
    "stop_token_ids": ["a", 1, ["a"], [-1], [1.5], [10**6], [10**12], [True], [260] * 17],
    "ignore_eos": NOT_BOOLEANS,
    "stream": NOT_BOOLEANS,
    "stream_options": [True, "a", {"include_usage": True}, {"a": 1}],
    "user": [*NOT_TEXTS, "x" * 1000],
    "logit_bias": [1, [1], {"a": 1}, {"1": "a"}, {"1": 101}, {"-1": 1}, {"999999": 1}, {"1": float("nan")}],
    "response_format": [
        *["text", {}, {"type": "json"}, {"type": "json_schema"}],
        {"type": "text", "json_schema": {"name": "a", "schema": {}}},
        *[{"type": "json_schema", "json_schema": each} for each in ({}, {"name": "a"}, {"name": "a", "schema": "{}"})],
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "list"}}},
    ],
    "structured_outputs": [
        *["a", [], {}, {"grammar": "start: a"}, {"regex": "a", "choice": ["a"]}],
        *[{"regex": given} for given in ("", "(a", ["a"])],
        *[{"choice": given} for given in ("a", [], [""], [1], ["a", None])],
        *[{"json": given} for given in ("{}", [], {"type": "array", "uniqueItems": True})],
        {"json": {"$ref": "file:///etc/passwd"}},
    ],
    "unknown": [1],
    "tool_choice": ["auto"],
}
OF_PATH: dict[str, dict[str, list[Any]]] = {
    "/v1/completions": {
        **WRONG,
        "prompt": [
            *[None, 1, True, {}, [], [[]], [1, "a"], ["a", None], [[1], "a"], [[1], [True]]],
            *[[-1], [0.5], [10**6], [10**12]],
            *["\ud800", "x" * 100_000, ["x"] * 200, [[260]] * 200, [[[260]]], [float("nan")], [260] * 97],
        ],
        "echo": NOT_BOOLEANS,
        "logprobs": [*NOT_WHOLE, 21],
        "experts": NOT_BOOLEANS,
        "best_of": [0, 2, "1"],
        "suffix": ["a", 1],
        "add_special_tokens": NOT_BOOLEANS,
        "messages": [CHAT["messages"]],
    },
    "/v1/chat/completions": {
        **WRONG,
        "messages": [
            *[None, 1, "hi", {}, [], [1], ["hi"], [{}], [{"role": "user"}], [{"content": "x"}]],
            *[[{"role": role, "content": "x"}] for role in ("tool", "function", "", "User", None, 1)],
            *[[{"role": "user", "content": content}] for content in (None, 1, [], [1], {}, "\ud800", "x" * 100_000)],
            *[
                [{"role": "user", "content": [part]}]
                for part in ({"type": "text"}, {"type": "image_url"}, {"text": "x"})
            ],
            [{"role": "user", "content": "x", "name": "y"}],
            [{"role": "assistant", "content": "x"}],
            [{"role": "user", "content": "x"}] * 257,
        ],
        "logprobs": NOT_BOOLEANS,
        "top_logprobs": [*NOT_WHOLE, 1],
        "max_completion_tokens": [3, *NOT_WHOLE],
        "tools": [[{"type": "function"}], "a"],
        "functions": [[]],
        "prompt": ["x"],
    },
    "/tokenize": {"model": ["zh", 1], "prompt": [None, *NOT_TEXTS], "add_special_tokens": NOT_BOOLEANS, "x": [1]},
    "/detokenize": {"model": ["zh", 1], "tokens": [None, 1, "a", ["a"], [-1], [10**6], [True], [1.5]], "x": [1]},
}

BODIES = {
    "nothing": b"",
    "a list": b"[]",
    "half of it": json.dumps(COMPLETION).encode()[:-5],
    "deep lists": b"[" * 100_000,
    "deep prompt": b'{"model":"sigma-en","prompt":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "NaN": b'{"model":"sigma-en","prompt":"a","temperature":NaN}',
    "more than float64": b'{"model":"sigma-en","prompt":"a","temperature":1e400}',
    "a number of 5,000 digits": b'{"model":"sigma-en","prompt":"a","seed":' + b"9" * 5000 + b"}",
    "compressed": gzip.compress(json.dumps(COMPLETION).encode()),
    "bytes that are no UTF-8": b'{"model":"sigma-en","prompt":"\xff\xfe"}',
    "half a pair as a key": b'{"model":"sigma-en","prompt":"a","\\ud800":1}',
}


@pytest.fixture(scope="module", autouse=True)
def served_on(client):
    """After all of them the server answers as before."""
    expected = {path: client.post(path, json=body).status_code for path, body in VALID.items()}
    assert set(expected.values()) == {200}
    yield
    assert {path: client.post(path, json=body).status_code for path, body in VALID.items()} == expected
    assert client.get("/health").status_code == 200


def check_refused(answer) -> dict[str, Any]:
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert len(error["message"]) > 10
    assert len(answer.content) < 3000, "what was sent does not come back whole"
    assert "Traceback" not in answer.text
    strange = r"--(?!set )\w|Input should|constrained|list\[|\.str\b|llguidance|%json|start:"
    assert not re.search(strange, error["message"]), "an option, a clause of pydantic, or the library's grammar"
    return error


@pytest.mark.parametrize("path", VALID)
def test_wrong_values_are_refused_by_the_name_of_their_parameter(client, path):
    for name, values in OF_PATH[path].items():
        for value in values:
            body = json.dumps({**VALID[path], name: value})
            error = check_refused(client.post(path, content=body, headers={"Content-Type": "application/json"}))
            names = (name, "prompt") if name == "messages" else (name,)  # of a text that cannot be read
            assert any(each in f"{error['param']} {error['message']}" for each in names), (name, value)


@pytest.mark.parametrize("path", VALID)
def test_wrong_bodies_are_refused(client, path):
    for content in BODIES.values():
        check_refused(client.post(path, content=content, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "a" * 5000])
def test_wrong_kinds_are_refused(client, kind):
    """Pages of other sites can send these without asking the browser."""
    headers = {} if kind is None else {"Content-Type": kind}
    for path, body in VALID.items():
        answer = client.post(path, content=json.dumps(body), headers=headers)
        assert answer.status_code == 400
        assert "curl" in answer.json()["error"]["message"]


IDS = (
    "must be a text, token ids, or a list of at most 128 texts or lists of token ids; no list may be empty, and a token id is "
    "a whole number from 0 to 2147483647"
)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 2.1, "it must be less than or equal to 2"),
        ("repetition_penalty", 1e-30, "it must be greater than or equal to 0.000000001"),
        *[("prompt", prompt, IDS) for prompt in ([-1], [[-1]], [1 << 31], [[260], []])],
        ("suffix", "x", "is not supported: these models write after a text, not inside of one; leave it out"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_request(client, name, value, message):
    error = client.post("/v1/completions", json=COMPLETION | {name: value}).json()["error"]
    assert (error["message"], error["param"]) == (f"{name}: {message}", name)


def test_every_problem_has_its_parameter_and_many_are_counted(client):
    error = client.post("/v1/completions", json=COMPLETION | {"n": "x", "color": 1}).json()["error"]
    problems = "n: it must be a whole number; color: this parameter is not known here; remove it, or see /openapi.json"
    assert error == {"message": problems, "param": "n", "code": "invalid_value", "type": "invalid_request_error"}
    error = client.post("/v1/completions", json=COMPLETION | {f"x{i}": 1 for i in range(100)}).json()["error"]
    assert error["message"].endswith("… and 92 more")


def test_a_long_path_is_not_repeated(client):
    answer = client.get("/" + "x" * 60_000)
    assert answer.status_code == 404
    check_refused(answer)


def test_a_missing_parameter_is_named(client):
    for path, body in VALID.items():
        for name in set(body) - {"max_tokens"}:
            rest = {key: value for key, value in body.items() if key != name}
            answer = client.post(path, json=rest)
            if path == "/detokenize" and name == "model":  # ids mean the same in every domain
                assert answer.status_code == 200
            else:
                assert answer.status_code == 400
                assert name in answer.json()["error"]["message"]
