"""A keyed shuffle is a permutation for every length and key, and looks like a drawn one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.order import KeyedShuffle

KEYS = st.lists(st.integers(0, 2**63), min_size=1, max_size=3)


def shuffled(count: int, key: list[int]) -> list[int]:
    shuffle = KeyedShuffle(count, key)
    return [shuffle[index] for index in range(count)]


@given(st.integers(1, 130) | st.sampled_from([1_000, 4_096, 4_097]), KEYS)
def test_it_is_a_permutation_for_any_key(count, key):
    assert sorted(shuffled(count, key)) == list(range(count))


@given(st.integers(1, 10**13), KEYS, st.data())
def test_of_any_length_it_gives_different_numbers_below_the_length(count, key, data):
    shuffle = KeyedShuffle(count, key)
    asked = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=20))
    given = [shuffle[index] for index in asked]
    assert len({*given}) == len(asked)
    assert all(0 <= each < count for each in given)
    for outside in (-1, count):
        with pytest.raises(IndexError):
            shuffle[outside]


def test_it_is_the_same_in_every_version():
    """Runs resume with it: what these lines say must never change."""
    assert shuffled(10, [0, 0, 0]) == [0, 8, 5, 9, 1, 6, 2, 7, 3, 4]
    large = KeyedShuffle(292_968_750, [7, 39, 1])
    assert [large[index] for index in (0, 1, 2, 292_968_749)] == [196626289, 188458700, 146759821, 106350212]


def test_every_permutation_is_as_frequent():
    """Chi-square with 119 degrees of freedom: mean 119, standard deviation 15.4."""
    counts = Counter(tuple(shuffled(5, [seed])) for seed in range(12_000))
    assert len(counts) == 120
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 119 + 4 * 15.4


@pytest.mark.parametrize("count", [1_000, 1_024, 100_003])
def test_positions_and_neighbours_are_uniform(count):
    """Cells of a table of 16 x 16, of the part of the numbers in which a position is and the part in which its value is, or the one
    after it: chi-square with some 225 degrees of freedom, standard deviation 21."""
    drawn = min(count, 20_000)
    for epoch in range(3):
        shuffle = KeyedShuffle(count, [3, 1, epoch])
        values = np.array([shuffle[index] for index in range(drawn)])
        for one in (np.arange(drawn) * 16 // drawn, values[np.r_[1:drawn, 0]] * 16 // count):
            table = np.zeros((16, 16))
            np.add.at(table, (one, values * 16 // count), 1)
            expected = drawn / 256
            assert ((table - expected) ** 2 / expected).sum() < 225 + 5 * 21
        steps = np.diff(values) % count
        assert len({*steps.tolist()}) > 0.55 * min(drawn, count)  # 1 - 1/e of as many draws are different
        assert (steps == 1).mean() < 0.01


def test_epochs_domains_and_seeds_have_their_own():
    orders = {tuple(shuffled(50, [seed, domain, epoch])) for seed in (0, 1) for domain in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 8
    same = [
        sum(a == b for a, b in zip(shuffled(1_000, [0, 0, e]), shuffled(1_000, [0, 0, e + 1]), strict=True))
        for e in range(20)
    ]
    assert 5 < sum(same) < 45, "twenty pairs of passes share about 20 places"
