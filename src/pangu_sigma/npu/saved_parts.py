"""Parts of checkpointed arrays that an Ascend rank holds, and the rank that writes each. Arithmetic only, without a device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mindspore import Parameter

from pangu_sigma.checkpoint.parts import EXPERTS, Part
from pangu_sigma.checkpoint.state import Shards
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.npu.cuts import Array, all_arrays
from pangu_sigma.ranks.layout import Layout, writes_experts
from pangu_sigma.sections import ParallelConfig


def saved_parts(
    shards: Shards, store: ExpertStore, config: Config, rank: int
) -> Iterator[tuple[str, str, Parameter, Part, bool]]:
    """Yield (shard, array's name, parameter, part, written) for every array of a checkpoint on Ascend ranks. part: the slice of the
    whole array that `rank` holds, in the parameter. written: True if `rank` writes it."""
    stage = Layout(config.parallel).coordinates(rank).stage
    arrays = {array.name: array for array in all_arrays(config, stage)}
    segments = {f"{EXPERTS}{experts.segment.number}": experts.segment for experts in store.segments}
    for shard, parameters in shards.items():
        segment = segments.get(shard)
        for name, parameter in parameters.items():
            array = arrays[f"experts.{segment.number}.{name}"] if segment else arrays.get(name)
            if array is None:
                yield shard, name, parameter, Part.everything(tuple(parameter.shape)), rank == 0
            else:
                part = part_of(array, config.parallel, rank, segment.held if segment else None)
                yield shard, name, parameter, part, writes(array, config, rank)


def part_of(array: Array, parallel: ParallelConfig, rank: int, held: np.ndarray | None = None) -> Part:
    """Return the part of an array that a rank holds. held: of an array of experts, those that the rank stores."""
    sizes = zip(array.computed, array.shape, strict=True)
    first, *offset = (rank % parallel.tensor * size if size < full else 0 for size, full in sizes)
    if held is not None:
        return Part(array.shape, Part.of_rows(array.shape, held).rows, tuple(offset))
    if array.divided:
        rank %= parallel.stage_ranks
        first += (rank // parallel.tensor if array.computed != array.shape else rank) * array.kept[0]
    return Part(array.shape, ((first, first + array.kept[0]),), tuple(offset))


def writes(array: Array, config: Config, rank: int) -> bool:
    """Return True if `rank` writes its part of the array to the checkpoint: the first of the ranks with the same part does."""
    if array.divided:
        return True  # no two ranks hold the same rows
    of_experts, at = array.name.startswith("experts."), Layout(config.parallel).coordinates(rank)
    if at.tensor and array.computed[of_experts:] == array.shape[of_experts:]:
        return False  # tensor ranks hold the same
    if of_experts:
        return writes_experts(config, rank, config.model.routed[int(array.name.split(".")[1])])
    return at.group == at.expert == at.data == 0
