"""Evaluation of the held-out loss of each domain, on a network in memory.

Shape suffixes: B sequences, M blocks, N segments, A active experts, U units, which are samples, or blocks of samples on Ascend.
"""

from __future__ import annotations

from itertools import accumulate, chain

import numpy as np
from mindspore import nn

from pangu_sigma.bars import Bar
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.held_out.batches import HeldOut
from pangu_sigma.held_out.losses import HeldOutLoss
from pangu_sigma.model.declare import as_input
from pangu_sigma.model.pangu_sigma import NextTokenLoss, PanGuSigma
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks


class EvaluationStep(nn.Cell):
    """Step of a held-out evaluation, which looks up experts and runs a forward pass."""

    def __init__(self, network: PanGuSigma, store: ExpertStore):
        super().__init__()
        self.loss, self.store = NextTokenLoss(network, by_sequence=True), store

    def construct(self, active_A, *batch):
        """Return the weighted loss of each sequence, [B]. active_A: rows of each segment's active experts in the store. batch: the
        other arguments of `NextTokenLoss`."""
        return self.loss(*batch, self.store.fetch(active_A))

    def block_losses(self, batch: Batch) -> np.ndarray:
        """Return the weighted loss of each sequence of a batch, [B]."""
        arrays = batch.arrays(self.store.rows_of(batch.own_row_keys))
        self.store.settle()
        return self(*map(as_input, (arrays.active_A, *arrays.of_micro_batch(0)))).asnumpy()


class Evaluator:
    """Evaluator of the held-out loss of each domain, in training and afterwards. It does not change the network."""

    def __init__(
        self,
        batches: BatchLoader,
        sample_limit: int,
        forward: nn.Cell,
        network: nn.Cell,
        ranks: Ranks = SINGLE_PROCESS,
        training_shaped: bool = False,
        adds_losses: bool = True,
    ):
        """Prepare the batches of an evaluation. Raises DataError for damaged token counts, and with `training_shaped` CapacityError
        for too many tokens on an expert's rank.

        Args:
            batches: batches of the held-out split.
            sample_limit: maximum number of samples of each domain.
            forward: graph of `network` with a method `block_losses`, which returns the weighted loss of each unit of a batch.
            ranks: processes that evaluate together; each evaluates its share of the batches of its expert group.
            training_shaped: True if `forward` is the training graph, which takes batches shaped as in training and has collectives.
            adds_losses: True if this rank's losses are added to the total: one of the ranks that read the same tokens does so.
        """
        held_out = HeldOut(batches, sample_limit)
        by_domain = (held_out.domain_batches(domain.index) for domain in batches.domains)
        self._batches = held_out.training_shaped_batches() if training_shaped else [*chain.from_iterable(by_domain)]
        self._training_shaped, self._adds_losses = training_shaped, adds_losses
        self._ranks, self._network, self._step = ranks, network, forward
        self._texts = held_out.texts(held_out.block if training_shaped else 1)
        self._first_D = np.array([0, *accumulate(len(text.units_U3) for text in self._texts.values())])

    def losses(self) -> dict[str, HeldOutLoss]:
        """Measure the loss of each domain that has held-out samples."""
        was_training = self._network.training
        if not self._training_shaped:  # the training graph would be compiled again for another phase
            self._step.set_train(False)
        try:
            own_U = self._own_nats()
        finally:
            self._network.set_train(was_training)  # a training step that is compiled after this must keep its dropout
        # rounded to float32 as the sum over ranks is, so that the number of ranks changes nothing
        nats_U = self._ranks.sum(own_U.astype(np.float32)).astype(float)
        texts = zip(self._texts.items(), np.split(nats_U, self._first_D[1:-1]), strict=True)
        return {name: text.loss(domain_nats_U) for (name, text), domain_nats_U in texts if len(domain_nats_U)}

    def _own_nats(self) -> np.ndarray:
        """Return the loss in nats of each unit, summed over this rank's tokens, [U]; the units of the domains follow each other."""
        nats_U, count = np.zeros(self._first_D[-1]), len(self._batches)
        passes = self._ranks.max(count) if self._training_shaped else count
        with Bar(total=passes, desc="evaluate", unit="batch", leave=False, disable=not self._ranks.first) as progress:
            for i in range(passes):
                # a rank with fewer batches repeats the last one, because a training graph has collectives
                held_out = self._batches[min(i, count - 1)]
                loss_U = self._step.block_losses(held_out.batch)
                if self._adds_losses and i < count:
                    units_U = self._first_D[held_out.domains_U] + held_out.units_U
                    np.add.at(nats_U, units_U, loss_U.astype(float) * held_out.batch.counted)  # weights: 1/counted
                progress.update()
        return nats_U
