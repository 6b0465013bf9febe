from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import validated
from pangu_sigma.generate.sampling import Sampling, log_probability

LOGITS = np.array([0.0, 2.0, 1.0, -np.inf, 3.0, -1.0], np.float32)
"""Best first: rows 4, 1, 2, 0, 5; row 3 stands for no token."""
CHANCES = np.exp(LOGITS) / np.exp(LOGITS).sum()
DRAWS = 4000


def frequencies(
    sampling: Sampling, seen: list[int] | None = None, logits: np.ndarray = LOGITS, answer: list[int] | None = None
) -> dict[int, float]:
    rng, draws = np.random.default_rng(0), DRAWS if sampling.temperature else 3
    counts = Counter(sampling.choose(logits, seen or [], answer or [], rng) for _ in range(draws))
    return {row: count / draws for row, count in counts.items()}


def test_temperature_0_is_greedy_whatever_else_is_asked():
    for sampling in (Sampling(), Sampling(top_k=3), Sampling(top_p=0.1)):
        assert frequencies(sampling) == {4: 1.0}


def test_greedy_takes_the_first_of_equals():
    assert frequencies(Sampling(), logits=np.zeros(5, np.float32)) == {0: 1.0}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature):
    chances = np.exp(LOGITS / temperature)
    chances /= chances.sum()
    found = frequencies(Sampling(temperature=temperature))
    assert 3 not in found
    for row, share in found.items():
        assert share == pytest.approx(chances[row], abs=0.03)


def test_the_repetition_penalty_makes_what_occurred_less_likely():
    """CTRL's rule: positive logits are divided, negative ones multiplied; how often it occurred does not matter."""
    assert frequencies(Sampling(repetition_penalty=2.0), seen=[4, 4, 4]) == {1: 1.0}
    assert frequencies(Sampling(repetition_penalty=1.4), seen=[4]) == {4: 1.0}
    negative = np.array([-1.0, -1.5], np.float32)
    assert frequencies(Sampling(repetition_penalty=2.0), [0], negative) == {1: 1.0}
    assert frequencies(Sampling(repetition_penalty=0.5), [1], negative) == {1: 1.0}, "below 1 it favours them"


def test_the_logits_of_the_caller_stay_as_they_are():
    logits = LOGITS.astype(np.float64)
    before = logits.copy()
    Sampling(temperature=1.0, repetition_penalty=2.0).choose(logits, [4], [], np.random.default_rng(0))
    assert (logits == before).all()


def test_the_repetition_penalty_sees_prompt_and_answer_the_other_two_the_answer_alone():
    assert frequencies(Sampling(repetition_penalty=2.0), answer=[4]) == {1: 1.0}
    for name in ("presence_penalty", "frequency_penalty"):
        assert frequencies(Sampling(**{name: 1.5}), seen=[4]) == {4: 1.0}
        assert frequencies(Sampling(**{name: 1.5}), answer=[4]) == {1: 1.0}


def test_presence_is_taken_once_and_frequency_each_time():
    """Against the definition of the OpenAI interface: logit - presence - frequency · count."""
    answer = [4, 1, 4, 4, 5]
    for presence, frequency in ((1.5, 0.0), (0.0, 0.5), (-1.0, 0.75), (2.0, -2.0)):
        counts = np.bincount(answer, minlength=len(LOGITS))
        expected = LOGITS.astype(np.float64) - presence * (counts > 0) - frequency * counts
        chances = np.exp(expected) / np.exp(expected).sum()
        sampling = Sampling(temperature=1.0, presence_penalty=presence, frequency_penalty=frequency)
        for row, share in frequencies(sampling, answer=answer).items():
            assert share == pytest.approx(chances[row], abs=0.03)
        greedy = Sampling(presence_penalty=presence, frequency_penalty=frequency)
        assert frequencies(greedy, answer=answer) == {int(expected.argmax()): 1.0}


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40),
    st.integers(0, 42),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.1, 5.0),
    st.integers(0, 5),
)
def test_the_kept_rows_are_those_that_sorting_everything_gives(values, top_k, top_p, min_p, temperature, seed):
    """An oracle without short cuts: sort, cut by each rule, and take the share that the generator's number falls into."""
    logits = np.array(values, np.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    chances = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = sorted(range(len(values)), key=lambda row: (-logits[row], row))
    before = np.cumsum(chances[order]) - chances[order]
    kept = [
        row
        for number, row in enumerate(order)
        if (not top_k or number < top_k)
        and (before[number] < top_p * chances.sum() * (1 - 1e-12) or number == 0)
        and chances[row] >= min_p
    ]
    assert sampling.choose(logits, [], [], np.random.default_rng(seed)) in kept
    near_an_edge = abs(before - top_p * chances.sum()).min() < 1e-9
    if not near_an_edge:
        assert sorted(sampling._candidates(logits, chances).tolist()) == sorted(kept)


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20), st.integers(0, 25), st.integers(0, 19))
def test_log_probabilities_are_those_of_the_rows_that_hold_a_token(values, most, at):
    logits = np.array([*values, -np.inf], np.float32)
    row = at % len(values)
    found, top = log_probability(logits, row, most)
    exact = [float(v) - np.log(np.sum(np.exp(np.array(values, np.float64)))) for v in logits[:-1]]
    assert found == pytest.approx(exact[row], abs=1e-9)
    assert len(top) == min(most, len(values))
    assert [other for other, _ in top] == sorted(range(len(values)), key=lambda r: (-logits[r], r))[:most]
    assert all(value == pytest.approx(exact[other], abs=1e-9) for other, value in top)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [float("inf"), -1.0, 1e300, "warm", None]),
        ("top_k", [-1, 2.5, True]),
        ("top_p", [0.0, 1.1]),
        ("min_p", [-0.1, 1.1, "some", True]),
        ("presence_penalty", [-2.1, 2.1, None]),
        ("frequency_penalty", [-2.1, float("inf"), "1"]),
        ("repetition_penalty", [0.0, float("inf"), 1e300]),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_its_range(name, values):
    for value in [*values, float("nan")]:
        with pytest.raises(ConfigError, match=rf"^{name}: .* is not allowed: "):
            validated(Sampling, {name: value})


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e6])
def test_the_ends_of_the_range_draw_something(temperature):
    assert (
        Sampling(temperature=temperature, repetition_penalty=1e6).choose(
            LOGITS * 100, [1], [], np.random.default_rng(0)
        )
        != 3
    )
