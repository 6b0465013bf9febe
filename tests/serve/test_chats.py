"""POST /v1/chat/completions: messages become the text of the template, and the answer is what a completion of that text says."""

from __future__ import annotations

import pytest
from helpers.served import LENGTH, DrawnDecoder, client_of, events

ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]


def ask(client, **parameters):
    body = {"model": "sigma-en", "messages": ASKED, "seed": 3, "max_tokens": 20} | parameters
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def test_the_answer_is_that_to_the_text_of_the_template(client):
    body = {"model": "sigma-en", "prompt": "Be kind.\nUser: hi\nAssistant:", "seed": 3, "max_tokens": 20}
    completion = client.post("/v1/completions", json=body | {"stop": "\nUser:"}).json()
    (said,), chat = completion["choices"], ask(client).json()
    message = {"role": "assistant", "content": said["text"].removeprefix(" "), "refusal": None}
    rest = {"index": 0, "logprobs": None, "finish_reason": said["finish_reason"]}
    assert chat["choices"] == [{"message": message} | rest]
    assert chat["usage"] == completion["usage"]
    assert chat["object"] == "chat.completion"


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}])
def test_a_stream_joined_is_the_answer(client, logprobs):
    parameters = {"n": 2, "max_tokens": None, **logprobs}
    expected = ask(client, **parameters).json()
    *chunks, last = events(ask(client, stream=True, stream_options={"include_usage": True}, **parameters).text)
    assert (last["choices"], last["usage"]) == ([], expected["usage"])
    for choice in expected["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert mine[-1]["delta"] == {}
        assert [part["finish_reason"] for part in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        assert "".join(part["delta"].get("content", "") for part in mine) == choice["message"]["content"]
        tokens = [each for part in mine if part["logprobs"] for each in part["logprobs"]["content"]]
        assert tokens == (choice["logprobs"]["content"] if logprobs else [])
        assert all(len(token["top_logprobs"]) == logprobs.get("top_logprobs", 0) for token in tokens)


@pytest.mark.parametrize(
    ("piece", "content"), [(b"\n", "\n" * 6), (b" ", " " * 5)], ids=["line breaks", "blanks, one of the template"]
)
def test_white_space_of_an_answer_is_in_its_content(client, decoder, piece, content):
    """The blank after "Assistant:" belongs to the template, which leaves it to the model; all else is the model's answer."""
    rows, surfaces = decoder.tokenizer.slot_rows[1], decoder.tokenizer.vocabulary.surfaces
    token = next(int(row) for row in rows if row >= 0 and surfaces[row] == piece)
    asked = {"temperature": 0, "max_tokens": 6, "logit_bias": {str(token): 100}}
    (choice,) = ask(client, **asked).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, "length")
    parts = [
        chunk["choices"][0]["delta"].get("content", "") for chunk in events(ask(client, stream=True, **asked).text)
    ]
    assert "".join(parts) == content


def test_no_tools_are_no_reason_to_refuse(client):
    expected = ask(client).json()["choices"]
    for no_tools in ({"tool_choice": None}, {"tool_choice": "none"}, {"tools": []}, {"tools": None}):
        assert ask(client, **no_tools).json()["choices"] == expected


def test_what_is_left_out_is_said(client):
    said = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"the cat {i}"} for i in range(11)]
    chat = ask(client, messages=[ASKED[0], *said]).json()
    (warning,) = chat["warnings"]
    left_out = int(warning.split()[0])
    assert warning.startswith(f"{left_out} of 12 messages, the oldest, were left out")
    assert 0 < left_out < 11
    assert chat["usage"]["prompt_tokens"] <= LENGTH - 20
    kept = ask(client, messages=[ASKED[0], *said[left_out:]]).json()
    assert kept["choices"] == chat["choices"]
    assert "warnings" not in kept
    assert events(ask(client, messages=[ASKED[0], *said], stream=True).text)[0]["warnings"] == chat["warnings"]


def test_the_configuration_says_how_messages_are_written(tiny_data):
    decoder = DrawnDecoder(tiny_data, user="<{content}>", assistant="[{content}]", stop=["e"])
    with client_of(decoder) as client:
        chat = ask(client, messages=ASKED[1:]).json()
        body = {"model": "sigma-en", "prompt": "<hi>[", "seed": 3, "max_tokens": 20, "stop": "e"}
        text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert chat["choices"][0]["message"]["content"] == text


def test_an_answer_comes_back_with_the_nulls_that_a_client_adds(client):
    answer = ask(client).json()["choices"][0]["message"]
    with_nulls = answer | dict.fromkeys(["annotations", "audio", "function_call", "tool_calls"])
    more = {"role": "user", "content": [{"type": "text", "text": "and?"}]}
    plain = ask(client, messages=[*ASKED, answer, more]).json()
    reply = ask(client, messages=[*ASKED, with_nulls, more], functions=None).json()
    assert reply["choices"] == plain["choices"]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "the last one does not fit"),
        ({"messages": [ASKED[0], {"role": "user", "content": "x" * 2000}]}, "the first and the last one do not fit"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "x"}]}, "the last one must have the role user"),
        ({"messages": [*ASKED, *ASKED]}, "only the first one can have the role system"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "must be a text"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name: this parameter is not known"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            'messages.0.content: must be a text, or a list of parts {"type": "text", "text": …}; images, audio and files are',
        ),
        ({"messages": [{"role": "user", "content": "x"}] * 257}, "messages: it must have at most 256 items, not 257"),
        ({"top_logprobs": 1}, "top_logprobs is only allowed with logprobs=true"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "mean the same and differ"),
        ({"max_tokens": LENGTH + 1}, f"max_tokens: {LENGTH + 1} leaves no room for a prompt"),
        ({"tools": [{}]}, "tools: these models call no tools; response_format"),
        ({"tool_choice": "auto"}, "tool_choice: these models call no tools; response_format"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "only allowed with stream=true"),
    ],
)
def test_what_cannot_be_is_refused(client, parameters, reason):
    answer = client.post("/v1/chat/completions", json={"model": "sigma-en", "messages": ASKED} | parameters)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]["message"]
