"""Phases and temperature decide the shares of domains, counted by hand."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from helpers.numbered import config_of, sets_config

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.order import Cursor, Mixture, SampleOrder, repetitions

COUNTS = [40, 10, 90]


def with_data(config: Config, **data) -> Config:
    tree = config.model_dump(mode="json")
    return parse_config(tree | {"data": tree["data"] | data})


def phased(blocks: int = 1) -> Config:
    """10 steps of a and b alike, 30 of all by their weights 1, 2 and 5, then b and c, 1 to 3."""
    phases = [
        {"from_step": 0, "weights": {"a": 1.0, "b": 1.0}},
        {"from_step": 10},
        {"from_step": 40, "weights": {"b": 1.0, "c": 3.0}},
    ]
    return with_data(config_of(blocks=blocks, batch=6), phases=phases)


def drawn_domains(order: SampleOrder, cursor: Cursor, steps: int) -> list[list[int]]:
    return [[domain for domain, _ in order.take(cursor)] for _ in range(steps)]


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_each_phase_draws_its_domains_by_its_weights_from_its_first_step_to_its_last(blocks):
    order = SampleOrder(phased(blocks), COUNTS)
    steps = drawn_domains(order, Cursor([0] * 3), 140)
    shares = [(0.5, 0.5, 0.0), (1 / 8, 2 / 8, 5 / 8), (0.0, 0.25, 0.75)]
    for (first, last), share in zip([(0, 10), (10, 40), (40, 140)], shares, strict=True):
        counts: Counter[int] = Counter()
        for number, step in enumerate(steps[first:last], 1):
            counts.update(step)
            for domain in range(3):
                if share[domain]:
                    assert abs(counts[domain] - number * blocks * share[domain]) < 2, (first, number, domain)
                else:
                    assert counts[domain] == 0


def test_a_run_goes_on_in_any_phase_as_if_it_had_not_stopped():
    order = SampleOrder(phased(2), COUNTS)
    cursor, states, taken = Cursor([0] * 3), [], []
    for _ in range(60):
        states.append(json.dumps(cursor.taken))
        taken.append(order.take(cursor))
    for start in (0, 9, 10, 11, 39, 40, 41, 55):
        resumed, again = Cursor(json.loads(states[start])), SampleOrder(phased(2), COUNTS)
        assert [again.take(resumed) for _ in range(start, 60)] == taken[start:]


def test_every_set_draws_from_its_own_domains_in_every_phase():
    config = with_data(sets_config({}), phases=[{"from_step": 0, "weights": {"a": 1.0, "d": 1.0}}, {"from_step": 5}])
    order = SampleOrder(config, [20] * 4)
    steps = drawn_domains(order, Cursor([0] * 4), 65)
    assert steps[:5] == [[0, 3, 0, 3]] * 5, "sets are a, c and b, d"
    counts = Counter(domain for step in steps[5:] for domain in step)
    assert [counts[n] for n in range(4)] == [20, 48, 100, 72], "120 blocks of each set, 1 : 5 and 2 : 3"


@pytest.mark.parametrize(
    ("temperature", "shares"),
    [
        (None, (1 / 8, 2 / 8, 5 / 8)),
        (1.0, (40 / 510, 20 / 510, 450 / 510)),
        (2.0, tuple(np.array([40**0.5, 2 * 10**0.5, 5 * 90**0.5]) / (40**0.5 + 2 * 10**0.5 + 5 * 90**0.5))),
        (1e6, (1 / 8, 2 / 8, 5 / 8)),
    ],
)
def test_temperature_weighs_domains_by_their_size(temperature, shares):
    config = with_data(config_of(), temperature=temperature)
    mixture = Mixture.of(config, COUNTS)
    np.testing.assert_allclose(mixture.weights_PD[0] / mixture.weights_PD[0].sum(), shares, rtol=1e-4)
    order = SampleOrder(config, COUNTS)
    counts = Counter(domain for step in drawn_domains(order, Cursor([0] * 3), 510) for domain in step)
    for domain, share in enumerate(shares):
        assert abs(counts[domain] - 510 * share) < 2


def test_epochs_of_a_run_are_known_before_it_and_too_many_are_told():
    order, cursor = SampleOrder(phased(), COUNTS), Cursor([0] * 3)
    for _ in range(140):
        order.take(cursor)
    planned = order.planned_epochs(140)
    by_hand = [(5 + 30 / 8) * 6 / 40, (5 + 60 / 8 + 25) * 6 / 10, (150 / 8 + 75) * 6 / 90]
    np.testing.assert_allclose(planned, by_hand)
    np.testing.assert_allclose(order.epochs(cursor), planned, atol=2 * 6 / 10)
    assert repetitions(order, ["a", "b", "c"], 140) == [
        "b: 140 steps read its text 22.5 times; above 4 epochs repeated text teaches less than new text: prepare more of it, lower "
        "its weight, or set data.temperature",
        "c: 140 steps read its text 6.2 times; above 4 epochs repeated text teaches less than new text: prepare more of it, lower "
        "its weight, or set data.temperature",
    ]
    assert repetitions(order, ["a", "b", "c"], 10) == []


def test_an_extended_run_counts_its_mixture_from_its_own_beginning():
    order = SampleOrder(config_of(), COUNTS)
    taken = [0, 300, 700]  # a is new
    cursor = Cursor(list(taken), list(taken))
    counts: Counter[int] = Counter()
    for _ in range(80):
        for domain, numbers in order.take(cursor):
            assert numbers[0] == order.sample(domain, taken[domain])
            counts[domain] += 1
            taken[domain] += 4
    assert counts == {0: 10, 1: 20, 2: 50}
    assert cursor.taken == taken
