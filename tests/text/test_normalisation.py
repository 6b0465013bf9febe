"""PanGu-α's model is asked about every character there is; Python's `unicodedata` says what NFKC is."""

from __future__ import annotations

import unicodedata

import pytest
import sentencepiece

from pangu_sigma.text.normalisation import VANISHING, folded_characters
from pangu_sigma.text.sentencepieces import alpha_model, parse_model

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


def test_every_character_comes_back_as_itself_or_its_nfkc_form(whole, restricted, domains):
    """Of the planes without letters, one in 97."""
    zh, characters = domains.named("zh"), CHARACTERS[:0x30000] + CHARACTERS[0x30000::97]
    for tokenizer in (whole, restricted):
        for first in range(0, len(characters), 1 << 16):
            some = characters[first : first + (1 << 16)]
            back = tokenizer.decode(tokenizer.encode("\n".join(some), zh)).split("\n")
            assert len(back) == len(some)
            for c, other in zip(some, back, strict=True):
                assert other in (c, unicodedata.normalize("NFKC", c)), hex(ord(c))
