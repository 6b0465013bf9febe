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
    """Yield (shard, name, parameter, part, writes_part) for every array of a checkpoint on Ascend ranks. name: name of the array in
    the shard. part: the slice of the whole array that `rank` holds in `parameter`. writes_part: True if `rank` writes this slice.

    shards: the parameters of the checkpoint, by shard and name."""
    stage = Layout(config.parallel).coordinates(rank).stage
    array_of_name = {array.name: array for array in all_arrays(config, stage)}
    segment_of_shard = {f"{EXPERTS}{experts.segment.number}": experts.segment for experts in store.segments}
    for shard, parameters in shards.items():
        segment = segment_of_shard.get(shard)
        for name, parameter in parameters.items():
            array = array_of_name[f"experts.{segment.number}.{name}"] if segment else array_of_name.get(name)
            if array is None:
                yield shard, name, parameter, Part.everything(tuple(parameter.shape)), rank == 0
            else:
                part = part_of(array, config.parallel, rank, segment.held if segment else None)
                yield shard, name, parameter, part, is_writer(array, config, rank)


def part_of(array: Array, parallel: ParallelConfig, rank: int, held: np.ndarray | None = None) -> Part:
    """Return the part of an array that a rank holds. held: numbers of the experts that the rank stores; None for a dense array."""
    tensor_rank, sizes = rank % parallel.tensor, zip(array.computed, array.shape, strict=True)
    # where the rank's slice begins on each axis: 0, except on an axis that tensor parallelism cuts
    first_row, *offset = (tensor_rank * size if size < full_size else 0 for size, full_size in sizes)
    if held is not None:  # on the first axis of experts their numbers say it
        return Part(array.shape, Part.of_rows(array.shape, held).rows, tuple(offset))
    if array.divided:  # the ranks that compute with the same slice each keep an equal range of its rows
        sharer = rank % parallel.stage_ranks  # number of this rank among them
        if array.computed != array.shape:
            sharer //= parallel.tensor  # each tensor rank has another slice
        first_row += sharer * array.kept[0]
    return Part(array.shape, ((first_row, first_row + array.kept[0]),), tuple(offset))


def is_writer(array: Array, config: Config, rank: int) -> bool:
    """Return True if `rank` writes its part of the array to the checkpoint: the first of the ranks with the same part does."""
    if array.divided:
        return True  # no two ranks hold the same rows
    is_expert_array, coordinates = array.name.startswith("experts."), Layout(config.parallel).coordinates(rank)
    first_axis = 1 if is_expert_array else 0  # axis 0 counts experts, which tensor ranks do not divide
    if array.computed[first_axis:] == array.shape[first_axis:] and coordinates.tensor > 0:
        return False  # all tensor ranks hold the same, and the first writes
    if is_expert_array:
        return writes_experts(config, rank, config.model.routed[int(array.name.split(".")[1])])
    return coordinates.group == coordinates.expert == coordinates.data == 0
