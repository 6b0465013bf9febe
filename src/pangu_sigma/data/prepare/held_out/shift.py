"""How far held-out text is from a random sample of its domain, measured with a unigram model.

Passing documents over may leave held-out text that is unlike the rest, whose losses then say little about the domain.

Shape suffixes: N documents, S samples, V vocabulary, R rows of a slot.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pangu_sigma.data.prepared import unigram_nats

_DRAWS = 20
"""Maximum number of random samples."""


def draw_samples(documents: Iterable[tuple[int, int]], tokens: int) -> list[list[int]]:
    """Return samples of successive documents, each with `tokens` tokens or more, at most `_DRAWS` samples.

    documents: number and tokens of each document, in random order.
    """
    samples, sample, size = list[list[int]](), list[int](), 0
    for number, document_tokens in documents if tokens else ():
        sample.append(number)
        size += document_tokens
        if size >= tokens:
            samples.append(sample)
            sample, size = [], 0
        if len(samples) == _DRAWS:
            break
    return samples


def held_out_shift(
    train_V: np.ndarray, held_out_V: np.ndarray, samples_SV: np.ndarray, slot_R: np.ndarray
) -> tuple[float, float, float]:
    """Return the unigram loss of the held-out tokens in nats, how much that is above random samples, and their standard deviation.

    The loss of a sample is what it would be if it were held out: the model counts all other tokens of the domain. train_V,
    held_out_V, samples_SV: token counts. slot_R: id of each row of the domain's slot, -1 for a row without one.
    """
    total_V = train_V + held_out_V
    loss = _loss(train_V, held_out_V, slot_R)
    losses = [_loss(total_V - sample_V, sample_V, slot_R) for sample_V in samples_SV]
    if not losses:
        return loss, 0.0, 0.0
    return loss, loss - float(np.mean(losses)), float(np.std(losses))


def _loss(rest_V: np.ndarray, part_V: np.ndarray, slot_R: np.ndarray) -> float:
    """Return the loss of a part of the tokens in nats, with a unigram model of the rest; 0 for no tokens."""
    ids = slot_R[slot_R >= 0]
    return float(part_V[ids] @ unigram_nats(rest_V, slot_R)[ids] / max(1, part_V[ids].sum()))
