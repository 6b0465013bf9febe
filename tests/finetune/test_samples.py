"""Lines of a task's file become conversations and samples, spelled as serving asks, or are counted with what is wrong."""

from __future__ import annotations

import json

import pytest
from helpers.tasks import TASK, pairs, write_lines

from experiments.tiny import tiny_config
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.finetune.samples import (
    Conversation,
    SampleEncoder,
    TaskFile,
    TooLong,
    format_file,
    parse_conversation,
    read_task_file,
)
from pangu_sigma.generate.chat_template import ChatTemplate
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun
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


@pytest.fixture(scope="module")
def run(tiny_run) -> StoredRun:
    return open_model(tiny_run, "run")


def encoder_of(run: StoredRun, data, **options: object) -> SampleEncoder:
    config = tiny_config(data, finetune=TASK["finetune"] | {"domain": "en"} | options, chat=TASK["chat"])
    return SampleEncoder(run.tokenizer, config)


BEFORE = (("user", "the cat sees"), ("assistant", "a dog"), ("user", "the bird hears"))


@pytest.mark.parametrize(
    ("name", "prompt", "text"),
    [("en", "the cat sees", "a dog"), ("zh", "今天天气", "不错\n我们去"), ("code", "def add", "return x")],
)
def test_prompt_answer_and_end(run, tiny_data, name, prompt, text):
    domain = domains_of(run.config).named(name)
    sample = encoder_of(run, tiny_data).encode_answer((("user", prompt),), text, domain)
    template = ChatTemplate.of(domain, run.config.chat.model_copy(update=TASK["chat"]))
    asked = run.tokenizer.prompt(template.prompt((("user", prompt),)), domain)
    assert sample.ids_T[: sample.answer].tolist() == asked
    assert sample.ids_T[-1] == run.tokenizer.eot
    answer = run.tokenizer.decode(sample.ids_T[sample.answer : -1].tolist())
    assert answer == f" {text}", "its blank is not the prompt's"
    assert sample.counted == len(sample.ids_T) - sample.answer
    assert not sample.cut


def test_what_is_too_long_is_cut_as_the_task_says_and_never_the_answer(run, tiny_data):
    domain, code = (domains_of(run.config).named(name) for name in ("en", "code"))
    whole = encoder_of(run, tiny_data).encode_answer(BEFORE[2:], "a dog", domain)
    long = BEFORE * 4
    short = encoder_of(run, tiny_data).encode_answer(long, "a dog", domain)
    assert short.cut
    assert len(short.ids_T) <= 33
    template = ChatTemplate.of(domain, run.config.chat.model_copy(update=TASK["chat"]))
    prompts = [run.tokenizer.prompt(template.prompt(long[left_out:]), domain) for left_out in range(len(long))]
    assert short.ids_T[: short.answer].tolist() == next(p for p in prompts if len(p) + whole.counted <= 33)
    for where in (domain, code):
        ids = run.tokenizer.prompt(
            ChatTemplate.of(where, run.config.chat.model_copy(update=TASK["chat"])).prompt(long), where
        )
        beginning = encoder_of(run, tiny_data, cut="prompt").encode_answer(long, "a dog", where)
        assert len(beginning.ids_T) == 33, "all of the room is used"
        tag = int(where is code)
        kept = beginning.ids_T[: beginning.answer].tolist()
        assert kept[:tag] == ids[:tag], "the tag of the language stays"
        assert kept[tag:] == ids[len(ids) - beginning.answer + tag :]
    with pytest.raises(TooLong, match="prompt and answer are too long"):
        encoder_of(run, tiny_data, cut="none").encode_answer(long, "a dog", domain)
    with pytest.raises(TooLong, match="prompt and answer are too long"):
        encoder_of(run, tiny_data).encode_answer((("user", "the cat " * 30),), "a dog", domain)
    with pytest.raises(TooLong, match="the answer is too long"):
        encoder_of(run, tiny_data, cut="prompt").encode_answer(BEFORE[:1], "the dog " * 40, domain)


def test_an_article_stays_when_messages_are_left_out(run, tiny_data):
    domain = domains_of(run.config).named("en")
    sample = encoder_of(run, tiny_data).encode_answer((("system", "the old house"), *BEFORE * 4), "a dog", domain)
    assert sample.cut
    assert run.tokenizer.decode(sample.ids_T[: sample.answer].tolist()).startswith("the old house and")


@pytest.fixture
def read(tiny_run, tiny_data, tmp_path):
    def reading(*lines: object, **options: object) -> TaskFile:
        run, path = open_model(tiny_run, "run"), write_lines(tmp_path / "a.jsonl", lines)
        config = tiny_config(tiny_data, finetune=TASK["finetune"] | options, chat=TASK["chat"])
        return read_task_file(path, "--train-file", config, run.tokenizer)

    return reading


def test_every_line_is_accounted_for_by_domain(read, tmp_path):
    talk = [{"role": role, "content": text} for role, text in (("user", "the cat"), ("assistant", "a dog")) * 4]
    chinese = {"prompt": "今天", "response": "天气", "domain": "zh"}
    long = {"prompt": "the cat " * 30, "response": "dog"}
    found = read(*pairs(0, 3), {"messages": talk}, chinese, long, "no json", {"prompt": "a"}, "", '{"prompt"')
    facts, counts = found.facts, ("lines", "samples", "left_out")
    english, other = facts["domains"]["en"], facts["domains"]["zh"]
    assert [english[key] for key in counts] == [5, 7, {"prompt and answer are too long": 1}]
    assert english["cut"] > 0, "of four answers the last ones have too long a past"
    assert [other[key] for key in counts] == [1, 1, {}]
    assert [count > 0 for count in found.sequences.counts] == [True, True, False]
    samples = [sample for own in found.sequences._samples for sample in own]
    assert english["tokens"] + other["tokens"] == sum(len(sample.ids_T) for sample in samples)
    assert english["counted"] + other["counted"] == sum(sample.counted for sample in samples)
    assert english["sequences"] == found.sequences.counts[1] < 7
    assert facts["skipped"] == {"not JSON": 2, "wrong keys": 1}
    assert [line.reason for line in found.unusable_lines] == ["not JSON", "wrong keys", "not JSON"]
    assert found.unusable_lines[0].offset == (tmp_path / "a.jsonl").read_bytes().index(b"no json")
    table = format_file(facts)
    assert "3 lines are unusable and quarantined:\n  2 × not JSON, first " in table
    assert "left out: 1 × prompt and answer are too long" in table


def test_a_file_without_a_sample_that_can_be_used_is_refused(read, tmp_path):
    with pytest.raises(
        DataError, match=r"(?s)1 line is unusable.*\ntrain_file .*a\.jsonl: has no sample that can be used"
    ):
        read("nothing")
    with pytest.raises(
        DataError, match=r"no sample that can be used: 1 × the answer is too long; model\.seq_length is 32"
    ):
        read({"prompt": "a", "response": "the cat " * 40})
    with pytest.raises(DataError, match=r"train_file .*none\.jsonl: cannot be read"):
        read_task_file(tmp_path / "none.jsonl", "--train-file", None, None)


def test_the_hash_is_that_of_the_samples(read):
    first = read(*pairs(0, 3))
    assert read(*pairs(0, 3), "bad").sequences.hash == first.sequences.hash
    assert read(*pairs(0, 4)).sequences.hash != first.sequences.hash
    assert first.facts["samples"] == first.sequences.hash
