"""jieba itself is the oracle: its words, blanks and newlines written as PanGu-α writes them."""

from __future__ import annotations

import logging

import jieba
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ascend_ops.errors import BuildError
from pangu_sigma.text import words as module
from pangu_sigma.text.words import words

HAN = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FD5)
COMMON = st.sampled_from(
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说"
)
AROUND = st.sampled_from("abzAZ019+#&._%- \n\r\t\u3000，。“”ＡＢ１２▂▃\0éγ①🙂㐀䶿龦鿿豈\ud800")
EXTENDED = st.characters(min_codepoint=0x20000, max_codepoint=0x2FA1F)


@pytest.fixture(scope="module")
def oracle():
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    written = str.maketrans({" ": "▂", "\n": "▃"})
    return lambda text: " ".join(word.translate(written) for word in tokenizer.cut(text))


@pytest.fixture(scope="module")
def known():
    """A strategy for words of the dictionary; made once, they are 349,046."""
    with jieba.Tokenizer().get_dict_file() as file:
        return st.sampled_from([line.split(b" ")[0].decode() for line in file])


@given(st.text(st.one_of(HAN, COMMON, AROUND, EXTENDED), max_size=60))
@settings(max_examples=400, deadline=None)
@example("")
@example("Windows下的C++和C#，AT&T的T恤1.5%..a%%1.a-12")
@example("第一行\r\n\r\r\n\n第二行")
@example("龦龥鿕鿖䶮䶯𠀀" * 3)
def test_any_text_is_cut_as_jieba_does(oracle, text):
    assert words(text) == oracle(text)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_words_next_to_each_other_are_cut_as_jieba_does(oracle, known, data):
    """Words of the dictionary, common characters and rare ones: many ways to cut, near ties, and names for the HMM."""
    text = "".join(data.draw(st.lists(st.one_of(known, COMMON, HAN), max_size=20)))
    assert words(text) == oracle(text)


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PANGU_SIGMA_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match=r"g\+\+ is needed"):
        module._jieba.__wrapped__()
    assert list(tmp_path.iterdir()) == []
