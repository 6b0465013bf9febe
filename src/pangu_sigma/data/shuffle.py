"""Keyed permutations of 0 … n - 1 that are computed and not stored: shuffles of any length, in no memory.

A Feistel network permutes the numbers of b bits, 2^(b-1) < n ≤ 2^b: the upper half of the bits is changed by a function of the
lower half, then the lower by the upper one, and so on, _ROUNDS times. A result that is not below n is put in again until it is
(cycle walking), on average less than twice, which leaves a permutation of the numbers below n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ROUNDS = 16
"""Number of rounds. Our choice: four are enough in theory for large n; after twelve the permutations of five numbers are not yet
equally frequent."""

_64_BITS = (1 << 64) - 1
_GOLDEN = 0x9E37_79B9_7F4A_7C15


class KeyedShuffle:
    """Permutation of 0 … count - 1 by a key. key: numbers >= 0, such as seed, domain and epoch.

    It is the same on every machine and in every version: it shuffles the samples of runs, which resume.
    """

    def __init__(self, count: int, key: Sequence[int]):
        self._count = count
        bits = (count - 1).bit_length()
        self._low_bits = bits - bits // 2
        self._low_mask, self._high_mask = (1 << self._low_bits) - 1, (1 << (bits // 2)) - 1
        self._keys: list[int] = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64).tolist()

    def __getitem__(self, index: int) -> int:
        """Return the number at a position, 0 … count - 1, of the shuffled numbers. Raises IndexError for another position."""
        if not 0 <= index < self._count:
            raise IndexError(f"position {index} of {self._count}")
        index = self._permuted(index)
        while index >= self._count:
            index = self._permuted(index)
        return index

    def _permuted(self, number: int) -> int:
        """Return the number after all rounds of the Feistel network; it may be count or more."""
        high, low = number >> self._low_bits, number & self._low_mask
        for n, key in enumerate(self._keys):
            if n % 2:
                low ^= _mixed(high, key) & self._low_mask
            else:
                high ^= _mixed(low, key) & self._high_mask
        return high << self._low_bits | low


def _mixed(number: int, key: int) -> int:
    """Return 64 bits that depend on all bits of a number and of a key: the output function of SplitMix64."""
    mixed = (key + number * _GOLDEN) & _64_BITS
    mixed = (mixed ^ mixed >> 30) * 0xBF58_476D_1CE4_E5B9 & _64_BITS
    mixed = (mixed ^ mixed >> 27) * 0x94D0_49BB_1331_11EB & _64_BITS
    return mixed ^ mixed >> 31
