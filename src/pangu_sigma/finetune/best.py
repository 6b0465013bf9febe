"""Best state of a run that is tuned to a task, by the loss on its dev set, which ends the training early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pangu_sigma.held_out.losses import HeldOutLoss, finite_or_none


@dataclass
class BestState:
    """Best state so far, by the loss on the dev set; without a dev set, the last state.

    step: step of the best state. loss: its loss in nats per token, on the dev set or else on training samples; None while unknown.
    before: loss at step 0. stale: number of evaluations since the best state. diverged: evaluations without a finite loss.
    """

    step: int = 0
    loss: float | None = None
    before: float | None = None
    stale: int = 0
    diverged: int = 0

    def state(self) -> dict[str, Any]:
        """Return the best state as plain data, for the state of a checkpoint."""
        return asdict(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        vars(self).update(state)

    def take(self, step: int, losses: Mapping[str, HeldOutLoss], is_dev_set: bool) -> None:
        """Update after an evaluation. A loss that is not finite is no improvement.

        losses: loss of each domain; none if nothing was measured. is_dev_set: False for training samples, which choose no state.
        """
        loss = finite_or_none(mean_loss(losses)) if losses else self.loss
        if step == 0:
            self.before = loss
        if not is_dev_set:
            self.step, self.loss = step, loss
        elif loss is not None and (self.loss is None or loss < self.loss):
            self.step, self.loss, self.stale = step, loss, 0
        else:
            self.stale, self.diverged = self.stale + 1, self.diverged + (loss is None)


def mean_loss(losses: Mapping[str, HeldOutLoss]) -> float:
    """Return the mean loss over the tokens of all domains, in nats per token."""
    nats = sum(float(loss.nats_U.sum()) for loss in losses.values())
    return nats / sum(float(loss.tokens_U.sum()) for loss in losses.values())
