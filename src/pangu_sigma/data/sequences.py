"""Documents in a sequence: which one each token belongs to, and where in it the token is."""

from __future__ import annotations

import numpy as np


def documents_and_positions(ids: np.ndarray, eot: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of the document each token of a row [..., S] is in, and its position there; both start at 0. int32."""
    starts = np.zeros(ids.shape, bool)
    starts[..., 1:] = ids[..., :-1] == eot
    documents = np.cumsum(starts, axis=-1)
    places = np.arange(ids.shape[-1])
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=-1)
    return documents.astype(np.int32), (places - first).astype(np.int32)
