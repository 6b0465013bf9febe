"""Next-token loss of a batch.

Shape suffixes: B batch, S sequence, M blocks (one domain each), R rows of a slot.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from pangu_sigma.model.pangu_sigma import PanGuSigma


class NextTokenLoss(nn.Cell):
    """Weighted cross-entropy of the next token over the rows of each block's slot, in float32. construct runs the network, and
    returns the sum of weight · negative log-likelihood over the tokens of each block [M], or of each sequence [B].
    slots: slot of each block. labels: next tokens, as rows of the block's slot. weights: the loss mask divided by its sum over the
    whole update, so that micro-batches add up. Other inputs: as in `PanGuSigma.construct`.
    """

    def __init__(self, network: PanGuSigma, by_sequence: bool = False):
        """by_sequence: True for a sum per sequence, False for a sum per block."""
        super().__init__()
        self.network, self.by_sequence = network, by_sequence
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()
        self.weigh, self.negate = ops.Mul(), ops.Neg()
        self.sum_tokens = ops.ReduceSum()

    def construct(
        self,
        rows_BS,
        positions_BS,
        documents_BS,
        slots_M,
        labels_BS,
        weights_BS,
        draws_B4,
        order,
        inverse_T,
        offsets_A1,
        experts,
    ):
        hidden_TH = self.network(rows_BS, positions_BS, documents_BS, draws_B4, order, inverse_T, offsets_A1, experts)
        logits = ops.cast(self.network.logits(hidden_TH, slots_M), ms.float32)
        labels = ops.reshape(labels_BS, (logits.shape[0], -1, 1))
        picked = self.pick(self.log_softmax(logits), 2, labels)
        weighted = self.weigh(picked, ops.reshape(weights_BS, labels.shape))
        if self.by_sequence:
            weighted = ops.reshape(weighted, (rows_BS.shape[0], -1, 1))
        return self.negate(self.sum_tokens(weighted, (1, 2)))
