"""Of normalisation: PanGu-α's model is asked about every character there is; Python's `unicodedata` says what NFKC is."""

from __future__ import annotations

import unicodedata

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.text.segmentation import VANISHING, Run, english_runs, folded_characters, is_chinese, runs_of
from pangu_sigma.text.sentencepieces import alpha_model, parse_model


def plain(runs: tuple[Run, ...]) -> list[tuple[bool, str]]:
    """Runs with jieba's blanks taken out and PanGu-α's blank and newline put back."""
    return [
        (run.alpha, run.text.replace(" ", "").replace("▂", " ").replace("▃", "\n") if run.alpha else run.text)
        for run in runs
    ]


def test_one_run_where_the_language_is_known():
    assert plain(runs_of("你好 world\n", "zh")) == [(True, "你好 world\n")]
    assert runs_of("你好 world\n", "python") == (Run(False, "你好 world\n"),)
    assert runs_of("", "zh") == runs_of("", "mixed") == ()


@given(st.text("ab 中文，▂\n1"), st.sampled_from(["zh", "en", "mixed"]))
def test_english_runs_are_those_of_all_runs(text, language):
    assert english_runs(text, language) == [run.text for run in runs_of(text, language) if not run.alpha]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好，世界！", [(True, "你好，世界！")]),
        ("1998年12月31日", [(False, "1998"[:4]), (True, "年12月31日")]),
        ("《红楼梦》 and more", [(True, "《红楼梦》"), (False, " and more")]),
        ("用 Python 写", [(True, "用"), (False, " Python "), (True, "写")]),
        ("Save 100% (a)", [(False, "Save 100% (a)")]),
        ("第一行\n\n第二行", [(True, "第一行\n\n第二行")]),
    ],
)
def test_mixed_text_is_cut_by_script(text, expected):
    assert plain(runs_of(text, "mixed")) == expected


@given(st.text(alphabet="你好，。《》“”ab1 \n_-Ａé", max_size=40))
def test_mixed_runs_put_the_text_together_again(text):
    assert "".join(part for _, part in plain(runs_of(text, "mixed"))) == text


def test_vanishing_characters_are_runs_of_their_own():
    marks = Run(True, "▂", spelled=True), Run(True, "▃", spelled=True)
    assert runs_of("▂ ▃中\n▃", "zh") == (marks[0], Run(True, "▂"), marks[1], Run(True, "中 ▃"), marks[1])
    assert runs_of(" 中\n", "zh") == (Run(True, "▂ 中 ▃"),)
    assert runs_of("中\t\t国", "zh") == (Run(True, "中"), Run(True, "\t\t", spelled=True), Run(True, "国"))
    assert runs_of("▂\ta", "mixed") == (Run(False, "▂\ta"),)


def test_a_text_is_chinese_when_it_has_more_han_than_latin_words():
    assert is_chinese("打开 File 菜单")
    assert not is_chinese("the character 中")
    assert not is_chinese("")


CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and chr(code) not in " \n"]
"""All but the two that PanGu-α writes as marks."""


@pytest.fixture(scope="module")
def normalised() -> dict[str, str]:
    """What PanGu-α's rules make of each character, without its handling of blanks around it."""
    model = parse_model(alpha_model())
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    return dict(zip(CHARACTERS, processor.normalize(CHARACTERS), strict=True))


def test_a_character_vanishes_or_becomes_itself_or_its_nfkc_form(normalised):
    """The list in the source is complete and has nothing that is not needed."""
    lost = {c for c, normal in normalised.items() if not normal or set(normal) & set(" ▁▂▃")}
    assert lost == set("".join(VANISHING.findall("".join(CHARACTERS))))
    for c, normal in normalised.items():
        assert c in lost or normal in (c, unicodedata.normalize("NFKC", c)), hex(ord(c))


def test_folded_characters_are_those_that_become_another(normalised):
    for c, normal in normalised.items():
        if unicodedata.normalize("NFKC", c) != c or VANISHING.match(c) or normal != c:
            assert folded_characters(c) == (normal != c and not VANISHING.match(c)), hex(ord(c))
    assert folded_characters("".join(CHARACTERS)) == sum(
        normal != c and not VANISHING.match(c) for c, normal in normalised.items()
    )


def test_every_character_comes_back_as_itself_or_its_nfkc_form(restricted, domains):
    """Of the planes without letters, one in 97."""
    zh, characters = domains.named("zh"), CHARACTERS[:0x30000] + CHARACTERS[0x30000::97]
    for first in range(0, len(characters), 1 << 16):
        written = characters[first : first + (1 << 16)]
        back = restricted.decode(restricted.encode("\n".join(written), zh)).split("\n")
        for c, other in zip(written, back, strict=True):
            assert other in (c, unicodedata.normalize("NFKC", c)), hex(ord(c))
