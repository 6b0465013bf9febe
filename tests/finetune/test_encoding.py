"""A sample is spelled as serving asks: the ids of the prompt, then the answer's, then the end; and cut where the task says."""

from __future__ import annotations

import pytest
from helpers.tasks import TASK

from experiments.tiny import tiny_config
from pangu_sigma.domains import domains_of
from pangu_sigma.finetune.samples import SampleEncoder, TooLong
from pangu_sigma.generate.chat_template import ChatTemplate
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun


@pytest.fixture(scope="module")
def run(tiny_run) -> StoredRun:
    return open_model(tiny_run, "run")


def speller(run: StoredRun, data, **options: object) -> SampleEncoder:
    config = tiny_config(data, finetune=TASK["finetune"] | {"domain": "en"} | options, chat=TASK["chat"])
    return SampleEncoder(run.tokenizer, config)


BEFORE = (("user", "the cat sees"), ("assistant", "a dog"), ("user", "the bird hears"))


@pytest.mark.parametrize(
    ("name", "prompt", "text"),
    [("en", "the cat sees", "a dog"), ("zh", "今天天气", "不错\n我们去"), ("code", "def add", "return x")],
)
def test_prompt_answer_and_end(run, tiny_data, name, prompt, text):
    domain = domains_of(run.config).named(name)
    sample = speller(run, tiny_data).spell((("user", prompt),), text, domain)
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
    whole = speller(run, tiny_data).spell(BEFORE[2:], "a dog", domain)
    long = BEFORE * 4
    short = speller(run, tiny_data).spell(long, "a dog", domain)
    assert short.cut
    assert len(short.ids_T) <= 33
    template = ChatTemplate.of(domain, run.config.chat.model_copy(update=TASK["chat"]))
    prompts = [run.tokenizer.prompt(template.prompt(long[left_out:]), domain) for left_out in range(len(long))]
    assert short.ids_T[: short.answer].tolist() == next(p for p in prompts if len(p) + whole.counted <= 33)
    for where in (domain, code):
        ids = run.tokenizer.prompt(
            ChatTemplate.of(where, run.config.chat.model_copy(update=TASK["chat"])).prompt(long), where
        )
        beginning = speller(run, tiny_data, cut="prompt").spell(long, "a dog", where)
        assert len(beginning.ids_T) == 33, "all of the room is used"
        tag = int(where is code)
        kept = beginning.ids_T[: beginning.answer].tolist()
        assert kept[:tag] == ids[:tag], "the tag of the language stays"
        assert kept[tag:] == ids[len(ids) - beginning.answer + tag :]
    with pytest.raises(TooLong, match="prompt and answer are too long"):
        speller(run, tiny_data, cut="none").spell(long, "a dog", domain)
    with pytest.raises(TooLong, match="prompt and answer are too long"):
        speller(run, tiny_data).spell((("user", "the cat " * 30),), "a dog", domain)
    with pytest.raises(TooLong, match="the answer is too long"):
        speller(run, tiny_data, cut="prompt").spell(BEFORE[:1], "the dog " * 40, domain)


def test_an_article_stays_when_messages_are_left_out(run, tiny_data):
    domain = domains_of(run.config).named("en")
    sample = speller(run, tiny_data).spell((("system", "the old house"), *BEFORE * 4), "a dog", domain)
    assert sample.cut
    assert run.tokenizer.decode(sample.ids_T[: sample.answer].tolist()).startswith("the old house and")
