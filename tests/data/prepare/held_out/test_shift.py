"""The shift of held-out text against its definition in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.data.prepare.held_out.shift import draw_samples, held_out_shift

ROWS = np.arange(12)


def loss(rest: np.ndarray, part: np.ndarray) -> float:
    return float(-(part * np.log((rest + 0.5) / (rest + 0.5).sum())).sum() / part.sum())


def documents(rng: np.random.Generator, count: int, ids: range) -> list[np.ndarray]:
    return [rng.integers(ids.start, ids.stop, 50).astype(np.int32) for _ in range(count)]


def counts(some: list[np.ndarray]) -> np.ndarray:
    return np.bincount(np.concatenate(some), minlength=12)


def measured(train: np.ndarray, held_out: np.ndarray, order: list[np.ndarray]) -> tuple[float, float, float]:
    """The shift, with samples drawn of the documents in this order."""
    drawn = draw_samples(((n, len(ids)) for n, ids in enumerate(order)), int(held_out.sum()))
    samples = np.array([counts([order[n] for n in sample]) for sample in drawn]).reshape(-1, 12)
    return held_out_shift(train, held_out, samples, ROWS)


def test_it_is_the_loss_above_that_of_random_samples_of_the_domain():
    rng = np.random.default_rng(0)
    unlike, usual = documents(rng, 4, range(6, 12)), documents(rng, 36, range(0, 6))
    order = [*usual[:20], *unlike, *usual[20:]]
    total = counts(order)
    found, shift, deviation = measured(counts(usual), counts(unlike), order)
    samples = [counts(order[first : first + 4]) for first in range(0, 40, 4)]
    losses = [loss(total - sample, sample) for sample in samples]
    assert found == pytest.approx(loss(counts(usual), counts(unlike)))
    assert (shift, deviation) == pytest.approx((found - np.mean(losses), np.std(losses)))
    assert shift > 3


def test_it_is_near_zero_for_a_random_sample():
    order = documents(np.random.default_rng(0), 80, range(0, 12))
    _, shift, deviation = measured(counts(order[4:]), counts(order[:4]), order)
    assert abs(shift) < 3 * deviation < 0.2


def test_it_is_a_number_also_where_nothing_is_held_out():
    order = documents(np.random.default_rng(0), 2, range(0, 12))
    assert measured(counts(order), np.zeros(12, int), order) == (0.0, 0.0, 0.0)
