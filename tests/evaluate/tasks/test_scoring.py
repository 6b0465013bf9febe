"""Scores are what the publishers' scripts print, and what their algorithms say in other words.

The numbers of CMRC 2018 were printed by squad-style-data/cmrc2018_evaluate.py of github.com/ymcui/cmrc2018, made to run on Python 3
and without NLTK's model of sentences; those of ROUGE-L and BLEU by pycocoevalcap of github.com/tylin/coco-caption, which DuReader's
script calls (github.com/baidu/DuReader, DuReader-2.0/utils/download_thirdparty.sh), on characters with blanks between them.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.evaluate.tasks.scoring import (
    begins,
    bleu_4,
    bleu_zh,
    exact_match,
    f1,
    long_answer,
    rouge_1,
    rouge_l,
    segments,
    span,
)

CMRC = [
    ("《跑跑卡丁车》。", ["跑跑卡丁车"], 1, 1.0),
    ("在1983年12月出生", ["1983年12月", "1983年"], 0, 0.7272727272727273),
    ("由韩国Nexon公司开发", ["韩国Nexon", "Nexon开发"], 0, 0.5454545454545454),
    ("It's a dog.", ["a dog", "the dog."], 0, 0.5714285714285715),
    ("玩家……水枪", ["玩家水枪"], 0, 0.4444444444444445),
    ("ABC  ", ["abc"], 1, 1.0),
    ("因信稱義", ["信徒皆祭司"], 0, 0.22222222222222224),
    ("他在一九四九年的秋天来到北京大学", ["一九四九年来到北京", "秋天来到北京"], 0, 0.5454545454545454),
    ("e-mail: 4,5%", ["email：4,5%"], 0, 0.4),
    ("", ["甲"], 0, 0.0),
]
"""Prediction, answers, and the EM and F1 that the script printed."""

DUREADER = [
    ("今天天气很好，适合出门。", ["今天天气好，适合出去。", "天气很好"], 0.9242424242424241),
    ("不可以 直接喝", ["不能直接喝，要烧开"], 0.5147679324894514),
    ("因为水温高", ["温度高", "是因为水温过高造成的"], 0.7721518987341772),
    ("", ["是"], 0.0),
]
"""Prediction, answers, and the ROUGE-L that the script printed."""

han = st.text("甲乙丙丁，。", max_size=9)
answers = st.lists(han, min_size=1, max_size=3)


@pytest.mark.parametrize(("prediction", "answers", "em", "f"), CMRC)
def test_em_and_f1_are_those_that_the_script_of_cmrc_2018_printed(prediction, answers, em, f):
    assert (exact_match(prediction, answers), f1(prediction, answers)) == (em, f)
    assert span({"answers": answers}, [prediction]) == {"exact_match": em, "f1": f}


def test_em_and_f1_of_no_answer_are_zero():
    assert (exact_match("甲", []), f1("甲", [])) == (0.0, 0.0)


@given(han, answers)
def test_f1_is_that_of_the_longest_text_that_both_have(prediction, answers):
    """By trying all of them: of texts of Chinese characters, whose punctuation does not count."""
    own, best = re.sub("[，。]", "", prediction), 0.0
    for answer in (re.sub("[，。]", "", each) for each in answers):
        ends = [(i, j) for i in range(len(own)) for j in range(i + 1, len(own) + 1) if own[i:j] in answer]
        common = max((j - i for i, j in ends), default=0)
        best = max(best, 2 * common / (len(own) + len(answer)) if common else 0.0)
    assert f1(prediction, answers) == pytest.approx(best)


def test_a_text_is_cut_into_characters_and_english_words():
    assert segments("Nexon的Can't 《ok》.甲") == ["nexon", "的", "ca", "n't", "ok", ".", "甲"]


@pytest.mark.parametrize(("prediction", "answers", "rouge"), DUREADER)
def test_rouge_l_is_what_the_script_of_dureader_printed(prediction, answers, rouge):
    assert rouge_l(prediction, answers) == pytest.approx(rouge, abs=1e-15)


def test_bleu_4_is_what_the_script_of_dureader_printed():
    pairs = [(prediction, answers) for prediction, answers, _ in DUREADER]
    assert bleu_4(pairs) == pytest.approx(0.5725533273923, abs=1e-15)
    assert bleu_4(pairs[:3]) == pytest.approx(0.5979960450161668, abs=1e-15)
    assert bleu_4(iter(pairs[:3])) == bleu_4(pairs[:3])


@given(han, answers)
def test_rouge_l_is_of_the_longest_common_subsequence(prediction, answers):
    """By recursion instead of a table."""

    def common(one: str, other: str) -> int:
        if not one or not other:
            return 0
        if one[0] == other[0]:
            return 1 + common(one[1:], other[1:])
        return max(common(one[1:], other), common(one, other[1:]))

    precision = max(common(prediction, each) / max(len(prediction), 1) for each in answers)
    recall = max(common(prediction, each) / max(len(each), 1) for each in answers)
    expected = 2.44 * precision * recall / (recall + 1.44 * precision) if precision and recall else 0.0
    assert rouge_l(prediction, answers) == pytest.approx(expected)


def test_rouge_1_counts_each_character_as_often_as_both_have_it():
    """Three of four characters and three of six: 2 · 3 ÷ 10; the other answer has two in common: 2 · 2 ÷ 6."""
    assert rouge_1("水 温高高", ["温水不太高兴", "温水"]) == pytest.approx(2 * 2 / 6)
    assert rouge_1("水 温高高", ["温水不太高兴"]) == pytest.approx(2 * 3 / 10)
    assert rouge_1("", ["水"]) == rouge_1("水", [""]) == 0.0


def test_what_the_harness_is_given():
    doc = {"answers": ["温水不太高兴"]}
    found = long_answer(doc, ["水温高高"])
    assert found == {
        "rouge_1": 0.6,
        "rouge_l": rouge_l("水温高高", doc["answers"]),
        "bleu_4": ("水温高高", doc["answers"]),
    }
    doc = {"answer": "啄木鸟", "metric": "acc_pd"}
    assert begins(doc, ["“ 啄木 鸟 每天"]) == {"acc_pd": 1.0}
    assert begins(doc, ["小啄木鸟"]) == {"acc_pd": 0.0} == begins(doc, [""])


def test_chinese_is_cut_by_character_for_bleu():
    """Of five characters all are right: 5/5, 4/4, 3/3, 2/2, and the reference is one longer: exp(1 - 6/5)."""
    assert bleu_zh([("你好吗朋友们", "你好吗朋友")]) == pytest.approx(81.87307530779823)
