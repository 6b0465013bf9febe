from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.config import Config
from pangu_sigma.data.prepare.cleaning.filters import (
    _GRAM,
    FILTER_RULES,
    Filters,
    Text,
    longest_line,
    mean_line,
    parses,
)
from pangu_sigma.data.prepared import preparation_settings
from pangu_sigma.domains import domains_of
from pangu_sigma.sections import FiltersConfig
from pangu_sigma.text.documents import Document


def config(**limits) -> Config:
    return Config(
        name="test",
        model={"hidden": 8, "ffn": 16, "heads": 2, "dense_layers": 1, "rre_layers": 0},
        domains=[
            {"name": "zh", "language": "zh"},
            {"name": "en"},
            {"name": "pairs", "format": "bilingual", "language": "mixed"},
            {"name": "python", "format": "code", "language": "python"},
            {"name": "java", "format": "code", "language": "java"},
        ],
        data={"filters": limits},
    )


def reason(text, domain: str = "en", **limits) -> str | None:
    tree = config(**limits)
    return Filters.of(tree).reason(Document(domain, text, ""), domains_of(tree).named(domain))


def test_every_rule_has_its_key_and_all_are_off():
    assert sorted(FILTER_RULES) == sorted(FiltersConfig.model_fields)
    assert Filters.of(config()).limits == {}
    assert reason("x") is None


@pytest.mark.parametrize(
    ("rule", "text", "value"),
    [
        ("min_characters", "中文 a\n", 5),
        ("max_characters", "中文 a\n", 5),
        ("min_words", "我有2本 good books, 真的!", 8),  # 我 有 2 本 good books 真 的
        ("max_words", "it's a_b", 4),
        ("min_mean_word", "我有 good a1 b。", 7 / 3),
        ("max_mean_word", "我们", None),
        ("max_symbols", "# one … two ... three", 1),
        ("max_symbols", "##", 2),
        ("max_ellipsis_lines", "one…\n\ntwo...\nthree.\n四。。。", 0.75),
        ("max_bullet_lines", "- one\n  * two\n• 三\nfour - five\n", 0.75),
        ("min_ended_lines", "One.\ntwo\n三！\n“四”\n \n", 0.75),
        ("min_letters", "ab1 中!_", 0.5),
        ("min_han", "中ab 文", 0.5),
        ("max_duplicate_lines", "a\nb\n a \n\na\n", 0.5),
        ("max_duplicate_line_characters", "abcd\nab\nabcd\n", 0.4),
        ("max_duplicate_grams", " ".join("abcdefghij") + " x, A B C D E F G H I J", 10 / 21),
        ("max_duplicate_grams", " ".join("abcdefghi" * 2), 0),  # a 10-gram begins again after 9 words: twice are 18
        ("max_duplicate_grams", " ".join("a" * 12), 11 / 12),
        ("max_duplicate_grams", "一二三四五六七八九十" * 3, 20 / 30),
        ("max_code_bytes", "中文\n", 7),
        ("max_code_mean_line", "abc\n\n中文字", 2),
        ("max_code_mean_line", "abc\n", 1.5),
        ("max_code_line", "abc\n中文字四\n", 4),
        ("code_parses", "x = 1", 1),
        ("code_parses", "print 1", 0),
    ],
)
def test_rules_measure_what_is_counted_by_hand(rule, text, value):
    found = FILTER_RULES[rule].measure(Text(text))
    assert found == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize("rule", [rule for rule in FILTER_RULES if rule != "code_parses"])
def test_limits_hold_in_their_sense(rule):
    """Just at the value, and on both sides of it."""
    text = "ab … 中文，“一二三四”。\n- # ab.\nab…\nab…\nab ab ab ab ab ab ab ab ab ab ab ab ab ab"
    domain = {"zh": "zh", "code": "java", "text": "en"}[FILTER_RULES[rule].domains]
    value = FILTER_RULES[rule].measure(Text(text))
    assert value
    step = 1 if isinstance(value, int) else 0.01
    dropped = [reason(text, domain, **{rule: limit}) == rule for limit in (value - step, value, value + step)]
    senses = {"least": [False, False, True], "most": [True, False, False], "below": [True, True, False]}
    assert dropped == senses[FILTER_RULES[rule].sense]


def test_rules_hold_for_their_domains_and_the_first_one_is_named():
    both = {"min_words": 9, "max_code_bytes": 4, "min_han": 0.9, "code_parses": True}
    assert [reason("a b c", domain, **both) for domain in ("zh", "en", "pairs", "python", "java")] == [
        *("min_words", "min_words", "min_words", "max_code_bytes", "max_code_bytes")
    ]
    some = {"max_code_bytes": 90, "min_han": 0.9, "code_parses": True}
    assert [reason("a b c", domain, **some) for domain in ("zh", "en", "pairs", "python", "java")] == [
        *("min_han", None, None, "code_parses", None)
    ]
    assert reason((("zh", "中文"), ("en", "two words")), "pairs", min_words=4) is None
    assert reason((("zh", "中文"), ("en", "two words")), "pairs", min_words=5) == "min_words"


def test_filters_can_be_sent_to_other_processes():
    filters = Filters.of(config(max_words=2, min_words=1))
    assert pickle.loads(pickle.dumps(filters)) == filters
    assert filters.limits == {"min_words": 1, "max_words": 2}


@given(st.text("ab 中\n.…#-", max_size=60), st.sampled_from(sorted(FILTER_RULES)))
def test_any_text_is_measured(text, rule):
    value = FILTER_RULES[rule].measure(Text(text))
    assert value is None or value >= 0


@given(st.lists(st.sampled_from("abc"), max_size=60))
def test_words_in_copies_are_those_of_plain_loops(words):
    inside: set[int] = set()
    seen: set[tuple[str, ...]] = set()
    for first in range(len(words) - _GRAM + 1):
        gram = tuple(words[first : first + _GRAM])
        inside |= {*range(first, first + _GRAM)} if gram in seen else set()
        seen.add(gram)
    found = FILTER_RULES["max_duplicate_grams"].measure(Text(" ".join(words)))
    assert found == pytest.approx(len(inside) / max(len(words), 1))


def test_code_is_measured_by_its_lines_and_parsed():
    assert (mean_line("ab\n\nabcd"), longest_line("ab\n\nabcd"), mean_line(""), longest_line("")) == (2, 4, 0, 0)
    assert [parses(code) for code in ("def f(): ...", "", "x = ", "\0", "(" * 5_000, "-" * 200_000 + "1")] == [
        *(True, True, False, False, False, False)
    ]


def test_limits_and_the_threshold_decide_a_preparation():
    there = preparation_settings(config(max_words=7))
    assert (there["filters"]["max_words"], there["filters"]["min_words"], there["near_duplicates"]) == (7, None, None)
    assert there != preparation_settings(config())
    with pytest.raises(ValueError, match="less than or equal to 1"):
        config(max_duplicate_lines=1.5)
