"""MindSpore dataset of the project's batches, whose rows are the arguments of the step.

Shape suffixes: N segments of the RRE layers, A active experts, D domains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore.dataset import GeneratorDataset

from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.data.lookahead import Lookahead
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.step_arrays import StepArrays

DATASET_COLUMNS = (*StepArrays._fields, "coming", "taken")
"""Columns of the dataset: the arrays of a step; the active experts of the next batch [N, A], for the prefetcher; and the number of
samples taken of each domain after the step [D]."""


class StepRows:
    """Iterable of the batches of the next `steps` training steps, as rows of a MindSpore dataset with the columns DATASET_COLUMNS.
    It can be iterated over once."""

    def __init__(self, batches: BatchLoader, cursor: Cursor, steps: int):
        self._lookahead = Lookahead(batches, cursor)
        self._steps = steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        for _ in range(self._steps):
            batch, cursor, coming = self._lookahead.take()
            yield (*batch.arrays(), coming.active_NA, np.array(cursor.taken))


@MindFormerRegister.register(MindFormerModuleType.DATASET, alias="PanGuSigmaDataset")
def make_dataset(dataset_config: Any, batches: BatchLoader, cursor: Cursor, steps: int) -> GeneratorDataset:
    """Make a MindSpore dataset with the columns DATASET_COLUMNS and a row for each of the next `steps` training steps: a row is a
    whole batch.

    dataset_config: the YAML's `train_dataset`, which `sigma_config` has read. cursor: position in the data at which they begin.
    """
    return GeneratorDataset(
        StepRows(batches, cursor, steps), list(DATASET_COLUMNS), shuffle=False, python_multiprocessing=False
    )
