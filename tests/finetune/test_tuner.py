"""The best state by the dev set, and when it is enough."""

from __future__ import annotations

import math
from dataclasses import asdict

from pangu_sigma.finetune.tuner import BestState


def test_the_best_is_the_first_of_the_lowest_losses():
    best = BestState()
    for step, loss in enumerate([3.0, 2.0, 2.5, 1.5, 1.5, math.nan, 1.6]):
        best.take(step, loss)
    assert best == BestState(step=3, loss=1.5, before=3.0, stale=3, diverged=1)
    assert BestState(**asdict(best)) == best, "as a checkpoint keeps it"


def test_a_run_that_only_gets_worse_keeps_its_beginning():
    best = BestState()
    for step, loss in enumerate([1.0, 1.1, 1.2]):
        best.take(step, loss)
    assert (best.step, best.loss, best.stale) == (0, 1.0, 2)


def test_a_loss_that_is_not_finite_is_never_the_best():
    best = BestState()
    for step, loss in enumerate([math.nan, math.inf, 2.0]):
        best.take(step, loss)
    assert best == BestState(step=2, loss=2.0, before=None, stale=0, diverged=2)
