"""Answers to first turns are measured by how much they differ, and chats with itself are written down for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.told_decoder import told_engine

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks.dialogue import run
from pangu_sigma.sections import ChatConfig

CHAT = ChatConfig(user="U:{content}\n", assistant="A:{content}\n", stop=["\nU:"])


def written(folder: Path, *prompts: object) -> Path:
    rows = [each if isinstance(each, dict) else {"prompt": each} for each in prompts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_answers_differ_as_much_as_their_words(tmp_path):
    engine = told_engine({"U:hi\nA:": " a b a\nU:more", "U:你好\nA:": "好好 b"}, chat=CHAT)
    result = run(engine, "up", written(tmp_path, "hi", "你好"))
    assert engine.decoder.prompts == {"U:hi\nA:", "U:你好\nA:"}
    assert run(engine, "up", tmp_path, limit=1).metrics == {"distinct_1": 2 / 3, "distinct_2": 1}
    # words: a b a 好 好 b; pairs: (a b) (b a) (好 好) (好 b)
    assert result.figures() == {"distinct_1": 3 / 6, "distinct_2": 4 / 4, "n": 2, "skipped": 0, "truncated": 0}


def test_a_chat_with_itself_is_written_down(tmp_path):
    """Who speaks is the assistant, and the other one the user, whoever it is."""
    told = {
        "U:one\nA:": "two\nlines",
        "A:one\nU:two\nlines\nA:": " three",
        "U:one\nA:two\nlines\nU:three\nA:": "four",
        "U:x\nA:": "",
    }
    engine, path = told_engine(told, chat=CHAT), tmp_path / "chats.md"
    result = run(engine, "up", written(tmp_path, "one", "x"), transcripts=path, turns=4)
    assert engine.decoder.prompts == set(told)
    assert result.metrics["distinct_1"] == 1
    assert path.read_text() == (
        "# Chats of a model with itself: fake, domain up\n\nThe first message of each was given to it.\n\n"
        "## 1\n\n**A:** one\n\n**B:** two  \nlines\n\n**A:** three\n\n**B:** four\n\n"
        "## 2\n\n**A:** x\n\n*Nothing more was said by B.*\n"
    )


def test_the_oldest_messages_of_a_long_chat_are_left_out(tmp_path, caplog):
    told = {"U:12\nA:": "34", "A:12\nU:34\nA:": "56", "A:34\nU:56\nA:": "78"}
    path = tmp_path / "chats.md"
    engine = told_engine(told, seq_length=20, chat=CHAT)
    run(engine, "up", written(tmp_path, "12"), transcripts=path, turns=4, max_new_tokens=6)
    assert "**A:** 56\n\n**B:** 78\n" in path.read_text()
    assert "in 1 of 1 chats the oldest messages were left out, to fit" in caplog.messages


def test_a_first_turn_that_does_not_fit_is_counted(tmp_path):
    result = run(told_engine({}, seq_length=20, chat=CHAT), "up", written(tmp_path, "1" * 30, "2"))
    assert result.figures() == {"distinct_1": 0.0, "distinct_2": 0.0, "n": 2, "skipped": 0, "truncated": 1}


def test_lines_without_a_first_turn_are_skipped_and_counted(tmp_path, caplog):
    result = run(told_engine({}, chat=CHAT), "up", written(tmp_path, "hi", "", 1, {"text": "a"}))
    assert (result.n, result.skipped) == (1, 3)
    for line, expected in (
        (2, "prompt: a text expected, found none"),
        (3, "prompt: a text expected, found 1"),
        (4, "a field prompt"),
    ):
        assert f"prompts.jsonl:{line}: {expected}" in caplog.text
    assert "1 of 1 answers are empty" in caplog.text


def test_what_cannot_be_asked_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"prompts.jsonl is not there; get it from your own first turns"):
        run(told_engine({}), "up", tmp_path)
    with pytest.raises(ConfigError, match="turns=1 is not allowed: 2 or more"):
        run(told_engine({}), "up", tmp_path, turns=1)
