"""Tokens in the two forms of OpenAI's interface."""

from __future__ import annotations

from types import SimpleNamespace

from pangu_sigma.generate.request import Token
from pangu_sigma.serve.logprobs import MIN_LOGPROB, CompletionTokens, TokenTexts, chat_logprobs

SURFACES = [b"", b"the", " 今".encode(), b"\xe4", b"\xbb", b"\x8a", b"e", b"e"]
TEXTS = TokenTexts(SimpleNamespace(surfaces=SURFACES, pieces=["<eot>", *"abcdefg"]))


def tokens(*ids, logprob=-1.0, top=()):
    return [Token(token, "", logprob, top) for token in ids]


def test_texts_of_tokens():
    assert [TEXTS.display_text(token) for token in range(5)] == ["<eot>", "the", " 今", "bytes:\\xe4", "bytes:\\xbb"]


def test_offsets_count_characters_and_go_on_from_part_to_part():
    mine = CompletionTokens(TEXTS)
    assert mine.to_logprobs(tokens(1, 2, 3))["text_offset"] == [0, 3, 5]
    assert mine.to_logprobs(tokens(4, 5, 6))["text_offset"] == [5, 5, 6], "今 is whole with its third byte"
    broken = CompletionTokens(TEXTS)
    assert broken.to_logprobs(tokens(3, 6, 4, 6))["text_offset"] == [0, 1, 2, 3], (
        "what breaks off is a character of its own"
    )


def test_of_tokens_with_one_text_the_answers_own_has_it_and_all_are_told():
    """`lm_eval` takes a token for greedy if its log-probability is the highest of these."""
    (token,) = tokens(7, logprob=-3.0, top=((6, -0.5), (1, -1.0)))
    told = CompletionTokens(TEXTS).to_logprobs([token])
    assert told["top_logprobs"] == [{"token_id:6": -0.5, "the": -1.0, "e": -3.0}]
    assert told["token_logprobs"] == [-3.0]
    (token,) = tokens(1, top=((1, -1.0), (6, -2.0), (7, -3.0)))
    told = CompletionTokens(TEXTS).to_logprobs([token])
    assert told["top_logprobs"] == [{"the": -1.0, "e": -2.0, "token_id:7": -3.0}]


def test_json_has_no_infinity():
    (token,) = tokens(1, logprob=-float("inf"))
    assert CompletionTokens(TEXTS).to_logprobs([token])["token_logprobs"] == [MIN_LOGPROB]
    assert chat_logprobs(TEXTS, [token])["content"][0]["logprob"] == MIN_LOGPROB


def test_a_chat_has_bytes():
    told = chat_logprobs(TEXTS, tokens(3, top=((1, -0.1),)))
    assert told["content"][0]["bytes"] == [0xE4]
    assert told["content"][0]["top_logprobs"][0] == {"token": "the", "bytes": [116, 104, 101], "logprob": -0.1}
