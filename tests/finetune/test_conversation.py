"""Lines of a task's file become conversations, or are rejected with what was expected."""

from __future__ import annotations

import json

import pytest

from experiments.tiny import tiny_config
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.finetune.samples import Conversation, parse_conversation
from pangu_sigma.text.documents import RejectedLine


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> Domains:
    return domains_of(tiny_config(tmp_path_factory.mktemp("none")))


def say(*texts: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn; one that begins with ! is the system's."""
    roles = ["user", "assistant"] * len(texts)
    return [
        {"role": "system", "content": t[1:]} if t[0] == "!" else {"role": roles.pop(0), "content": t} for t in texts
    ]


def test_a_pair_is_a_conversation_of_two_messages(domains):
    line = json.dumps({"prompt": "a", "response": "b", "id": 7}).encode()
    assert parse_conversation(line, domains, "en") == Conversation("en", (("user", "a"), ("assistant", "b")))
    named = json.dumps({"prompt": "a", "response": "b", "domain": "zh"}).encode()
    assert parse_conversation(named, domains, "en").domain == "zh"


def test_a_mistyped_domain_is_refused_and_other_keys_are_ignored(domains):
    pair = {"prompt": "a", "response": "b"}
    for typo in ("domian", "Domain", "domains", "doman"):
        with pytest.raises(RejectedLine, match=f"unknown key '{typo}', nearest 'domain'"):
            parse_conversation(json.dumps({**pair, typo: "zh"}).encode(), domains, "en")
    for other in ({"subdomain": "x", "main": 1, "prompt_id": 2}, {"domain": "en", "domains": ["zh"]}):
        assert parse_conversation(json.dumps(pair | other).encode(), domains, "en").domain == "en"


def test_each_answer_comes_with_all_that_was_said_before(domains):
    talk = parse_conversation(json.dumps({"messages": say("!s", "a", "b", "c", "d")}).encode(), domains, "en")
    system = ("system", "s")
    assert list(talk.answers()) == [
        ((system, ("user", "a")), "b"),
        ((system, ("user", "a"), ("assistant", "b"), ("user", "c")), "d"),
    ]


MALFORMED = [
    (b"", "not JSON"),
    (b'{"prompt": "a"', "not JSON"),
    (b"\xff", "not UTF-8"),
    (b"[1]", "not a JSON object"),
    (b'"prompt"', "not a JSON object"),
    (b"{}", "wrong keys"),
    (b'{"prompt": "a"}', "wrong keys"),
    (b'{"response": "a"}', "wrong keys"),
    (b'{"prompt": "a", "response": "b", "messages": []}', "wrong keys"),
    (b'{"question": "a", "answer": "b"}', "wrong keys"),
    (b'{"prompt": "a", "response": ""}', "empty text"),
    (b'{"prompt": " \\n", "response": "b"}', "empty text"),
    (b'{"prompt": "a", "response": 3}', "text missing or not a string"),
    (b'{"prompt": null, "response": "b"}', "text missing or not a string"),
    (b'{"prompt": "\\ud83d", "response": "b"}', "not Unicode text"),
    (b'{"prompt": "a\\ud83d", "response": "b"}', "not Unicode text"),
    (b'{"prompt": "a", "response": "b", "domain": "fr"}', "unknown domain"),
    (b'{"prompt": "a", "response": "b", "domain": null}', "domain missing or not a string"),
    (b'{"messages": {}}', "messages not a list of objects"),
    (b'{"messages": ["a", "b"]}', "messages not a list of objects"),
    (b'{"messages": []}', "no answer at the end"),
    (json.dumps({"messages": say("a")}).encode(), "no answer at the end"),
    (json.dumps({"messages": say("a", "b", "c")}).encode(), "no answer at the end"),
    (json.dumps({"messages": say("!s")}).encode(), "no answer at the end"),
    (json.dumps({"messages": say("a", "!s", "b")}).encode(), "system message not the first"),
    (json.dumps({"messages": [{"role": "assistant", "content": "a"}] * 2}).encode(), "an answer to nothing"),
    (json.dumps({"messages": [{"role": "tool", "content": "a"}, *say("a", "b")]}).encode(), "unknown role"),
    (json.dumps({"messages": [{"content": "a"}, *say("a", "b")]}).encode(), "unknown role"),
    (json.dumps({"messages": [{"role": "user"}, *say("a", "b")]}).encode(), "text missing or not a string"),
]


@pytest.mark.parametrize(("line", "reason"), MALFORMED, ids=[str(i) for i in range(len(MALFORMED))])
def test_a_malformed_line_says_what_is_wrong(domains, line, reason):
    with pytest.raises(RejectedLine) as refused:
        parse_conversation(line, domains, "en")
    assert refused.value.args[0] == reason
    assert refused.value.args[1]
