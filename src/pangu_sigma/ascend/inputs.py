"""Inputs of the Ascend step: their shapes, how they are cut over ranks, and how a batch fills them."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch
from pangu_sigma.parallel.layout import active_entries, capacity


def input_strategies(config: Config) -> tuple[tuple[int, ...], ...]:
    """How the inputs of the step are cut over the ranks of a stage: by sequence, and plans by rank."""
    ranks = config.parallel.stage_ranks // config.parallel.tensor
    by_row, by_rank = (ranks, 1), (ranks,)
    batch = (by_row, by_row, by_row, by_rank, by_row, by_row)
    return (*batch, *[by_rank] * (2 * config.model.rre_layers))


def step_inputs(config: Config) -> tuple[Tensor, ...]:
    """Inputs of one rank, all zeros, in their shapes: to compile the step before there are data."""
    parallel, model, passes = config.parallel, config.model, config.train.accumulation
    sequences = passes * config.train.batch_size // (parallel.stage_ranks // parallel.tensor)
    blocks = passes * config.data.domains_per_step // parallel.groups
    ints = [(sequences, model.seq_length)] * 3 + [(blocks,), (sequences, model.seq_length)]
    rows = passes * parallel.expert * active_entries(config) * capacity(config)
    plans = [(rows,)] * model.rre_layers + [(sequences * model.seq_length,)] * model.rre_layers

    def zeros(shape: tuple[int, ...]) -> Tensor:
        return Tensor(np.zeros(shape, np.int32))

    weights = Tensor(np.zeros((sequences, model.seq_length), np.float32))
    return (*map(zeros, ints), weights, *map(zeros, plans))


def inputs_of(batch: Batch, config: Config) -> tuple[np.ndarray, ...]:
    """Inputs of the step, of a rank's share of a batch in the all-to-all layout: its micro-batches behind each other."""
    a, layers = batch.arrays(), range(config.model.rre_layers)  # a batch for a dense model has plans of zeros
    plans = (plan[:, layer] for plan in (a.order_GNT, a.inverse_GNT) for layer in layers)
    arrays = (a.rows_GBS, a.positions_GBS, a.documents_GBS, a.slots_GM, a.labels_GBS, a.weights_GBS, *plans)
    return tuple(array.reshape(-1, *array.shape[2:]) for array in arrays)
