from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.prepare.cleaning.shingles import _SLICE, hash_words, shingles
from pangu_sigma.text.words import words

LETTERS = st.text("abcDE，。!# \n中文字１1２", max_size=40)


def all_of(text: str, size: int = 5) -> list[int]:
    return np.concatenate(list(shingles(text, size))).tolist()


def in_words(text: str) -> list[str]:
    """Words as the module describes them, one by one."""
    folded = "".join(chr(ord(c) - 0xFEE0) if 0xFF01 <= ord(c) <= 0xFF5E else c for c in text).lower()
    return re.findall(r"[^\W_]+|[^\s\w]|_", folded)


@given(LETTERS, st.integers(1, 4))
def test_equal_shingles_are_equal_words(text, size):
    """Against sets of tuples: as many distinct hashes, whatever jieba makes of the Chinese in it."""
    cut = in_words(words(text).replace("\u2582", " ").replace("\u2583", " ") if re.search("[中文字]", text) else text)
    count = min(size, len(cut))
    grams = [tuple(cut[i : i + count]) for i in range(len(cut) - count + 1)]
    found = all_of(text, size)
    assert len(found) == max(len(grams), 1)
    if cut:
        assert len({*zip(found, grams, strict=True)}) == len(set(grams)) == len(set(found))


def test_case_width_and_blanks_do_not_count_and_marks_do():
    assert all_of("Hello,  World!\nＡ１") == all_of(" hello, world! a1 ")
    assert all_of("天气，很好") == all_of("天气,很好")
    assert all_of("1 + 1") != all_of("1 - 1") != all_of("1 1")
    assert all_of("ab c") != all_of("a bc") != all_of("c ab")


def test_short_text_is_one_shingle_and_so_is_text_without_words():
    assert (
        len(all_of("one two three four")) == len(all_of("one")) == len(all_of("\u2582\u3000")) == len(all_of("")) == 1
    )
    assert len({*map(tuple, map(all_of, ["one", "two", "one two", "\u2582", "\u2583", ""]))}) == 6
    assert len(all_of("one two three four five six")) == 2


def test_long_text_is_cut_and_loses_few_shingles():
    some = [f"w{i}" for i in range(40_000)]
    whole, shifted = set(all_of(" ".join(some))), set(all_of(" ".join(some[3:])))
    assert len(whole & shifted) / len(whole | shifted) > 0.999
    assert len(all_of("x" * (_SLICE + 1))) == 2
    assert len(all_of(f"a{' ' * 300_000}b c d e")) < 4


@pytest.mark.parametrize("text", ["\U0003fffd\U0003fffe", "\ud800 a", "e\u0301", "ก ข", "😀😀"])
def test_any_characters_are_hashed(text):
    assert all_of(text) == all_of(text)
    assert all_of(text) != all_of(f"{text}a")


def test_words_are_between_blanks():
    assert [len(hash_words(text)) for text in ("中文 ab  c ", " \n")] == [3, 0]
    first, second, third = hash_words("ab b ab").tolist()
    assert first == third != second


def test_hashes_stay_the_same():
    """Signatures of an unfinished preparation go on with them."""
    assert all_of("the quick brown fox jumps over") == [262795754, 627295460]
