"""The order of samples follows from seed and cursor, and domains come by their weights."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from helpers.numbered import SAMPLES, config_of, open_batches, samples_of

from pangu_sigma.data.order import Cursor, KeyedShuffle, SampleOrder


@pytest.mark.parametrize("shuffle", ["permutation", "keyed"])
def test_the_order_follows_from_the_cursor_alone(folder, tokenizer, shuffle):
    config = config_of(blocks=2, shuffle=shuffle)
    batches = open_batches(config, folder, tokenizer)
    cursor, states, expected = Cursor([0] * len(batches.domains)), [], []
    for _ in range(20):
        states.append(json.dumps(cursor.taken))
        expected.append(batches.next(cursor))
    for start in (19, 0, 7):  # any order of asking
        other = open_batches(config, folder, tokenizer)
        resumed = Cursor(json.loads(states[start]))
        for batch in expected[start:]:
            found = other.next(resumed)
            for one, two in zip(found.arrays(), batch.arrays(), strict=True):
                np.testing.assert_equal(one, two)
        assert resumed == cursor


def test_the_order_is_keyed_or_numpys_permutation_and_stays_so():
    counts = [7, 5, 11]
    orders = [SampleOrder(config_of(seed=3, shuffle=shuffle), counts) for shuffle in ("permutation", "keyed")]
    for domain, count in enumerate(counts):
        expected = [
            n for epoch in (0, 1) for n in np.random.default_rng([3, domain, epoch]).permutation(count).tolist()
        ]
        drawn, keyed = ([order.sample(domain, n) for n in range(2 * count)] for order in orders)
        assert drawn == expected
        assert keyed == [KeyedShuffle(count, [3, domain, epoch])[n] for epoch in (0, 1) for n in range(count)]
    assert [orders[0].sample(1, n) for n in range(10)] == [1, 4, 0, 2, 3, 3, 0, 2, 4, 1], "of a run of commit 3bb47d4"


@pytest.mark.parametrize("shuffle", ["permutation", "keyed"])
@pytest.mark.parametrize(("accumulation", "blocks", "batch"), [(1, 1, 4), (1, 3, 3), (2, 2, 4)])
def test_every_sample_of_a_pass_comes_once_before_any_comes_again(
    folder, tokenizer, accumulation, blocks, batch, shuffle
):
    batches = open_batches(config_of(accumulation, blocks, batch, shuffle=shuffle), folder, tokenizer)
    cursor, taken = Cursor([0] * len(batches.domains)), [[], [], []]
    for _ in range(60):
        found = batches.next(cursor)
        for domain, number in samples_of(found.ids_GBS, found.domains_M):
            taken[domain].append(number)
    assert cursor.taken == [len(numbers) for numbers in taken]
    for numbers, samples in zip(taken, SAMPLES, strict=True):
        passes = [numbers[i : i + samples] for i in range(0, len(numbers), samples)]
        assert len(passes) > 1
        for one in passes[:-1]:
            assert sorted(one) == list(range(samples))
        assert len(set(passes[-1])) == len(passes[-1])
        if len(passes) > 2:
            assert passes[0] != passes[1], "each pass should be shuffled anew"
        assert passes[0] != sorted(passes[0])


def test_a_domain_of_weight_0_gives_nothing_and_the_others_by_their_weights():
    order = SampleOrder(config_of(), [0, 7, 3], [0.0, 7.0, 3.0])
    cursor, taken = Cursor([0] * 3), Counter()
    for _ in range(100):
        taken.update({domain: len(numbers) for domain, numbers in order.take(cursor)})
    assert taken == {1: 280, 2: 120}
