"""The held-out loss of each domain, measured on a network in memory.

Shape suffixes: B sequences, M blocks, N RRE layers, A active experts, U units, which are samples, or blocks of samples on Ascend.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Protocol

import numpy as np
from mindspore import nn
from tqdm import tqdm

from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.data.held_out import HeldOut, HeldOutBatch, Yardstick
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.model.loss import NextTokenLoss
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.parallel.ranks import ALONE, Ranks
from pangu_sigma.train.losses import HeldOutLoss, ratio


class EvaluationStep(nn.Cell):
    """Fetch and forward pass of one batch: construct(active_NA, batch arguments of NextTokenLoss) -> weighted loss [B]."""

    def __init__(self, network: PanGuSigma, store: ExpertStore):
        super().__init__()
        self.loss = NextTokenLoss(network, by_sequence=True)
        self.store = store

    def construct(self, active_NA, *batch):
        return self.loss(*batch, *self.store.fetch(active_NA))

    def of(self, batch: Batch) -> np.ndarray:
        """Weighted loss of each sequence."""
        arrays = batch.arrays()
        return self(as_tensor(arrays.active_NA), *map(as_tensor, arrays.of_pass(0))).asnumpy()


class Forward(Protocol):
    """A graph that gives losses."""

    def of(self, batch: Batch) -> np.ndarray:
        """Weighted loss of each unit: of each sequence, or of each block if the graph is that of training."""

    def set_train(self, mode: bool) -> object:
        """Switch dropout on for training (True) or off (False)."""


class Trains(Protocol):
    """What training switches on and off."""

    training: bool

    def set_train(self, mode: bool) -> object: ...


class Evaluator:
    """Measures the losses of a network on held-out text, batch by batch, and leaves the network as it is."""

    def __init__(
        self,
        batches: Batches,
        most: int,
        forward: Forward,
        network: Trains,
        ranks: Ranks = ALONE,
        together: bool = False,
        counts: bool = True,
    ):
        """batches: the held-out ones. most: number of samples of each domain at most, as `HeldOut`.
        ranks: all of them evaluate, each its share of the batches of its group's domains.
        together: True if the forward is the graph of training, which takes batches like training's and in which all ranks meet.
        counts: True if the losses of this rank count; of ranks that see the same tokens, those of one do.
        Raises CapacityError together with the batches, and DataError as `Batches.frequencies`.
        """
        held_out = HeldOut(batches, most)
        if together:
            self._batches = held_out.like_training()
        else:
            self._batches = [batch for d in batches.domains for batch in held_out.of_domain(d.index)]
        self._together, self._counts = together, counts
        self._ranks, self._network, self._step = ranks, network, forward
        size = held_out.block if together else 1
        self._digests, units = held_out.digests(size), held_out.units(size)
        self._first_D = np.array([0, *accumulate(units)])
        yardstick = Yardstick(batches.tokenizer, batches.domains, batches.frequencies())
        self._text_U3 = np.zeros((sum(units), 3))
        for found in self._batches if counts else []:
            np.add.at(self._text_U3, self._units(found), yardstick.of(found))

    def losses(self) -> dict[str, HeldOutLoss]:
        """The loss of each domain that has held-out samples."""
        training = self._network.training
        if not self._together:  # another phase would be another graph
            self._step.set_train(False)
        try:
            own_U = self._own()
        finally:
            self._network.set_train(training)  # a training step that is compiled after this must keep its dropout
        # rounded as the sum over ranks is, so that their number changes nothing
        own_U4 = np.column_stack([own_U, self._text_U3]).astype(np.float32)
        of_domains = np.split(self._ranks.sum(own_U4).astype(float), self._first_D[1:-1])
        found = {}
        for (name, digest), all_U4 in zip(self._digests.items(), of_domains, strict=True):
            nats_U, tokens_U, bytes_U, unigram_U = all_U4.T
            if not len(nats_U):
                continue
            found[name] = HeldOutLoss(nats_U, tokens_U, bytes_U, ratio(unigram_U, tokens_U).mean, digest)
        return found

    def _own(self) -> np.ndarray:
        """The nats of this rank's tokens of each unit of each domain, one domain behind the other."""
        nats_U, own = np.zeros(len(self._text_U3)), len(self._batches)
        passes = self._ranks.most(own) if self._together else own
        with tqdm(total=passes, desc="evaluate", unit="batch", leave=False, disable=not self._ranks.first) as progress:
            for number in range(passes):
                found = self._batches[min(number, own - 1)]
                loss_U = self._step.of(found.batch)
                if self._counts and number < own:
                    np.add.at(nats_U, self._units(found), loss_U.astype(float) * found.batch.counted)
                progress.update()
        return nats_U

    def _units(self, found: HeldOutBatch) -> np.ndarray:
        """Numbers of the units of a batch among those of all domains."""
        return self._first_D[found.domains_U] + found.units_U
