"""Dropout with masks that are a function of seed, sample, site and position, and so without state.

A value is kept or dropped by a word of Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"), whose
key is the seed and whose counter is the number of the value. So a run that was stopped goes on with the same masks, several ranks
draw the masks of one process, and the backward pass draws the mask of the forward pass again instead of keeping it.

Shape suffixes: B sequences. P is the number of values of a sequence.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.host import host_op

WORDS = 1 << 32
"""Number of values that a random 32-bit word can take."""
DRAWN = 64
"""Number of words that are drawn at a time: 4 from each of 16 counters."""


class CounterDropout(nn.Cell):
    """Dropout on the CPU: construct(x, draws_B4) -> y, with y = x / (1 - rate) where the value is kept, and 0 elsewhere.
    x: float32 or float16 in any shape [B, …] or [B · …]; it is cut into B sequences of equally many values. y and the gradient of x
    have its shape and dtype, rounded once. A dropped value is 0 even where x is not finite.
    draws: int32 [B, 4]: seed and number of the sample, 64 bits each, low words first. Value i = 64 t + 16 w + l of a sequence reads
    word w of the counter (16 t + l, site, sample), and is dropped if the word is below rate · 2³².
    Raises RuntimeError if the sequences do not divide x evenly (the kernel returns 4), or for another dtype (2).
    """

    def __init__(self, rate: float, site: int):
        """rate: probability of dropping a value, below 1. site: number that distinguishes the dropouts of a network."""
        super().__init__()
        settings = np.array([site, threshold(rate)], np.uint32)
        self.settings = Tensor(settings.view(np.int32))
        self.drop = host_op("Dropout", lambda x, draws, settings: x, lambda x, draws, settings: x)

    def construct(self, x, draws_B4):
        return self.drop(x, draws_B4, self.settings)

    def bprop(self, x, draws_B4, out, dout):
        return self.drop(dout, draws_B4, self.settings), ops.zeros_like(draws_B4)


def threshold(rate: float) -> int:
    """Return the number of the 2³² random words that drop a value at this rate: the lowest ones."""
    return min(round(rate * WORDS), WORDS - 1)


def kept_oracle(rate: float, site: int, draws_B4: np.ndarray, size: int) -> np.ndarray:
    """Compute the mask of `CounterDropout` in NumPy: True where a value is kept, [B, size]. size: values of a sequence."""
    index = np.arange(size)
    block = index // DRAWN * 16 + index % 16  # number of the counter whose four words include the value's
    seed_low, seed_high, low, high = draws_B4.view(np.uint32).astype(np.uint64).T[..., None]
    words = philox_oracle(
        np.broadcast_arrays(block[None].astype(np.uint64), np.uint64(site), low, high), (seed_low, seed_high)
    )
    return np.choose(index % DRAWN // 16, words) >= threshold(rate)  # of each value, the word of its counter


def philox_oracle(counter: list[np.ndarray], key: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Compute the four words of Philox4x32-10 in NumPy. Words, counter (4) and key (2) are arrays of uint64 below 2³²."""
    low, shift = np.uint64(WORDS - 1), np.uint64(32)
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return [c0, c1, c2, c3]
