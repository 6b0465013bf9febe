"""Mixing of bits: the shuffle of samples and the hashes of windows take the output function of SplitMix64 (Steele et al. 2014)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

_64_BITS = (1 << 64) - 1
GOLDEN = 0x9E37_79B9_7F4A_7C15
"""Odd number next to 2^64 divided by the golden ratio, the step of SplitMix64."""
_Number = TypeVar("_Number", int, np.ndarray)


def split_mix(number: _Number, key: int) -> _Number:
    """Return 64 bits that depend on all bits of a number, or of each number of an array of uint64, and of a key: the output
    function of SplitMix64."""
    mixed = (key + number * GOLDEN) & _64_BITS
    mixed = (mixed ^ mixed >> 30) * 0xBF58_476D_1CE4_E5B9 & _64_BITS
    mixed = (mixed ^ mixed >> 27) * 0x94D0_49BB_1331_11EB & _64_BITS
    return mixed ^ mixed >> 31
