"""Characters that PanGu-α's text normaliser changes; encoding and decoding change no other characters of Chinese text.

SentencePiece's rules `nmt_nfkc`, which are in PanGu-α's model, fold a character to its NFKC form: `，` to `,`, `１` to `1`, `㎏` to
`kg`. Some characters become a blank or nothing instead; these vanish, because PanGu-α's blanks only separate words. Characters are
never composed with each other, because jieba makes each composable character a word of its own.
"""

from __future__ import annotations

import functools
import re
import unicodedata

import numpy as np
import sentencepiece

from pangu_sigma.text.sentencepieces import META, alpha_model
from pangu_sigma.text.words import NEWLINE, SPACE

_VANISHING = (
    "\x01-\x09\x0b-\x1f\x7f\x8f\x9f\xa0\u1680\u2000-\u200f\u2028\u2029\u202f\u205f\u3000\ufeff\ufffd"  # to a blank or nothing
    "\xa8\xaf\xb4\xb8\u02d8-\u02dd\u037a\u0384\u0385\u1fbd\u1fbf-\u1fc1\u1fcd-\u1fcf\u1fdd-\u1fdf\u1fed\u1fee\u1ffd\u1ffe\u2017"
    "\u203e\u309b\u309c\ufc5e-\ufc63\ufdfa\ufdfb\ufe49-\ufe4c\ufe70\ufe72\ufe74\ufe76\ufe78\ufe7a\ufe7c\ufe7e\uffe3"  # with a blank
    f"{META}"
)
"""Characters that PanGu-α's normaliser drops, as the inside of a regular expression's [ ].

These characters decide token ids: a change needs a new format version of the tokenizer.
"""

VANISHING = re.compile(f"([{_VANISHING}{SPACE}{NEWLINE}]+)")
"""Pattern of characters that PanGu-α's model loses: vanishing characters, and ▂ and ▃, which it reads as blank and newline."""

_END = 0x30000
"""Code point from which on no character changes under NFKC."""


def folded_characters(text: str) -> int:
    """Return the number of characters of `text` that PanGu-α's normaliser replaces by their NFKC form."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return int(np.count_nonzero(_is_folded()[codes]))


@functools.cache
def _is_folded() -> np.ndarray:
    """Return which code points are folded, bool [code points]. PanGu-α's rules are older than Python's, so its model is run."""
    folded = np.zeros(0x110000, dtype=bool)
    normaliser = sentencepiece.SentencePieceProcessor(model_proto=alpha_model())
    every = (chr(code) for code in range(_END) if not 0xD800 <= code < 0xE000)
    others = [c for c in every if unicodedata.normalize("NFKC", c) != c and not VANISHING.match(c)]
    for c, normal in zip(others, normaliser.normalize(others), strict=True):
        folded[ord(c)] = normal != META + c
    return folded
