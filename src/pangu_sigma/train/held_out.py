"""The held-out loss of each domain, measured on a network in memory."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from mindspore import nn
from tqdm import tqdm

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.data.held_out import HeldOut
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.model.loss import NextTokenLoss
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.parallel.ranks import ALONE, Ranks


class EvaluationStep(nn.Cell):
    """Fetch and forward pass of one batch: construct(active_NA, batch arguments of NextTokenLoss) -> weighted loss [M]."""

    def __init__(self, network: PanGuSigma, store: ExpertStore):
        super().__init__()
        self.loss = NextTokenLoss(network)
        self.store = store

    def construct(self, active_NA, *batch):
        return self.loss(*batch, *self.store.fetch(active_NA))

    def of(self, batch: Batch) -> np.ndarray:
        """Weighted loss of each block."""
        arrays = batch.arrays()
        return self(as_tensor(arrays.active_NA), *map(as_tensor, arrays.of_pass(0))).asnumpy()


class Forward(Protocol):
    """A graph that gives losses."""

    def of(self, batch: Batch) -> np.ndarray:
        """Weighted loss of each block."""

    def set_train(self, mode: bool) -> object:
        """Switch dropout on for training (True) or off (False)."""


class Evaluator:
    """Measures the losses of a network on held-out text, batch by batch, and leaves the network as it is."""

    def __init__(
        self,
        config: Config,
        batches: Batches,
        forward: Forward,
        network: PanGuSigma,
        ranks: Ranks = ALONE,
        together: bool = False,
        counts: bool = True,
    ):
        """batches: the held-out ones.
        ranks: all of them evaluate, each its share of the batches of its group's domains.
        together: True if the forward is the graph of training, which takes batches like training's and in which all ranks meet.
        counts: True if the losses of this rank count; of ranks that see the same tokens, those of one do.
        Raises CapacityError together with the batches.
        """
        held_out = HeldOut(batches, config.train.eval_batches)
        self._names = [d.name for d in batches.domains]
        if together:
            self._batches = held_out.like_training()
        else:
            self._batches = [batch for d in batches.domains for batch in held_out.of_domain(d.index)]
        self._together, self._counts = together, counts
        self._ranks = ranks
        self._network = network
        self._step = forward

    def losses(self) -> dict[str, float]:
        """Mean nats per held-out token, by domain."""
        training = self._network.training
        if not self._together:  # another phase would be another graph
            self._step.set_train(False)
        try:
            own_D2 = self._own()
        finally:
            self._network.set_train(training)  # a training step that is compiled after this must keep its dropout
        losses_D2 = self._ranks.sum(own_D2)
        return {name: float(nats / tokens) for name, (nats, tokens) in zip(self._names, losses_D2, strict=True)}

    def _own(self) -> np.ndarray:
        """The nats of this rank's tokens of each domain, and the number of those tokens [D, 2]."""
        sums_D2, own = np.zeros((len(self._names), 2)), len(self._batches)
        passes = self._ranks.most(own) if self._together else own
        with tqdm(total=passes, desc="evaluate", unit="batch", leave=False, disable=not self._ranks.first) as progress:
            for number in range(passes):
                batch = self._batches[min(number, own - 1)]
                loss_M = self._step.of(batch)
                if self._counts and number < own:
                    counted_GMT = batch.weights_GBS.reshape(len(batch.weights_GBS), len(loss_M), -1) > 0
                    domains_M = batch.domains_M[batch.blocks]
                    np.add.at(sums_D2[:, 0], domains_M, loss_M * batch.counted)
                    np.add.at(sums_D2[:, 1], domains_M, counted_GMT.sum(axis=(0, 2)))
                progress.update()
        return sums_D2
