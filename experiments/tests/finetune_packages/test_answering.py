"""A test file's prompts are asked as they were learned, and the answers are scored to the digit."""

from __future__ import annotations

import json

import pytest
from helpers.tasks import pairs, write_lines, write_task

from experiments.finetune_packages import answering
from experiments.finetune_packages.answering import TASK_METRICS, answer_test, language_of
from pangu_sigma.checkpoint.model_files import write_config
from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.finetune.samples import SampleEncoder
from pangu_sigma.finetune.task import read_task
from pangu_sigma.generate.text import Generated, generate
from pangu_sigma.stored.open import open_model

BAD = '{"prompt": "the cat"}'


@pytest.fixture
def asked(tiny_run, tmp_path):
    """A run's configuration with a task in it, and a test file of four lines and one that cannot be used."""
    task = write_task(tmp_path / "test.yaml")
    config = read_task(task).config(open_model(tiny_run, "run").config, ["en"], 4)
    (tmp_path / "tuned").mkdir()
    write_config(tmp_path / "tuned", config, "run")
    return config, tmp_path / "tuned", write_lines(tmp_path / "test.jsonl", [*pairs(0, 4), BAD])


def test_prompts_are_those_that_were_learned_and_answers_are_kept(asked, tiny_run, tmp_path, monkeypatch):
    config, tuned, test = asked
    seen = []

    def recorded(engine, prompts, *arguments, **options):
        seen.append((engine.decoder.tokenizer, prompts, options["stop"]))
        return generate(engine, prompts, *arguments, **options)

    monkeypatch.setattr(answering, "generate", recorded)
    found = answer_test(tiny_run, tuned, test, tmp_path / "kept" / "a.json", 8)
    (tokenizer, prompts, stop), domain = seen[0], domains_of(config).named("en")
    for (name, text), line in zip(prompts, pairs(0, 4), strict=True):
        spelled = SampleEncoder(tokenizer, config).encode_answer((("user", line["prompt"]),), line["response"], domain)
        assert (name, tokenizer.prompt(text, domain)) == ("en", spelled.ids_T[: spelled.answer].tolist())
    assert stop == ("\n",)
    assert (found["n"], found["skipped"], len(found["answers"])) == (4, 1, 4)
    assert answer_test(tiny_run, tuned, test, tmp_path / "kept" / "a.json", 8) == found
    assert len(seen) == 1, "what is kept is not asked again"
    assert json.loads((tmp_path / "kept" / "a.json").read_text()) == found


def test_right_answers_count_and_unfinished_ones_are_told(asked, tiny_run, tmp_path, monkeypatch):
    _, tuned, test = asked
    texts = [f" {line['response']}\t" for line in pairs(0, 3)] + ["cow"]

    def told(engine, prompts, *_, **__):
        return [Generated(*prompt, text, [], text != "cow") for prompt, text in zip(prompts, texts, strict=True)]

    monkeypatch.setattr(answering, "generate", told)
    found = answer_test(tiny_run, tuned, test, tmp_path / "b.json")
    assert (found["scores"], found["unfinished"]) == ({"exact_match": 75.0, "f1": 75.0}, 1)


def test_what_cannot_be_asked_is_refused(asked, tiny_run, tmp_path):
    _, tuned, _ = asked
    with pytest.raises(DataError, match=r"empty\.jsonl: has no line that can be used"):
        answer_test(tiny_run, tuned, write_lines(tmp_path / "empty.jsonl", [BAD]), tmp_path / "c.json")
    with pytest.raises(ConfigError, match="is a run that is not tuned to a task"):
        answer_test(tiny_run, tiny_run, write_lines(tmp_path / "d.jsonl", pairs(0, 1)), tmp_path / "c.json")


def test_scores_are_from_0_to_100():
    wanted = ["打开文件", "保存所有的文件"]
    for name in ("bleu", "chrf"):
        assert TASK_METRICS[name](wanted, wanted, "zh") == pytest.approx(100.0)
        assert TASK_METRICS[name](["", ""], wanted, "zh") == 0.0
    for name in ("exact_match", "f1"):
        assert TASK_METRICS[name](["get a word", "no"], ["get a word", "yes"], "en") == 50.0


@pytest.mark.parametrize(("task", "language"), [("test", "en"), ("translation_en_zh", "zh")])
def test_the_language_of_answers(task, language, asked):
    config, *_ = asked
    assert config.finetune is not None
    other = config.model_copy(update={"finetune": config.finetune.model_copy(update={"task": task})})
    assert language_of(other) == language
