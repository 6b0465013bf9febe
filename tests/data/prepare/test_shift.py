"""The shift of held-out text against its definition in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.data.prepare.writing import _shift

ROWS = np.arange(12)


def loss(rest: np.ndarray, part: np.ndarray) -> float:
    return float(-(part * np.log((rest + 0.5) / (rest + 0.5).sum())).sum() / part.sum())


def counts(rng: np.random.Generator, samples: int, ids: range, tokens: int = 200) -> np.ndarray:
    """Counts of random ids in each of 20 samples, of which the first have text."""
    drawn = [np.bincount(rng.integers(ids.start, ids.stop, tokens), minlength=12) for _ in range(samples)]
    return np.array([*drawn, *[np.zeros(12, int)] * (20 - samples)])


def test_it_is_the_loss_above_that_of_random_samples_of_the_domain():
    rng = np.random.default_rng(0)
    train, held_out = counts(rng, 9, range(0, 6)), counts(rng, 2, range(6, 12))
    total = (train + held_out).sum(axis=0)
    found, shift, deviation = _shift(train, held_out, ROWS)
    losses = [loss(total - sample, sample) for sample in (train + held_out)[:9]]
    assert found == pytest.approx(loss(train.sum(axis=0), held_out.sum(axis=0)))
    tokens = total.sum() / 9
    assert (shift, deviation) == pytest.approx((found - np.mean(losses), np.std(losses) * (tokens / 400) ** 0.5))
    assert shift > 1


def test_it_is_near_zero_for_a_random_sample():
    rng = np.random.default_rng(0)
    _, shift, deviation = _shift(counts(rng, 20, range(12)), counts(rng, 2, range(12)), ROWS)
    assert abs(shift) < 3 * deviation < 0.2


@pytest.mark.parametrize("samples", [0, 1, 2])
def test_it_is_a_number_also_where_nothing_is_held_out_or_compared(samples):
    train = counts(np.random.default_rng(0), samples, range(12))
    assert _shift(train, np.zeros((20, 12), int), ROWS) == (0.0, 0.0, 0.0)
