"""The best state by the dev set, and when it is enough."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pangu_sigma.finetune.best import BestState
from pangu_sigma.held_out.losses import HeldOutLoss


def of_domains(loss: float) -> dict[str, HeldOutLoss]:
    """Two domains whose mean over 1 + 3 tokens is `loss`."""
    tokens = {"a": np.ones(1), "b": np.full(1, 3.0)}
    nats = {"a": np.full(1, loss + 3), "b": np.full(1, 3 * (loss - 1))}
    return {name: HeldOutLoss(nats[name], tokens[name], tokens[name], 0.0, "") for name in tokens}


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 2.0, 2.5, 1.5, 1.5, math.nan, 1.75], BestState(step=3, loss=1.5, before=3.0, stale=3, diverged=1)),
        ([1.0, 1.125, 1.25], BestState(step=0, loss=1.0, before=1.0, stale=2, diverged=0)),
        ([math.nan, math.inf, 2.0], BestState(step=2, loss=2.0, before=None, stale=0, diverged=2)),
    ],
    ids=["the first of the lowest", "only worse", "not finite"],
)
def test_the_best_is_the_first_of_the_lowest_losses_that_are_finite(losses: list[float], best: BestState):
    state = BestState()
    for step, loss in enumerate(losses):
        state.take(step, of_domains(loss), is_dev_set=True)
    assert state == best
    again = BestState()
    again.restore(state.state())
    assert again == best, "as a checkpoint keeps it"


def test_without_a_dev_set_the_last_state_is_the_best_and_has_the_loss_that_was_measured_last():
    state = BestState()
    state.take(0, of_domains(2.0), is_dev_set=False)
    state.take(1, {}, is_dev_set=False)
    assert state == BestState(step=1, loss=2.0, before=2.0)
    state.take(2, of_domains(3.0), is_dev_set=False)
    assert state == BestState(step=2, loss=3.0, before=2.0)
    state.take(3, of_domains(math.inf), is_dev_set=False)
    assert state == BestState(step=3, loss=None, before=2.0)
