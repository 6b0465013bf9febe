from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.fake_decoder import FakeDecoder

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import UserError
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.text import ends_in_blank, generate, stream

LENGTH = 10


class Counting(FakeDecoder):
    """Ids are numbers in text; the model likes the last number + 1, and 9 is <eot>."""

    def __init__(self):
        super().__init__(3, LENGTH, self.next_number, [f" {number}".encode() for number in range(12)])
        self.tokenizer.prompt = lambda text, domain: [int(word) for word in text.split()]

    def next_number(self, domain, ids):
        logits_V = np.ones(12)
        logits_V[(ids[-1] + 1) % 12] = 5.0
        return logits_V


@pytest.fixture
def decoder() -> Counting:
    return Counting()


@pytest.fixture
def counting(decoder) -> Engine:
    return Engine(decoder)


def test_it_stops_at_eot_which_is_not_part_of_the_answer_or_after_as_many_tokens_as_asked_or_fit(counting):
    answer = generate(counting, [("up", "5 6")])[0]
    assert (answer.ids, answer.text, answer.finished) == ([5, 6, 7, 8], " 7 8", True)
    assert (answer.domain, answer.prompt) == ("up", "5 6")
    answer = generate(counting, [("up", "1")], max_new_tokens=3)[0]
    assert (answer.ids, answer.text, answer.finished) == ([1, 2, 3, 4], " 2 3 4", False)
    answer = generate(counting, [("up", "1 1 1 1 1 1 1 1")])[0]
    assert (len(answer.ids), answer.finished) == (LENGTH, False)
    assert generate(counting, [("up", "1 " * LENGTH)])[0].text == ""


def test_prompts_answer_together_as_alone_and_leave_when_they_are_done(decoder, counting):
    prompts = [("up", "6"), ("reversed", "1"), ("up", "1 1 1 1 1 1 1 1 1")]
    together = generate(counting, prompts, max_new_tokens=5)
    assert decoder.asked == [3, 2, 2, 1, 1]
    assert together == [generate(counting, [prompt], max_new_tokens=5)[0] for prompt in prompts]


def test_the_seed_decides_what_is_drawn(counting):
    def draw(seed: int) -> list[int]:
        return generate(counting, [("up", "1")], 8, Sampling(temperature=4.0), seed)[0].ids

    assert draw(0) == draw(0)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1


def test_a_prompt_draws_the_same_whatever_the_others_are_and_a_second_one_like_it_with_the_next_seed(counting):
    drawn = Sampling(temperature=4.0)
    prompts = [("up", "1"), ("up", "2"), ("up", "1"), ("reversed", "1"), ("up", "1")]
    together = generate(counting, prompts, 8, drawn, 5)
    seeds = [5, 5, 6, 5, 7]
    assert together == [
        generate(counting, [prompt], 8, drawn, seed)[0] for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert len({tuple(answer.ids) for answer in together}) == len(prompts)


def test_an_answer_ends_before_a_stop_string(counting):
    answer = generate(counting, [("up", "1")], stop=["4 5", "8"])[0]
    assert (answer.text, answer.ids, answer.finished) == (" 2 3 ", [1, 2, 3, 4, 5], True)
    assert "".join(stream(counting, ("up", "1"), stop=["4 5", "8"])) == answer.text


def test_unknown_domains_and_prompts_that_cannot_be_are_refused(counting):
    with pytest.raises(ConfigError, match="unknown domain 'down'; this configuration has up, reversed"):
        generate(counting, [("up", "1"), ("down", "1")])
    with pytest.raises(ConfigError, match=r"domain up has 11 tokens, more than model\.seq_length=10"):
        generate(counting, [("reversed", "1"), ("up", "1 " * (LENGTH + 1))])


def test_a_stream_tells_each_token_when_it_comes(decoder, counting):
    new = stream(counting, ("up", "5 6"))
    assert decoder.asked == []
    assert next(new) == " 7"
    assert decoder.asked == [1]
    assert list(new) == [" 8"]
    assert decoder.asked == [1, 1, 1], "the last one was <eot>"
    assert list(stream(counting, ("up", "5"), max_new_tokens=0)) == []


def test_a_stream_that_is_left_gives_its_lane_back(decoder, counting):
    new = stream(counting, ("up", "1"))
    assert next(new) == " 2"
    new.close()
    assert generate(counting, [("up", "5")])[0].text == " 6 7 8"
    assert (counting.running, counting.waiting) == (0, 0)


def test_a_stream_is_what_generate_returns(counting):
    for seed in range(5):
        options = (8, Sampling(temperature=4.0), seed)
        assert "".join(stream(counting, ("up", "1"), *options)) == generate(counting, [("up", "1")], *options)[0].text


def test_a_blank_at_the_end_of_a_prompt_is_found_where_words_begin_with_theirs(counting):
    for language, with_blank, without in (
        ("en", ["The ", "The city  "], ["The", ""]),
        ("python", ["def "], ["def f():\n        "]),
        ("mixed", ["文件 "], []),
        ("zh", [], ["今天 "]),
    ):
        domain = dataclasses.replace(domains_of(counting.decoder.config)[0], language=language)
        assert all(ends_in_blank(text, domain) for text in with_blank)
        assert not any(ends_in_blank(text, domain) for text in without)


def test_prompts_that_end_in_a_blank_are_warned_of_once(counting, caplog):
    generate(counting, [("up", "1 "), ("up", "1"), ("reversed", "2 ")], 1)
    list(stream(counting, ("up", "3 "), 1))
    assert [message[:31] for message in caplog.messages] == [
        "2 of 3 prompts, such as '1 ': t",
        "1 of 1 prompts, such as '3 ': t",
    ]


def test_logits_that_are_not_finite_are_an_error_of_the_caller_and_name_the_domain(decoder):
    decoder._logits = lambda domain, ids: np.full(12, np.nan)
    for answer in (
        lambda: generate(Engine(decoder), [("up", "1")]),
        lambda: list(stream(Engine(decoder), ("up", "1"))),
    ):
        with pytest.raises(UserError, match="domain up: the logits after 1 tokens are not finite"):
            answer()


def test_a_stream_refuses_before_the_first_token(counting):
    with pytest.raises(ConfigError, match="unknown domain 'down'"):
        stream(counting, ("down", "1"))
