"""Answers belong to their prompts, and what does not fit is cut where that is said, and counted."""

from __future__ import annotations

import pytest
from helpers.served import LENGTH, DrawnDecoder
from helpers.told_decoder import told_engine

from pangu_sigma.config import ConfigError
from pangu_sigma.evaluate.benchmarks.prompt_runner import PromptRunner
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.text import generate


def test_answers_stand_with_their_prompts():
    runner = PromptRunner(told_engine({"a:": "one\ntwo", "b:": "今天", "c:": ""}), "up", 16, stop=["\n"])
    assert runner.answers(["b:", "a:", "c:", "a:"]) == [["今天"], ["one"], [""], ["one"]]
    assert runner.truncated == 0


def test_samples_of_a_prompt_differ_and_a_seed_draws_the_same():
    def drawn(times: int) -> list[str]:
        runner = PromptRunner(told_engine({"a": ["one", "two"]}), "up", 16, sampling=Sampling(1.0))
        return runner.answers(["a"], times)[0]

    assert set(drawn(20)) == {"one", "two"}
    assert drawn(20) == drawn(20)
    assert drawn(20)[:19] == drawn(19)


def test_a_prompt_that_does_not_fit_loses_its_beginning(caplog):
    runner = PromptRunner(told_engine({"567890": "yes"}, seq_length=10), "up", 256, 4)
    assert runner.answers(["1234567890", "567890"]) == [["yes"], ["yes"]]
    assert runner.truncated == 1
    assert caplog.messages == ["1 of 2 prompts lost their beginning: 6 tokens fit beside an answer"]


def test_a_text_that_does_not_fit_loses_its_end():
    runner = PromptRunner(told_engine({}, seq_length=20), "up", 256, 10)
    assert runner.truncate("1234", "<{}>:".format) == "<1234>:"
    assert runner.truncated == 0
    assert runner.truncate("1234567890", "<{}>:".format) == "<1234567>:"
    assert runner.truncate("今天天气", "<{}>:".format) == "<今天>:"
    assert runner.truncated == 2
    with pytest.raises(
        ConfigError, match="the prompt without its text has 11 tokens, and 10 are free beside an answer of 10"
    ):
        runner.truncate("1", "12345678901".__add__)


def test_of_several_prompts_the_first_that_fits_is_asked():
    runner = PromptRunner(told_engine({}, seq_length=10), "up", 256, 5)
    assert runner.first_fitting(["12345", "1"]) == "12345"
    assert runner.truncated == 0
    assert runner.first_fitting(["123456", "12345", "1"]) == "12345"
    assert runner.truncated == 1
    assert runner.first_fitting(["1234567", "123456"]) == "123456"
    assert runner.truncated == 1, "it is cut, and counted, where it is asked"


def test_room_for_answers_is_checked_and_said(caplog):
    caplog.set_level("INFO")
    PromptRunner(told_engine({}, seq_length=10), "up", 256)
    assert caplog.messages == [
        "answers have 5 tokens at most, half of what the model can read; max_new_tokens changes it"
    ]
    for most in (0, 10):
        with pytest.raises(ConfigError, match=f"max_new_tokens={most} is not allowed: 1 to 9"):
            PromptRunner(told_engine({}, seq_length=10), "up", 256, most)
    with pytest.raises(ConfigError, match="unknown domain 'zh'"):
        PromptRunner(told_engine({}), "zh", 256)


def test_a_real_tokenizer_reads_the_prompts(tiny_data):
    engine = Engine(DrawnDecoder(tiny_data))
    runner = PromptRunner(engine, "code", 20)
    prompts = ["def f(x):\n    return", "x = [1, 2]\n" * 50]
    found = runner.answers(prompts)
    (alone,) = generate(engine, [("code", prompts[0])], 20)
    assert found[0] == [alone.text]
    assert runner.truncated == 1
    fitted = runner.truncate("x = [1, 2]\n" * 50, "# {}\n".format)
    assert LENGTH - 21 <= len(engine.decoder.tokenizer.prompt(fitted, runner.domain)) <= LENGTH - 20
