"""Held-out loss of an exported model and of a Hugging Face style folder, computed with the CPU's decoder.

The graph of an export is not run: MindSpore executes what a MindIR names, shared libraries too. `export` compares it with the run
when it writes the graph.

The held-out text is at `data.path` of the configuration. Here rows without a token have logits of -inf; in a run they have
probability, so the two losses differ where a slot has such rows.

Shape suffixes: B sequences, S sequence.
"""

from __future__ import annotations

import numpy as np

from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.domains import Domains
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.score import token_losses
from pangu_sigma.generate.text import open_decoder
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.training.evaluator import Evaluator
from pangu_sigma.training.log.losses import HeldOutLoss


class DecodedForward:
    """Forward pass by which an `Evaluator` measures such a model: its decoder reads one held-out sequence at a time."""

    training = False

    def __init__(self, decoder: Decoder, domains: Domains):
        self._decoder, self._domains = decoder, domains

    def set_train(self, mode: bool) -> None:
        """Do nothing, because a decoder has no dropout to switch on or off."""

    def of(self, batch: Batch) -> np.ndarray:
        """Return the weighted loss of each sequence, float64 [B]."""
        ids_BS, labels_BS, weights_BS = batch.ids_GBS[0], batch.labels_GBS[0], batch.weights_GBS[0]
        domains_B = np.repeat(batch.domains_M[batch.blocks], len(ids_BS) // len(batch.blocks))
        losses_B = np.zeros(len(ids_BS))
        for b, domain in enumerate(domains_B.tolist()):
            if weights_BS[b].any():  # padding of a batch has weight 0
                self._decoder.begin(0, self._domains[domain])
                (logits_SR,) = self._decoder.read([Chunk(0, ids_BS[b].tolist(), ids_BS.shape[1])])
                losses_B[b] = (token_losses(logits_SR, labels_BS[b]) * weights_BS[b]).sum()
        return losses_B


def measure_decoded(model: StoredModel, batches: BatchLoader, most: int) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on at most `most` held-out samples."""
    forward = DecodedForward(open_decoder(model.path, 1), batches.domains)
    return Evaluator(batches, most, forward, forward).losses()
