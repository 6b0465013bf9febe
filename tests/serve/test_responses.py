"""Answers are what OpenAI's own client package declares, strictly, and have no field besides that nobody asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.served import events
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

ASKED: list[dict[str, Any]] = [{}, {"n": 2}, {"logprobs": 0}, {"logprobs": 3, "n": 2}, {"echo": True, "logprobs": 1}]
CHATS: list[dict[str, Any]] = [{}, {"n": 2}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}]


def foreign(body: BaseModel, path: str = "") -> Iterator[str]:
    """Fields that the package does not declare."""
    yield from (f"{path}.{name}" for name in body.model_extra or {})
    for name in type(body).model_fields:
        value = getattr(body, name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, BaseModel):
                yield from foreign(each, f"{path}.{name}")


def check(kind: type[BaseModel], tree: dict[str, Any]) -> None:
    assert list(foreign(kind.model_validate(tree, strict=True))) == []


def scored(tree: dict[str, Any]) -> dict[str, Any]:
    """Without the first token of an echo: OpenAI's interface says null of it, and its package has no word for that."""
    tree = copy.deepcopy(tree)
    for choice in tree["choices"]:
        for name in ("token_logprobs", "top_logprobs") if choice["logprobs"] else ():
            values = choice["logprobs"][name]
            assert None not in values[1:]
            choice["logprobs"][name] = values[1:] if values and values[0] is None else values
    return tree


@pytest.mark.parametrize("parameters", ASKED)
def test_completions(client, parameters):
    body = {"model": "sigma-en", "prompt": "the cat", **parameters}
    check(Completion, scored(client.post("/v1/completions", json=body).json()))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post("/v1/completions", json=body | options).text)
    check(Completion, last)
    for chunk in chunks:
        choice = chunk["choices"][0]
        # the package says of a whole answer that it ended, and has no type of its own for a part
        check(Completion, scored({**chunk, "choices": [choice | {"finish_reason": choice["finish_reason"] or "stop"}]}))


@pytest.mark.parametrize("parameters", CHATS)
def test_chats(client, parameters):
    body = {"model": "sigma-en", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, **parameters}
    check(ChatCompletion, client.post("/v1/chat/completions", json=body).json())
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in events(client.post("/v1/chat/completions", json=body | options).text):
        check(ChatCompletionChunk, chunk)


def test_models_have_two_fields_more(client):
    for tree in client.get("/v1/models").json()["data"]:
        assert sorted(foreign(Model.model_validate(tree, strict=True))) == [".domain", ".max_model_len", ".segments"]
