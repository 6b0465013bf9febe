"""MindSpore dataset of the project's batches, whose rows are the arguments of the step.

Shape suffixes: N segments of the RRE layers, D domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore.dataset import GeneratorDataset

from pangu_sigma.data.batches import BatchLoader, Lookahead
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.step_arrays import StepArrays

_WHOLE = StepArrays._fields.index("order_GT")
"""Number of the fields of `StepArrays` that are arrays. The others, and `coming`, are tuples over the N segments, but for the rows
of `model.rows`, which are refused. A row of a dataset is flat, so each segment has a column of its own there."""
_BY_SEGMENT = (*(name for name in StepArrays._fields[_WHOLE:] if name != "e_GTH"), "coming")


def arrays_of(columns: Sequence[Any]) -> tuple[StepArrays, tuple[Any, ...], Any]:
    """Return what a row of the dataset has: the arrays of a step; the active experts of the next batch, to read them ahead;
    and the number of samples taken of each domain after the step [D]."""
    *columns, taken = columns
    count = (len(columns) - _WHOLE) // len(_BY_SEGMENT)
    firsts = (_WHOLE + i * count for i in range(len(_BY_SEGMENT)))
    by_segment = {name: tuple(columns[first : first + count]) for name, first in zip(_BY_SEGMENT, firsts, strict=True)}
    coming = by_segment.pop("coming")
    whole = dict(zip(StepArrays._fields, columns[:_WHOLE], strict=False))
    return StepArrays(**whole, **by_segment, e_GTH=()), coming, taken


class StepRows:
    """Iterable of the batches of the next `steps` training steps, as rows of a MindSpore dataset, which
    `arrays_of` reads. It can be iterated over once."""

    def __init__(self, batches: BatchLoader, cursor: Cursor, steps: int):
        self._lookahead = Lookahead(batches, cursor)
        self._steps = steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        for _ in range(self._steps):
            batch, cursor, coming = self._lookahead.take()
            arrays = batch.arrays()
            by_segment = (array for field in (*arrays[_WHOLE:], coming.active_A) for array in field)
            yield (*arrays[:_WHOLE], *by_segment, np.array(cursor.taken))


@MindFormerRegister.register(MindFormerModuleType.DATASET, alias="PanGuSigmaDataset")
def make_dataset(dataset_config: Any, batches: BatchLoader, cursor: Cursor, steps: int) -> GeneratorDataset:
    """Make a MindSpore dataset with a row for each of the next `steps` training steps: a row is a whole batch.

    dataset_config: the YAML's `train_dataset`, which `sigma_config` has read. cursor: position in the data at which they begin.
    """
    names = [f"{name}.{n}" for name in _BY_SEGMENT for n in range(len(batches.config.model.routed))]
    columns = [*StepArrays._fields[:_WHOLE], *names, "taken"]
    return GeneratorDataset(StepRows(batches, cursor, steps), columns, shuffle=False, python_multiprocessing=False)
