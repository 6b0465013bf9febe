"""Masks are Philox's words, the same in NumPy, in every instruction set and in a graph; and what they look like."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from ascend_ops.dropout import CounterDropout, kept_oracle, philox_oracle, threshold

RATE, SITE = 0.1, 5
PUBLISHED = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
"""Counter, key and words of Philox4x32-10, as published with it (Random123, kat_vectors)."""


def draws(*sequences: tuple[int, int]) -> np.ndarray:
    """[B, 4] of seeds and sample numbers."""
    words = [[seed & 0xFFFFFFFF, seed >> 32, sample & 0xFFFFFFFF, sample >> 32] for seed, sample in sequences]
    return np.array(words, np.uint32).view(np.int32)


SEQUENCES = draws((3, 0), (3, 1), (3 + (7 << 32), 1), (3, 1 + (1 << 32)), (0xFFFFFFFF, 0xFFFFFFFF))


def settings_of(rate: float, site: int) -> np.ndarray:
    return np.array([site, threshold(rate)], np.uint32).view(np.int32)


def expected(x: np.ndarray, rate: float, site: int, draws_B4: np.ndarray) -> np.ndarray:
    kept = kept_oracle(rate, site, draws_B4, x.size // len(draws_B4)).reshape(x.shape)
    scale = np.float32(1 / (1 - threshold(rate) / 2**32))
    return np.where(kept, x.astype(np.float32) * scale, 0).astype(x.dtype)


def values(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)


def test_the_oracle_gives_the_published_words():
    for counter, key, words in PUBLISHED:
        arrays = [np.array([number], np.uint64) for number in (*counter, *key)]
        assert [int(word[0]) for word in philox_oracle(arrays[:4], tuple(arrays[4:]))] == words


def dropped(
    call: Callable[..., int], x: np.ndarray, sequences: np.ndarray = SEQUENCES, rate: float = RATE
) -> np.ndarray:
    y = np.full_like(x, 7)
    assert call("Dropout", x, sequences, settings_of(rate, SITE), y) == 0
    return y


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_instruction_set_drops_what_the_oracle_drops(call_kernel_of_isa: Callable[..., int], dtype: type):
    """Of any length, at any rate below one."""
    for size in (1, 63, 64, 65, 4096, 4097, 3 * 4096 + 100):
        x = values((5, size), dtype)
        np.testing.assert_array_equal(dropped(call_kernel_of_isa, x), expected(x, RATE, SITE, SEQUENCES))
    for rate in (1e-12, 0.25, 0.999, 1 - 1e-12):
        y = dropped(call_kernel_of_isa, x, rate=rate)
        np.testing.assert_array_equal(y, expected(x, rate, SITE, SEQUENCES))
        assert (y == 0).mean() == pytest.approx(rate, abs=0.01)


def test_a_sequence_has_its_mask_wherever_it_is_in_the_batch_for_any_number_of_threads(
    call_kernel: Callable[..., int], threads_of: Callable[[int], AbstractContextManager[None]]
):
    """Ranks take some of the sequences, and threads some of the values."""
    x = values((5, 50_000))
    whole = dropped(call_kernel, x)
    for threads in (1, 2, 3):
        with threads_of(threads):
            for b in (4, 1, 3, 0, 2):
                alone = dropped(call_kernel, x[b : b + 1], SEQUENCES[b : b + 1])
                np.testing.assert_array_equal(alone, whole[b : b + 1])


def test_dropped_values_are_zero_even_where_they_are_not_finite(call_kernel: Callable[..., int]):
    y = dropped(call_kernel, np.full((5, 1000), np.nan, np.float32))
    np.testing.assert_array_equal(np.isnan(y), kept_oracle(RATE, SITE, SEQUENCES, 1000))


class Weighed(nn.Cell):
    """A sum whose gradient is known."""

    def __init__(self, drop: CounterDropout):
        super().__init__()
        self.drop = drop

    def construct(self, x, draws_B4, g):
        return (self.drop(x, draws_B4) * g).sum()


@pytest.mark.parametrize("shape", [(5, 2, 8, 8), (5 * 16, 24)])
def test_the_gradient_has_the_mask_of_the_value(graph_mode, shape):
    cell, x = CounterDropout(RATE, SITE), values(shape)
    g = values(shape)[::-1].copy()
    np.testing.assert_array_equal(cell(Tensor(x), Tensor(SEQUENCES)).asnumpy(), expected(x, RATE, SITE, SEQUENCES))
    _, gradient = ms.value_and_grad(Weighed(cell), 0)(Tensor(x), Tensor(SEQUENCES), Tensor(g))
    np.testing.assert_array_equal(gradient.asnumpy(), expected(g, RATE, SITE, SEQUENCES))


MANY = 1 << 18


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_keep_their_share_and_know_nothing_of_each_other(rate: float):
    """Sites, samples of one update and of the next, seeds; and values one, two, … apart, a whole tile and a row included."""
    first, *others = (
        kept_oracle(rate, site, draws((seed, sample)), MANY)[0].astype(float)
        for seed, sample, site in [(1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 1, 0), (1, 8, 0), (2, 0, 0), (1 << 32, 0, 0)]
    )
    pairs = [(first, other) for other in others]
    pairs += [(first[:-apart], first[apart:]) for apart in (1, 2, 3, 4, 15, 16, 17, 32, 48, 63, 64, 65, 192, 256)]
    for mask, independent in pairs:
        assert abs(independent.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / mask.size)
        correlation = np.corrcoef(mask, independent)[0, 1] * np.sqrt(mask.size)  # in standard deviations
        assert abs(correlation) < 5
