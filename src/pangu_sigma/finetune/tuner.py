"""Training loop on the samples of a task, with selection of the best state and early stopping by the loss on the dev set."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.checkpoint import Checkpoint, load_checkpoint
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.finetune.seconds import Seconds
from pangu_sigma.finetune.task_batches import TaskBatches, TaskSamples
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.evaluator import EvaluationStep, Evaluator
from pangu_sigma.training.log.losses import HeldOutLoss
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.start import StartOptions
from pangu_sigma.training.step import StepResult


@dataclass
class BestState:
    """Best state of a fine-tuning run so far, by the loss on the dev set.

    step: step of the best state. loss: its loss on the dev set, in nats per token; None while unknown. before: loss at step 0.
    stale: number of evaluations since the best state. diverged: number of evaluations without a finite loss.
    """

    step: int = 0
    loss: float | None = None
    before: float | None = None
    stale: int = 0
    diverged: int = 0

    def take(self, step: int, loss: float) -> None:
        """Update with the loss of an evaluation. A loss that is not finite is no improvement."""
        known = loss if math.isfinite(loss) else None
        self.diverged += known is None
        if step == 0:
            self.before = known
        if known is not None and (self.loss is None or known < self.loss):
            self.step, self.loss, self.stale = step, known, 0
        else:
            self.stale += 1


class TimedEvaluation(EvaluationStep):
    """Evaluation step whose first pass, in which its graph is compiled, counts to the phase "compile"."""

    def __init__(self, network: PanGuSigma, store: ExpertStore, seconds: Seconds):
        super().__init__(network, store)
        self._seconds, self._compiled = seconds, False

    def of(self, batch: Batch) -> np.ndarray:
        with nullcontext() if self._compiled else self._seconds.of("compile"):
            self._compiled = True
            return super().of(batch)


class Tuner(Trainer):
    """Trainer that fine-tunes a run on a task, in one CPU process. `best`: best state so far.

    The checkpoints of the best state and of step 0, the parent's state, are never pruned. All losses that the tuner measures are of
    one graph, in which equal weights have equal losses bit for bit.
    """

    def __init__(self, run: StoredRun, training: TaskSamples, dev: TaskSamples | None, seconds: Seconds):
        """run: run folder with a checkpoint. dev: the dev set; without one nothing is evaluated, and the last state is the best."""
        nothing = TaskSamples(run.config, [[] for _ in run.config.domains], run.tokenizer)
        self._opened, self._training, self._dev = run, training, nothing if dev is None else dev
        super().__init__(run.config, run.path)
        self.seconds, self._in_memory, self._compiled = seconds, self.progress.step, False
        self._forward = TimedEvaluation(self.network, self.store, seconds)
        self.best = BestState(**self.resumed.get("best", {}))
        self.saver.spared = frozenset([0, self.best.step])

    def open_run(self, folder: Path, asked: StartOptions) -> StoredRun:
        """Return the run folder that is already open."""
        return self._opened

    def open_batches(self, split: str) -> BatchLoader:
        """Return the batches of the training samples or the dev set."""
        samples = self._training if split == "train" else self._dev
        return TaskBatches(self.config, self.run.tokenizer, self.run.table, samples, self._training)

    def evaluator(self) -> Evaluator:
        """Return the evaluator of the whole dev set."""
        return Evaluator(self.open_batches("held_out"), max(self._dev.counts), self._forward, self.network)

    def advance(self) -> tuple[Batch, float, StepResult]:
        """Take one step. The first one, in which the graph is compiled, counts to the phase "compile"."""
        with nullcontext() if self._compiled else self.seconds.of("compile"):
            taken = super().advance()
        self._compiled, self._in_memory = True, self.progress.step
        return taken

    def losses_at(
        self, step: int, batches: BatchLoader, most: int, only: Collection[str] | None = None
    ) -> dict[str, HeldOutLoss]:
        """Measure the losses of the state after a step, on at most `most` samples of each domain. only: domains; None for all.

        Afterwards this state is in memory, and the training cannot go on. Raises CheckpointError.
        """
        with self.seconds.of("after" if step else "before"):
            if step != self._in_memory:
                self.backend.restore(self.built, self.checkpoint(step))
                self._in_memory = step
            return Evaluator(batches, most, self._forward, self.network, only=only).losses()

    def checkpoint(self, step: int) -> Checkpoint:
        """Load the checkpoint of a step. Raises CheckpointError."""
        return load_checkpoint(self.run.checkpoints / f"step_{step:08d}")

    @property
    def finished(self) -> bool:
        """True if the run is at its last step, or the dev loss has not improved for too long."""
        return super().finished or self.best.stale >= self.config.tuning.patience

    def evaluated(self, losses: dict[str, HeldOutLoss]) -> None:
        """Update the best state with the dev loss."""
        if losses:
            self.best.take(self.progress.step, mean_loss(losses))
        else:
            self.best.step = self.progress.step
        self.saver.spared = frozenset([0, self.best.step])

    def state(self) -> dict[str, Any]:
        """Return the trainer's state for a checkpoint, with the best state."""
        return {**super().state(), "best": asdict(self.best)}


def mean_loss(losses: dict[str, HeldOutLoss]) -> float:
    """Return the mean loss over the tokens of all domains, in nats per token."""
    nats = sum(float(loss.nats_U.sum()) for loss in losses.values())
    return nats / sum(float(loss.tokens_U.sum()) for loss in losses.values())
