"""Chinese words as jieba cuts them (its accurate mode with HMM), many times faster.

`words.cc` is jieba's algorithm with jieba's own dictionary and tables, read from the installed package: the same sums of
doubles in the same order, so that ties fall the same way too. Faster libraries exist, but PanGu-α's ids depend on every
word, and each of them cuts some text differently: rjieba rounds the HMM's tables to six digits, prefers other ties and
takes rare Han characters into its blocks; jieba_next and jieba_fast_dat differ on real text.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ascend_ops.library import cache_folder, compile_library
from pangu_sigma.errors import DataError

SPACE, NEWLINE = "\u2582", "\u2583"
"""The characters that PanGu-α's vocabulary writes for a space and a newline; its blank only separates words."""

_SOURCE = Path(__file__).with_suffix(".cc")
_STATES = "BEMS"
_FIRST_HAN, _LAST_HAN = 0x4E00, 0x9FD5
_MIN_FLOAT = -3.14e100


class _Jieba(NamedTuple):
    """The compiled function and what it works on. tables: only kept alive."""

    cut: Any
    model: int
    tables: tuple[np.ndarray, ...]


def words(text: str) -> str:
    """PanGu-α's input to SentencePiece: jieba's words, in them SPACE and NEWLINE for blanks and newlines, joined with blanks.

    Half surrogate pairs pass through, as in jieba. Raises DataError when the C++ part cannot be compiled.
    """
    jieba = _jieba()
    out = bytearray(8 * len(text) + 4)  # a blank and a character for each; an empty buffer would have no address
    size = jieba.cut(
        jieba.model, text.encode("utf-32-le", "surrogatepass"), len(text), ctypes.byref(ctypes.c_char.from_buffer(out))
    )
    return out[: 4 * size].decode("utf-32-le", "surrogatepass")


@functools.cache
def _jieba() -> _Jieba:
    """jieba's default dictionary and tables, so that another user's `add_word` changes nothing here."""
    import jieba
    from jieba import finalseg

    with jieba.Tokenizer().get_dict_file() as file:
        dictionary = (file.read().decode().strip() + "\n").encode("utf-32-le")
    emits = (finalseg.emit_P[state] for state in _STATES)
    tables = (
        np.array([finalseg.start_P[state] for state in _STATES]),
        np.array([[finalseg.trans_P[a].get(b, _MIN_FLOAT) for b in _STATES] for a in _STATES]),
        np.array([[emit.get(chr(c), _MIN_FLOAT) for c in range(_FIRST_HAN, _LAST_HAN + 1)] for emit in emits]),
    )
    library = ctypes.CDLL(str(_library()))
    library.NewModel.restype = ctypes.c_void_p
    library.NewModel.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_void_p] * 3]
    library.CutWords.restype = ctypes.c_size_t
    library.CutWords.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
    model = library.NewModel(dictionary, len(dictionary) // 4, *(table.ctypes.data for table in tables))
    return _Jieba(library.CutWords, model, tables)


def _library() -> Path:
    """words.cc compiled, kept with all compiled things."""
    target = cache_folder() / f"words_{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    try:
        compile_library(target, ["-std=c++17", "-O2", "-shared", "-fPIC", str(_SOURCE)], "the segmentation")
    except RuntimeError as error:
        raise DataError(str(error)) from error
    return target
