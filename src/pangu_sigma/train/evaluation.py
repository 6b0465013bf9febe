"""Held-out loss of each domain, of a network in memory: the training loop's eyes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from mindspore import nn
from tqdm import tqdm

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.parallel.ranks import ALONE, Ranks
from pangu_sigma.train.loss import NextTokenLoss


class EvaluationStep(nn.Cell):
    """Fetch and forward of one batch. construct(batch arguments of NextTokenLoss without scale, active_NA) -> weighted loss [M]."""

    def __init__(self, network: PanGuSigma, store: ExpertStore):
        super().__init__()
        self.loss = NextTokenLoss(network)
        self.store = store

    def construct(self, active_NA, *batch):
        return self.loss(1.0, *batch, *self.store.fetch(active_NA))[1]

    def of(self, batch: Batch) -> np.ndarray:
        """Weighted loss of each block."""
        *per_micro, active_NA, _ = batch.arrays()
        return self(as_tensor(active_NA), *(as_tensor(array[0]) for array in per_micro)).asnumpy()


class Forward(Protocol):
    """A graph that gives losses."""

    def of(self, batch: Batch) -> np.ndarray:
        """Weighted loss of each block."""

    def set_train(self, mode: bool) -> object:
        """False: without dropout."""


class Evaluator:
    """Losses of a network on held-out text, batch by batch, without touching it."""

    def __init__(self, config: Config, batches: Batches, forward: Forward, network: PanGuSigma, ranks: Ranks = ALONE):
        """batches: held-out ones. ranks: all of them evaluate, each its share of the batches of its group's domains."""
        self._batches = {d.name: batches.held_out(d.index, config.train.eval_batches) for d in batches.domains}
        self._ranks = ranks
        self._network = network
        self._step = forward

    def losses(self) -> dict[str, float]:
        """Mean nats per held-out token, by domain."""
        training = self._network.training
        self._step.set_train(False)
        total = sum(len(batches) for batches in self._batches.values())
        try:
            with tqdm(
                total=total, desc="evaluate", unit="batch", leave=False, disable=not self._ranks.first
            ) as progress:
                own_D2 = np.array([self._sum(batches, progress) for batches in self._batches.values()])
        finally:
            self._network.set_train(training)  # a training step that is compiled after this must keep its dropout
        losses_D2 = self._ranks.sum(own_D2)
        return {name: float(nats / tokens) for name, (nats, tokens) in zip(self._batches, losses_D2, strict=True)}

    def _sum(self, batches: list[Batch], progress: tqdm) -> tuple[float, int]:
        """Nats of this rank's tokens, and how many they are."""
        weighted, tokens = 0.0, 0
        for batch in batches:
            weighted += float(self._step.of(batch).sum()) * batch.counted
            tokens += int((batch.weights_GBS > 0).sum())
            progress.update()
        return weighted, tokens
