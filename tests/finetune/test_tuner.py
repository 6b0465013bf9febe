"""The best state by the dev set, and when it is enough."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from pangu_sigma.finetune.tuner import BestState


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 2.0, 2.5, 1.5, 1.5, math.nan, 1.6], BestState(step=3, loss=1.5, before=3.0, stale=3, diverged=1)),
        ([1.0, 1.1, 1.2], BestState(step=0, loss=1.0, before=1.0, stale=2, diverged=0)),
        ([math.nan, math.inf, 2.0], BestState(step=2, loss=2.0, before=None, stale=0, diverged=2)),
    ],
    ids=["the first of the lowest", "only worse", "not finite"],
)
def test_the_best_is_the_first_of_the_lowest_losses_that_are_finite(losses: list[float], best: BestState):
    found = BestState()
    for step, loss in enumerate(losses):
        found.take(step, loss)
    assert found == best
    assert BestState(**asdict(found)) == best, "as a checkpoint keeps it"
