"""A chat in the terminal, without one: a line in, an answer out."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.served import DrawnDecoder

from pangu_sigma.config import ConfigError
from pangu_sigma.serve.terminal import ChatSettings, run_chat


@pytest.fixture(scope="module")
def decoder(tiny_data) -> DrawnDecoder:
    return DrawnDecoder(tiny_data, lanes=1)


def said(decoder, text: str, capsys, **settings) -> tuple[list[str], str]:
    """Lines of standard output, and what standard error says."""
    output = io.StringIO()
    settings = {"domain": "en", "temperature": 0.0, "max_new_tokens": 6} | settings
    assert run_chat(decoder, ChatSettings(**settings), io.StringIO(text), output) == 0
    return output.getvalue().splitlines(), capsys.readouterr().err


def test_each_line_has_an_answer(decoder, capsys):
    lines, told = said(decoder, "hello\n\nand you?\n", capsys)
    again, _ = said(decoder, "hello\n/reset\nand you?", capsys)
    assert len([line for line in lines if line]) >= 2
    assert lines[0] == again[0]
    assert lines != again, "what was said before counts"
    assert told == ""


def test_domains_are_chosen_by_name(decoder, capsys):
    zh, _ = said(decoder, "今天", capsys, domain="zh")
    changed, told = said(decoder, "/domain\n/domain zh\n今天\n/domain nope\n", capsys)
    assert changed == zh
    assert "zh, *en, code" in told
    assert "unknown domain 'nope'; this configuration has zh, en, code" in told
    with pytest.raises(ConfigError, match="unknown domain 'xx'"):
        said(decoder, "", capsys, domain="xx")


def test_commands_are_commands_and_two_slashes_are_text(decoder, capsys):
    lines, told = said(decoder, "/help\n/nope\n/temperature hot\n/temperature -1\n/retry\n/quit\nnever\n", capsys)
    assert lines == []
    assert "/domain NAME" in told
    assert "there is no /nope; /help says what there is" in told
    assert "temperature: 'hot' is not allowed: it must be a number" in told
    assert "temperature: -1 is not allowed" in told
    assert "nothing was said yet" in told
    assert said(decoder, "//help\n", capsys)[0] != []


def test_a_temperature_is_a_number_as_elsewhere(decoder, capsys):
    hot = "/temperature 5e-1\nhi\n/retry\n"
    assert said(decoder, hot, capsys, seed=1) == said(decoder, "hi\n/retry\n", capsys, seed=1, temperature=0.5)


def test_an_error_that_is_no_users_is_not_taken_for_a_wrong_number(decoder):
    output = io.TextIOWrapper(io.BytesIO(), "ascii")
    with pytest.raises(UnicodeEncodeError):
        run_chat(decoder, ChatSettings("zh"), io.StringIO("今天\n"), output)


def test_a_line_that_is_not_utf_8_is_told_and_the_chat_goes_on(decoder, capsys):
    plain, _ = said(decoder, "hello\n", capsys)
    lines, told = said(decoder, b"a\xffb\nhello\n".decode(errors="surrogateescape"), capsys)
    assert lines == plain
    assert "half a surrogate pair, '\\udcff', or a byte that is not UTF-8" in told


def test_another_answer_is_drawn_and_a_seed_draws_the_same(decoder, capsys):
    first, _ = said(decoder, "hi\n/retry\n", capsys, temperature=2.0, seed=1, max_new_tokens=20)
    assert first == said(decoder, "hi\n/retry\n", capsys, temperature=2.0, seed=1, max_new_tokens=20)[0]
    assert first[0] != first[-1]


def test_what_is_left_out_is_said_and_what_does_not_fit_is_refused(decoder, capsys):
    lines, told = said(decoder, "word and word and word\n" * 12 + "x" * 3000 + "\nhi\n", capsys)
    assert "the oldest, were left out" in told
    assert "the last one does not fit" in told
    assert lines


def test_a_model_that_fails_is_told_and_the_chat_goes_on(tiny_data, capsys):
    class Broken(DrawnDecoder):
        def logits(self, domain, ids):
            return super().logits(domain, ids) * (np.nan if domain.name == "en" else 1)

    lines, told = said(Broken(tiny_data, lanes=1), "hello\n/domain zh\n今天\n", capsys)
    assert "domain en: the logits after" in told and "are not finite" in told
    assert len([line for line in lines if line]) >= 1


def test_how_answers_are_to_be(decoder, capsys):
    plain, _ = said(decoder, "hi\n", capsys)
    told, _ = said(decoder, "/system Be kind.\nhi\n/system\nhi\n", capsys)
    assert told[0] != plain[0]
    assert told[-1] == plain[-1]


def test_an_answer_that_cannot_be_is_refused_at_the_start(decoder, capsys):
    for tokens in (0, -1, 96, 5000):
        wrong = rf"max_new_tokens={tokens} is not allowed: 1 to 95, as model\.seq_length=96"
        with pytest.raises(ConfigError, match=wrong):
            said(decoder, "hello\n", capsys, max_new_tokens=tokens)


def test_a_message_that_does_not_fit_is_told_with_the_option_of_the_command(decoder, capsys, monkeypatch):
    monkeypatch.setattr("pangu_sigma.errors.on_command_line", True)
    lines, told = said(decoder, "a message of some words\n", capsys, max_new_tokens=95)
    assert lines == [] and "95 are for the answer; shorten them, or lower --max-new-tokens\n" in told


def test_an_interrupted_answer_ends_and_the_chat_goes_on(tiny_data, capsys):
    class Interrupted(DrawnDecoder):
        readings = 0

        def read(self, chunks):
            self.readings += 1
            if self.readings == 3:
                raise KeyboardInterrupt
            return super().read(chunks)

    lines, told = said(Interrupted(tiny_data, lanes=1, ends=False), "hi\nhi\n", capsys, max_new_tokens=9)
    assert told.count("(stopped)") == 1
    assert 0 < len(lines[0]) < len("".join(lines[1:]))
