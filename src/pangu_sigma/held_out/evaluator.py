"""Evaluation of the held-out loss of each domain, on a network in memory.

Shape suffixes: B sequences, M blocks, N segments, A active experts, U units, which are samples, or blocks of samples on Ascend.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from mindspore import nn

from pangu_sigma.bars import Bar
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.held_out.batches import HeldOut
from pangu_sigma.held_out.losses import HeldOutLoss, ratio
from pangu_sigma.model.declare import as_input
from pangu_sigma.model.pangu_sigma import NextTokenLoss, PanGuSigma
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks


class EvaluationStep(nn.Cell):
    """Step of a held-out evaluation, which looks up experts and runs a forward pass: construct(active_A,
    *arguments of NextTokenLoss without experts) -> weighted loss of each sequence [B]."""

    def __init__(self, network: PanGuSigma, store: ExpertStore):
        super().__init__()
        self.loss = NextTokenLoss(network, by_sequence=True)
        self.store = store

    def construct(self, active_A, *batch):
        """Return the weighted loss of each sequence, [B]. active: of each segment, store rows of the active experts."""
        return self.loss(*batch, self.store.fetch(active_A))

    def of(self, batch: Batch) -> np.ndarray:
        """Return the weighted loss of each sequence of a batch, [B]."""
        arrays = batch.arrays(self.store.rows_of(batch.own_row_keys))
        self.store.settle()
        return self(*map(as_input, (arrays.active_A, *arrays.of_pass(0)))).asnumpy()


class Evaluator:
    """Evaluator of the held-out loss of each domain, in training and afterwards. It does not change the network."""

    def __init__(
        self,
        batches: BatchLoader,
        most: int,
        forward: nn.Cell,
        network: nn.Cell,
        ranks: Ranks = SINGLE_PROCESS,
        together: bool = False,
        counts: bool = True,
    ):
        """batches: batches of the held-out split. most: maximum number of samples of each domain. forward: graph of `network`,
        whose `of` returns the weighted loss of each unit of a batch, as in `EvaluationStep`.
        ranks: processes that evaluate together; each evaluates its share of the batches of its expert group.
        together: True if `forward` is the training graph, which takes batches shaped as in training and has collectives.
        counts: True if this rank's losses are added to the total: one of the ranks that read the same tokens does so.
        Raises DataError for damaged token counts, and with `together` CapacityError for too many tokens on an expert's rank.
        """
        held_out = HeldOut(batches, most)
        if together:
            self._batches = held_out.training_shaped_batches()
        else:
            self._batches = [batch for d in batches.domains for batch in held_out.domain_batches(d.index)]
        self._together, self._counts = together, counts
        self._ranks, self._network, self._step = ranks, network, forward
        self._texts = held_out.texts(held_out.block if together else 1)
        self._first_D = np.array([0, *accumulate(len(text.units_U3) for text in self._texts.values())])

    def losses(self) -> dict[str, HeldOutLoss]:
        """Measure the loss of each domain that has held-out samples."""
        training = self._network.training
        if not self._together:  # another phase would be another graph
            self._step.set_train(False)
        try:
            own_U = self._own()
        finally:
            self._network.set_train(training)  # a training step that is compiled after this must keep its dropout
        # rounded as the sum over ranks is, so that the number of ranks changes nothing
        nats_U = self._ranks.sum(own_U.astype(np.float32)).astype(float)
        losses = {}
        for (name, text), of_domain_U in zip(self._texts.items(), np.split(nats_U, self._first_D[1:-1]), strict=True):
            if not len(of_domain_U):
                continue
            tokens_U, bytes_U, unigram_U = text.units_U3.T
            losses[name] = HeldOutLoss(of_domain_U, tokens_U, bytes_U, ratio(unigram_U, tokens_U).mean, text.digest)
        return losses

    def _own(self) -> np.ndarray:
        """Return the loss in nats of each unit, summed over this rank's tokens, [U]; the domains follow each other."""
        nats_U, own = np.zeros(self._first_D[-1]), len(self._batches)
        passes = self._ranks.max(own) if self._together else own
        with Bar(total=passes, desc="evaluate", unit="batch", leave=False, disable=not self._ranks.first) as progress:
            for number in range(passes):
                held_out = self._batches[min(number, own - 1)]
                loss_U = self._step.of(held_out.batch)
                if self._counts and number < own:
                    units_U = self._first_D[held_out.domains_U] + held_out.units_U
                    np.add.at(nats_U, units_U, loss_U.astype(float) * held_out.batch.counted)
                progress.update()
        return nats_U
