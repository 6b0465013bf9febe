"""Means, errors and differences of held-out losses are those of an independent computation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.held_out.losses import (
    FIGURES,
    HeldOutLoss,
    evaluation_line,
    format_number,
    losses_of,
    mean_of,
    ratio,
)


def loss_of(nats_U: np.ndarray, seed: int = 0, digest: str = "d") -> HeldOutLoss:
    rng = np.random.default_rng(seed)
    return HeldOutLoss(nats_U, rng.integers(200, 257, len(nats_U)), rng.integers(500, 900, len(nats_U)), 7.0, digest)


def drawn(seed: int, units: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(1_500.0, 200.0, units)


def jackknifed(values_U: np.ndarray, weights_U: np.ndarray) -> float:
    """The standard error of a ratio by leaving one unit out at a time."""
    n = len(values_U)
    without = (values_U.sum() - values_U) / (weights_U.sum() - weights_U)
    return math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())


def test_the_standard_error_is_that_of_a_mean_over_samples():
    equal = HeldOutLoss(drawn(1), np.full(40, 256), np.full(40, 800), 7.0, "d")
    nats = equal.nats_per_token
    assert nats.mean == pytest.approx((drawn(1) / 256).mean())
    assert nats.error == pytest.approx(np.std(drawn(1) / 256, ddof=1) / math.sqrt(40))
    unequal = loss_of(drawn(2))
    assert unequal.nats_per_token.mean == pytest.approx(drawn(2).sum() / unequal.tokens_U.sum())
    assert unequal.nats_per_token.error == pytest.approx(jackknifed(drawn(2), unequal.tokens_U), rel=0.02)
    assert unequal.bits_per_byte.error == pytest.approx(jackknifed(drawn(2) / math.log(2), unequal.bytes_U), rel=0.02)


def test_it_holds_how_far_means_of_other_samples_lie():
    """Drawn many times, 95 of 100 means lie within two errors of what they are drawn around."""
    rng, within = np.random.default_rng(3), 0
    for _ in range(400):
        tokens_U = rng.integers(1, 257, 64)  # samples of very different lengths
        estimate = ratio(tokens_U * rng.normal(6.0, 1.0, 64), tokens_U)
        within += abs(estimate.mean - 6.0) < 2 * estimate.error
    assert 360 < within < 396


def test_a_difference_is_paired_by_sample():
    hard_U = drawn(4)  # hard for both runs, so it cancels
    one, other = loss_of(hard_U), loss_of(hard_U + np.random.default_rng(5).normal(10.0, 3.0, 40))
    found = one.minus(other)
    gap_U = one.nats_U - other.nats_U
    assert found.nats.mean == pytest.approx(one.nats_per_token.mean - other.nats_per_token.mean)
    assert found.nats.error == pytest.approx(jackknifed(gap_U, one.tokens_U), rel=0.02)
    assert found.bits.mean == pytest.approx(gap_U.sum() / math.log(2) / one.bytes_U.sum())
    assert found.nats.error < one.nats_per_token.error / 10
    assert found.figures() == {
        "nats_per_token": found.nats.mean,
        "se": found.nats.error,
        "bits_per_byte": found.bits.mean,
        "bits_per_byte_se": found.bits.error,
    }
    with pytest.raises(ValueError, match="losses of other samples"):
        one.minus(loss_of(hard_U, digest="e"))


def test_an_evaluation_comes_back_from_its_line():
    losses = {"zh": loss_of(drawn(6).astype(np.float32).astype(float)), "en": loss_of(drawn(7), 1, "e")}
    line = json.loads(json.dumps(evaluation_line(5, losses), allow_nan=False))
    assert line.keys() == {"kind", "step", "per_domain_loss", *FIGURES}
    found = losses_of(line)
    for name, loss in losses.items():
        assert line["per_domain_loss"][name] == loss.nats_per_token.mean
        assert line["unigram"][name] == found[name].unigram == 7.0
        assert line["tokens"][name] == loss.tokens_U.sum()
        assert found[name].digest == loss.digest
        assert found[name].nats_per_token == pytest.approx(loss.nats_per_token, abs=1e-6)
        assert found[name].bits_per_byte == pytest.approx(loss.bits_per_byte, abs=1e-6)


@given(
    nats=st.lists(st.floats() | st.just(math.nan), min_size=1, max_size=5),
    tokens=st.integers(0, 300),
)
def test_losses_that_are_not_finite_are_unknown_and_never_an_error(nats, tokens):
    """A run that diverged has none, one sample has no error, and a sample may have no token that counts."""
    with np.errstate(all="ignore"):
        count = len(nats)
        loss = HeldOutLoss(np.array(nats), np.full(count, tokens), np.full(count, tokens), math.nan, "d")
        line = evaluation_line(1, {"zh": loss})
        json.dumps(line, allow_nan=False)
        (found,) = losses_of(line).values()
        figures = found.minus(found).figures()
    for value in (*figures.values(), line["se"]["zh"], line["per_domain_loss"]["zh"]):
        assert value is None or math.isfinite(value)
        assert format_number(value, 8)
    assert line["unigram"] == {"zh": None}


def test_the_mean_over_seeds_has_the_error_of_a_mean():
    found = mean_of([-0.02, -0.01, 0.03])
    assert found.mean == pytest.approx(0.0)
    assert found.error == pytest.approx(np.std([-0.02, -0.01, 0.03], ddof=1) / math.sqrt(3))
    assert math.isnan(mean_of([1.0]).error)


def test_what_is_not_known_is_a_dash_and_no_zero_has_a_sign():
    assert [format_number(v, 8) for v in (1.23456, None, math.nan, -math.inf)] == ["   1.235", *["       –"] * 3]
    assert [format_number(v, 7, 4) for v in (-1e-7, -0.0, -1e-3)] == [" 0.0000", " 0.0000", "-0.0010"]
