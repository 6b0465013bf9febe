"""Training loop on the samples of a task, with selection of the best state and early stopping by the loss on the dev set."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.finetune.task_batches import TaskBatches, TaskSamples
from pangu_sigma.held_out.batches import samples_of_evaluation
from pangu_sigma.held_out.evaluator import EvaluationStep, Evaluator
from pangu_sigma.held_out.losses import HeldOutLoss, finite_or_none
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.health import UnhealthyRun
from pangu_sigma.training.loop import Trainer, train_to_end


@dataclass
class BestState:
    """Best state of a fine-tuning run so far, by the loss on the dev set; without one, the last state.

    step: step of the best state. loss: its loss on the dev set, or else on training samples, in nats per token; None while unknown.
    before: loss at step 0. stale: number of evaluations since the best state. diverged: evaluations without a finite loss.
    """

    step: int = 0
    loss: float | None = None
    before: float | None = None
    stale: int = 0
    diverged: int = 0

    def take(self, step: int, loss: float) -> None:
        """Update with the loss of an evaluation. A loss that is not finite is no improvement."""
        finite = loss if math.isfinite(loss) else None
        self.diverged += finite is None
        if step == 0:
            self.before = finite
        if finite is not None and (self.loss is None or finite < self.loss):
            self.step, self.loss, self.stale = step, finite, 0
        else:
            self.stale += 1


class Tuner(Trainer):
    """Trainer that fine-tunes a run on a task, in one CPU process. `best`: best state so far, whose checkpoint is never pruned."""

    def __init__(self, run: StoredRun, training: TaskSamples, dev: TaskSamples | None):
        """run: run folder with a checkpoint. dev: the dev set; without one the last state is the best, and only the first and the
        last are evaluated, on training samples."""
        nothing = TaskSamples(run.config, [[] for _ in run.config.domains], run.tokenizer)
        self._training, self._dev = training, nothing if dev is None else dev
        super().__init__(run.config, run.path, run=run)
        self.best = BestState(**self.resumed.get("best", {}))
        self.saver.spared = frozenset([self.best.step])

    def open_batches(self, split: str) -> BatchLoader:
        """Return the batches of the training samples or the dev set."""
        samples = self._training if split == "train" else self._dev
        return TaskBatches(self.config, self.run.tokenizer, self.run.table, samples, self._training)

    def evaluator(self) -> Evaluator:
        """Return the evaluator of the whole dev set."""
        return self._evaluator(self.open_batches("held_out"), max(self._dev.counts))

    def _evaluator(self, batches: BatchLoader, most: int) -> Evaluator:
        return Evaluator(batches, most, EvaluationStep(self.network, self.store), self.network)

    @cached_property
    def _of_training(self) -> Evaluator:
        """Evaluator of training samples, for a tuning without a dev set: both of its losses are of one graph."""
        return self._evaluator(self.batches, samples_of_evaluation(self.config))

    @property
    def finished(self) -> bool:
        """True if the run is at its last step, or the dev loss has not improved for too long."""
        return super().finished or self.best.stale >= self.config.tuning.patience

    def after_evaluation(self, losses: dict[str, HeldOutLoss]) -> None:
        """Update the best state with the dev loss."""
        step, best = self.progress.step, self.best
        if losses:
            best.take(step, mean_loss(losses))
        else:
            best.step = step
            if step == 0 or self.finished:
                best.loss = finite_or_none(mean_loss(self._of_training.losses()))
                best.before = best.loss if step == 0 else best.before
        self.saver.spared = frozenset([best.step])

    def state(self) -> dict[str, Any]:
        """Return the trainer's state for a checkpoint, with the best state."""
        return {**super().state(), "best": asdict(self.best)}


def mean_loss(losses: dict[str, HeldOutLoss]) -> float:
    """Return the mean loss over the tokens of all domains, in nats per token."""
    nats = sum(float(loss.nats_U.sum()) for loss in losses.values())
    return nats / sum(float(loss.tokens_U.sum()) for loss in losses.values())


def tune(run: StoredRun, training: TaskSamples, dev: TaskSamples | None) -> dict[str, Any] | None:
    """Train to the end, and return steps, best state and losses; None if SIGTERM came before. Raises UnhealthyRun if the best state
    has no finite loss."""
    tuner = Tuner(run, training, dev)
    train_to_end(tuner)
    if not tuner.finished:
        return None
    best = tuner.best
    if best.loss is None:
        raise UnhealthyRun(
            f"{run.path}: the loss of the {'training samples' if dev is None else 'dev set'} is not finite after step {best.step}: "
            "the tuning diverged, and there is no better state to keep; remove the folder, lower train.optimizer.peak_lr="
            f"{run.config.train.optimizer.peak_lr:g} and tune again, with --dev-file to keep the best state"
        )
    losses = {"before": best.before, "after": best.loss}
    return {"steps": tuner.progress.step, "best": asdict(best), "losses": losses}
