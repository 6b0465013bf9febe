"""No message of dev or test stands in an earlier split or in pre-training, in whatever case and with whatever marks."""

from __future__ import annotations

import random

import pytest

from experiments.finetune_packages.decontaminate import (
    Example,
    Occurrences,
    TaskSplit,
    as_line,
    decontaminate,
    words_of,
)


def split(*prompts: str) -> TaskSplit:
    return TaskSplit((), [Example(prompt, f"译 {number}", prompt, "o") for number, prompt in enumerate(prompts)])


def prompts(found: TaskSplit) -> list[str]:
    return [example.prompt for example in found.examples]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("&File…", "_file"),
        ("Open  the file!", "open the FILE"),
        ("“%(name)s” is new", "name s is new"),
        ("打开文件。", "打开 文件"),
    ],
)
def test_case_marks_and_punctuation_do_not_count(one, other):
    assert words_of(one) == words_of(other) != ()


def test_words_are_found_one_after_another_as_a_plain_search_finds_them():
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcd", k=30)) for _ in range(20)]
    messages = {tuple(draw.choices("abcd", k=draw.randint(1, 7))) for _ in range(300)}
    seen = Occurrences(messages)
    for text in texts:
        seen.look_into(text)
    plain = {message for message in messages if any(f" {' '.join(message)} " in f" {text} " for text in texts)}
    assert seen.found == plain
    assert 50 < len(plain) < len(messages)


def test_what_stands_elsewhere_is_left_out_and_counted():
    tuning = split("Open the file", "open the _File", "Save all", "…", "word " * 40)
    dev = split("Save all", "Close it", "In a book")
    test = split("the file", "Close it", "Closed", "closed!", "New thing", "Read a book")
    decontaminate([tuning, dev, test], ["He was in a  BOOK, once", "", "Open"], [9, 9, 9])
    assert prompts(tuning) == ["Open the file", "Save all"]
    assert dict(tuning.counts) == {"twice": 1, "no word": 1, "too long": 1, "more than wanted": 0}
    assert (prompts(dev), dev.counts["in the text of pre-training"], dev.counts["in an earlier split"]) == (
        ["Close it"],
        1,
        1,
    )
    assert prompts(test) == ["Closed", "New thing", "Read a book"]
    assert dict(test.counts) == {
        "twice": 1,
        "in the text of pre-training": 0,
        "in an earlier split": 2,
        "more than wanted": 0,
    }
    assert len(test.examples) + sum(test.counts.values()) == 6, "each is kept or counted"


def test_a_message_in_a_response_and_a_prompt_that_is_there_already_are_left_out():
    tuning = TaskSplit((), [Example("What is a?", "make a new window", "make a new window", "o")])
    test = TaskSplit(
        (), [Example("What is b?", "a new window", "a new window", "o"), Example("What is a?", "x y", "x y", "o")]
    )
    decontaminate([tuning, test], [], [9, 9])
    assert (test.examples, test.counts["in an earlier split"]) == ([], 2)


def test_too_many_are_drawn_alike_each_time_and_in_order():
    found = []
    for _ in range(2):
        tuning = split(*(f"message {number}" for number in range(50)))
        decontaminate([tuning], [], [7])
        found.append(prompts(tuning))
    assert found[0] == found[1] == sorted(found[0], key=lambda text: int(text.split()[1]))
    assert (len(found[0]), tuning.counts["more than wanted"]) == (7, 43)
    assert found[0] != [f"message {number}" for number in range(7)]


def test_the_line_of_an_example_is_one_that_finetune_reads():
    assert as_line(Example("p", "r", "m", "o")) == {"prompt": "p", "response": "r", "origin": "o"}
