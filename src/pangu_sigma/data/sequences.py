"""Document number and position of each token of a packed sequence."""

from __future__ import annotations

import numpy as np


def documents_and_positions(ids: np.ndarray, eot: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each token's document number in its sequence and its position in that document, int32 [..., S], both from 0."""
    starts = np.zeros(ids.shape, bool)
    starts[..., 1:] = ids[..., :-1] == eot
    documents = np.cumsum(starts, axis=-1)
    numbers = np.arange(ids.shape[-1])
    first = np.maximum.accumulate(np.where(starts, numbers, 0), axis=-1)
    return documents.astype(np.int32), (numbers - first).astype(np.int32)
