"""Structured output over HTTP, asked by OpenAI's client: response_format, and vLLM's structured_outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema_rs
import openai
import pytest
from helpers.served import client_of, events, server_of, toy_decoder
from helpers.structures import SCHEMAS

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def url(tiny_data) -> Iterator[str]:
    with server_of(toy_decoder(tiny_data, lanes=8, seq_length=256)) as url:
        yield url


@pytest.fixture(scope="module")
def official(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def schema_format(name: str) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMAS[name], "strict": True}}


@pytest.mark.parametrize("name", ["nested", "either", "pattern"])
def test_the_official_clients_answers_fit_their_schema(official, name):
    validator = jsonschema_rs.validator_for(SCHEMAS[name], validate_formats=True)
    answer = official.chat.completions.create(
        model="sigma-zh", messages=MESSAGES, temperature=1.2, seed=1, n=4, response_format=schema_format(name)
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        validator.validate(json.loads(choice.message.content))


def test_completions_take_both_forms(official):
    for extra in (
        {"structured_outputs": {"regex": "[0-9]{3}"}},
        {"structured_outputs": {"choice": ["123", "456"]}},
        {"structured_outputs": {"json": {"type": "integer", "minimum": 100, "maximum": 999}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 123}}}},
    ):
        answer = official.completions.create(model="sigma-en", prompt="the", seed=1, max_tokens=20, extra_body=extra)
        assert answer.choices[0].finish_reason == "stop"
        assert len(answer.choices[0].text) == 3 and answer.choices[0].text.isdigit()


def test_any_object_and_what_max_tokens_cuts(official):
    answer = official.chat.completions.create(
        model="sigma-en", messages=MESSAGES, max_tokens=5, seed=1, response_format={"type": "json_object"}
    )
    (choice,) = answer.choices
    assert choice.message.content.startswith("{") and choice.finish_reason == "length"


def test_blanks_and_the_words_of_the_template_belong_to_the_structure(official):
    """The chat template's stop string and the blank that it leaves to the model are for free text."""
    for text in (" yes", "a\nUser: b"):
        answer = official.chat.completions.create(
            model="sigma-en", messages=MESSAGES, extra_body={"structured_outputs": {"choice": [text]}}
        )
        assert answer.choices[0].message.content == text


def test_text_is_no_structure(official):
    asked = {"model": "sigma-en", "messages": MESSAGES, "seed": 1, "max_tokens": 9}
    plain, named = (
        official.chat.completions.create(**asked, **more) for more in ({}, {"response_format": {"type": "text"}})
    )
    assert plain.choices == named.choices


@pytest.mark.parametrize(
    ("parameters", "param", "reason"),
    [
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, None, "give one of them"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, None, "ignore_eos=true goes on"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", 'Unimplemented keys: ["not"]'),
        ({"structured_outputs": {"grammar": "start: A"}}, "structured_outputs.grammar", "not known here"),
    ],
)
def test_what_cannot_be_is_refused_by_name(client, parameters, param, reason):
    answer = client.post("/v1/completions", json={"model": "sigma-en", "prompt": "x"} | parameters)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert reason in error["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_structure_that_the_library_gives_up_on_is_said_in_the_answer(tiny_data, path):
    grows = "".join(f"(x{i}|y.*)?" for i in range(3000))
    body = {"model": "sigma-en", "max_tokens": 50, "n": 2, "structured_outputs": {"regex": f"z{grows}"}}
    body |= {"prompt": "the"} if path == "/v1/completions" else {"messages": MESSAGES}
    with client_of(toy_decoder(tiny_data, lanes=2)) as client:
        found = client.post(path, json=body).json()
        *_, last = [
            chunk
            for chunk in events(client.post(path, json=body | {"stream": True}).text)
            if chunk["choices"][0]["finish_reason"]
        ]
    assert [choice["finish_reason"] for choice in found["choices"]] == ["length"] * 2
    assert found["usage"]["completion_tokens"] < 2 * 50, "not by max_tokens"
    (warning,) = found["warnings"]
    assert "breaks off inside its structure, which is too large for llguidance: lexer error" in warning
    assert last["warnings"] == [warning] and len(warning) < 700
