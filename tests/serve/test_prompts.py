"""Texts of requests as token ids: what fits, what is left out, what is said."""

from __future__ import annotations

import asyncio

import pytest
from helpers.served import LENGTH

from pangu_sigma.domains import domains_of
from pangu_sigma.generate.chat_template import ChatTemplate
from pangu_sigma.serve.prompts import PromptTokenizer
from pangu_sigma.serve.refusals import ApiError

PLAIN = ChatTemplate("{content}.", "<{content}>", "[{content}]", ())


@pytest.fixture(scope="module")
def prompts(decoder):
    found = PromptTokenizer(decoder.tokenizer, decoder.config)
    yield found
    found.close()


@pytest.fixture(scope="module")
def en(decoder):
    return domains_of(decoder.config).named("en")


@pytest.mark.parametrize("system", [[], [("system", "Be kind")]])
def test_the_oldest_messages_are_left_out_and_no_more_than_must_be(prompts, decoder, en, system):
    said = [("user" if i % 2 == 0 else "assistant", f"number {i}") for i in range(15)]
    ids, (warning,) = prompts.chat_prompt([*system, *said], en, PLAIN, 30)
    left_out = int(warning.split()[0])
    assert "of which 30 are for the answer" in warning
    assert ids == decoder.tokenizer.prompt(PLAIN.prompt([*system, *said[left_out:]]), en)
    assert len(ids) <= LENGTH - 30
    assert len(decoder.tokenizer.prompt(PLAIN.prompt([*system, *said[left_out - 1 :]]), en)) > LENGTH - 30
    assert prompts.chat_prompt([*system, said[0]], en, PLAIN, 30)[1] == []


def test_without_a_number_a_quarter_is_for_the_answer(prompts, en):
    said = [("user", "x" * 30), ("assistant", "x" * 30), ("user", "x" * 20)]
    ids, warnings = prompts.chat_prompt(said, en, PLAIN, None)
    assert f"of which {LENGTH // 4} are for the answer" in warnings[0]
    assert len(ids) <= LENGTH - LENGTH // 4
    with pytest.raises(ApiError, match=rf"{LENGTH // 4} are for the answer; shorten them, or set max_tokens") as told:
        prompts.chat_prompt([("user", "x" * 85)], en, PLAIN, None)
    assert "lower max_tokens" not in str(told.value.detail) + warnings[0]
    assert prompts.chat_prompt([("user", "x" * 85)], en, PLAIN, 2)[1] == []


def test_all_texts_are_read_in_one_thread_that_is_not_that_of_the_loop(prompts):
    import threading

    async def names():
        return {await prompts.in_thread(lambda: threading.current_thread().name) for _ in range(3)}

    assert asyncio.run(names()) == {"tokenizer_0"}
