"""A dense model of this project in the community's layout of PanGu-α, in whose word table the row of a token is its id."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.convert.alpha import write_alpha
from pangu_sigma.convert.trained_model import TrainedModel, as_dense_model
from pangu_sigma.data.vocabulary import ALPHA_SIZE
from pangu_sigma.foreign.dense_model import DenseModel, LayoutError

logger = logging.getLogger(__name__)

_ROWS_BYTES = 64 << 20
"""Bytes of the rows that are made at a time."""


def write_dense_alpha(model: TrainedModel, output: Path, ranks: int = 1) -> Path:
    """Write a dense model of one slot as PanGu-α's files. Raises LayoutError for one that is sparse or has several slots."""
    dense = in_order_of_ids(model)
    write_alpha(
        dense.tensors, output, heads=model.config.model.heads, activation=model.config.model.activation, ranks=ranks
    )
    return output


def in_order_of_ids(model: TrainedModel) -> DenseModel:
    """The dense model with a word table of PanGu-α's 40,000 rows. What the slot has beyond them is left out, and rows that it does
    not have are zeros, whose logits are 0; both are said with their numbers."""
    dense, config = as_dense_model(model), model.config
    if config.slots != 1:
        raise LayoutError(
            f"{model.path}: has {config.slots} embedding slots, PanGu-α has one word table; write it as a folder: --to hf"
        )
    ids_R = model.tokenizer.slot_rows[0]
    missing = ALPHA_SIZE - int(((ids_R >= 0) & (ids_R < ALPHA_SIZE)).sum())
    others = int((ids_R >= ALPHA_SIZE).sum())
    if others:
        logger.warning("%d rows of tags, bytes and English pieces are left out: PanGu-α has no ids for them", others)
    if missing:
        logger.warning(
            "%d of PanGu-α's %d ids have no row here and get zeros: their logits are 0, so never sample them",
            missing,
            ALPHA_SIZE,
        )
    table = _rows_by_id(dense.tensors["embedding"], model.tokenizer.row_of[0][:ALPHA_SIZE])
    return replace(dense, vocabulary=ALPHA_SIZE, tensors=dense.tensors | {"embedding": table})


def _rows_by_id(table: LazyArray, row_V: np.ndarray) -> LazyArray:
    """The rows of a word table in the order of ids. row_V: row of each id, -1 for none."""
    hidden = table.shape[1]
    at_once = max(1, _ROWS_BYTES // (hidden * table.itemsize))

    def content() -> Iterator[np.ndarray]:
        values = table.read()
        for first in range(0, len(row_V), at_once):
            rows = row_V[first : first + at_once]
            yield np.where((rows >= 0)[:, None], values[np.maximum(rows, 0)], np.zeros((), values.dtype))

    return LazyArray((len(row_V), hidden), table.dtype, content, table.origin)
