"""Shingles: n-grams of words as 32-bit hashes, the sets by which texts are compared.

Words are jieba's in text with Han characters, and runs of letters and digits elsewhere; every other visible character is a word.
Case, blanks and full-width forms do not count. The hashes are computed with NumPy for all words at once, and depend on nothing but
the text. Shape suffixes: C characters, W words, S shingles.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
import xxhash

from pangu_sigma.text.segmentation import HAN
from pangu_sigma.text.words import NEWLINE, SPACE, words

_HAN = re.compile(f"[{HAN}]")
_BLANK, _LETTER, _ALONE = range(3)
"""Kinds of characters: between words, part of a word, a word by itself."""
_FOLDED = 0x30000
"""Code point from which on no character has a case, a full-width form or a part in a longer word."""
_SLICE = 1 << 16
"""Characters that are hashed at a time. It bounds the memory of a long text, at a few shingles that the cuts lose."""
_CHARACTER, _WORD, _MIX = (np.uint64(each) for each in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xFF51AFD7ED558CCD))


def _grams(hashes: np.ndarray, size: int) -> np.ndarray:
    """Return the hash of each n-gram of `size` words, uint64 [S]; all words make one if there are fewer. There must be one."""
    size = min(size, len(hashes))
    count = len(hashes) - size + 1
    total = np.zeros(count, np.uint64)
    for first in range(size):
        total = total * _WORD + hashes[first : first + count]
    return mixed(total)


def shingles(text: str, size: int) -> Iterator[np.ndarray]:
    """Yield the hashes of a text's n-grams of `size` words, uint32 [S], in a few arrays. Text without words is one shingle.

    Text is cut every 65,536 characters, and n-grams end at the cuts. Raises DataError if jieba's C++ code cannot be compiled.
    """
    has_words = False
    for first in range(0, len(text), _SLICE):
        part = text[first : first + _SLICE]
        hashes_W = hash_words(words(part) if _HAN.search(part) else part)
        if len(hashes_W):
            has_words = True
            yield (_grams(hashes_W, size) >> np.uint64(32)).astype(np.uint32)
    if not has_words:
        yield np.array([xxhash.xxh32_intdigest(text.encode("utf-8", "surrogatepass"))], np.uint32)


def hash_words(text: str) -> np.ndarray:
    """Return the hashes of a text's words in order, uint64 [W]."""
    codes_C = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    values, kinds = _characters()
    kinds_C = kinds[codes_C]
    begins_C = kinds_C != _BLANK
    begins_C[1:] &= (kinds_C[1:] == _ALONE) | (kinds_C[:-1] != _LETTER)
    begin_W = np.flatnonzero(begins_C)
    if not len(begin_W):
        return np.empty(0, np.uint64)
    after_W = np.append(begin_W[1:], len(codes_C))  # with the blanks behind a word, whose value is 0
    position_C: np.ndarray = np.arange(begin_W[0], len(codes_C)) - np.repeat(begin_W, after_W - begin_W)
    # within a word only: the blanks behind it may be very many
    weights = _powers(int(position_C.max()) + 1)
    terms_C = values[codes_C[begin_W[0] :]] * weights[position_C]
    hashes_W: np.ndarray = np.add.reduceat(terms_C, begin_W - begin_W[0])
    return hashes_W


def mixed(values: np.ndarray) -> np.ndarray:
    """Return hashes, uint64, of which every bit depends on all bits of a value: MurmurHash3's finalizer."""
    for _ in range(2):
        values = (values ^ (values >> np.uint64(33))) * _MIX
    return values ^ (values >> np.uint64(33))


def _powers(count: int) -> np.ndarray:
    size = 1 << max(16, (count - 1).bit_length())  # few sizes, so that few are computed
    return _all_powers(size)


@functools.lru_cache(maxsize=1)
def _all_powers(size: int) -> np.ndarray:
    powers = np.full(size, _CHARACTER, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


@functools.cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """Return the value, uint64, and the kind, int8, of every code point. Characters that differ in case or width have one value."""
    folded = np.arange(0x110000, dtype=np.uint64)
    kinds = np.full(0x110000, _ALONE, np.int8)
    for code in range(_FOLDED):
        character = chr(code)
        normal = unicodedata.normalize("NFKC", character).lower()
        if len(normal) == 1:
            folded[code] = ord(normal)
        if character.isspace() or not normal.strip():
            kinds[code] = _BLANK
        elif character.isalnum():
            kinds[code] = _LETTER
    kinds[[0, ord(SPACE), ord(NEWLINE)]] = _BLANK
    values = mixed(folded + np.uint64(1))
    values[kinds == _BLANK] = 0
    return values, kinds
