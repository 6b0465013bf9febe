"""Parts of checkpointed arrays that an Ascend rank holds, and the rank that writes each. Arithmetic only, without a device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mindspore import Parameter

from pangu_sigma.checkpoint.parts import EXPERTS, WEIGHTS, Part
from pangu_sigma.checkpoint.state import Shards
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.npu.cuts import Array, tensor_axis
from pangu_sigma.ranks.layout import writes_experts
from pangu_sigma.sections import ParallelConfig


def parameter_parts(
    shards: Shards, store: ExpertStore, parallel: ParallelConfig, rank: int
) -> Iterator[tuple[str, str, Parameter, Part]]:
    """Yield (shard, array's name, parameter, part) for every array of a checkpoint on Ascend ranks. part: the slice of the whole
    array that `rank` holds, in the parameter."""
    segments = {f"{EXPERTS}{experts.segment.number}": experts.segment for experts in store.segments}
    for shard, parameters in shards.items():
        for name, parameter in parameters.items():
            dense = dense_of(shards, name)
            if shard.startswith(EXPERTS):
                held, experts = segments[shard].held, segments[shard].experts
                part = expert_part(parameter.shape, held, experts, name, parallel, rank)
            elif dense is not None:
                part = dense_part(dense, parallel, rank)
            else:
                part = Part.everything(tuple(parameter.shape))
            yield shard, name, parameter, part


def dense_of(shards: Shards, name: str) -> Array | None:
    """Return the cut of the dense weight to which a checkpoint's array belongs, as weight, moment or variance, as `mark_parameters`
    noted it; None for any other array."""
    weight = shards[WEIGHTS].get(name.removesuffix(".moment").removesuffix(".variance"))
    return None if weight is None else weight.cut


def dense_part(dense: Array, parallel: ParallelConfig, rank: int) -> Part:
    """Return the part of a dense weight, or of its Adam moments, that a rank holds."""
    rank %= parallel.stage_ranks
    sizes = zip(dense.computed, dense.shape, strict=True)
    first, *offset = (rank % parallel.tensor * size if size < full else 0 for size, full in sizes)
    if dense.divided:
        first += (rank // parallel.tensor if dense.computed != dense.shape else rank) * dense.kept[0]
    return Part(dense.shape, ((first, first + dense.kept[0]),), tuple(offset))


def expert_part(
    shape: tuple[int, ...], held: np.ndarray, experts: int, name: str, parallel: ParallelConfig, rank: int
) -> Part:
    """Return the part of an expert array [experts, …] that a rank holds: rows of the experts `held`, and the FFN columns of the
    rank. shape: shape on the rank. experts: number of experts of the whole array. name: the array's name."""
    columns = 1 if tensor_axis(name.split(".")[0]) is None else parallel.tensor
    rest = (shape[1] * columns, *shape[2:]) if len(shape) > 1 else ()
    rows = Part.of_rows((experts, *rest), held).rows
    offset = (rank % parallel.tensor * shape[1] if columns > 1 else 0, *(0 for _ in shape[2:])) if rest else ()
    return Part((experts, *rest), rows, offset)


def writes_part(dense: Array | None, shard: str, name: str, config: Config, rank: int) -> bool:
    """Return True if `rank` writes its part of the array `name` of a shard to the checkpoint: the first of the ranks with the same
    part does. dense: what `dense_of` returns for the array."""
    parallel, columns = config.parallel, tensor_axis(name.split(".")[0]) is not None
    if shard.startswith(EXPERTS):
        kind = config.model.routed[int(shard.removeprefix(EXPERTS))]
        return writes_experts(config, rank, kind) and (columns or rank % parallel.tensor == 0)
    if dense is None:
        return rank == 0
    rank %= parallel.stage_ranks  # a stage has its own dense parameters
    if dense.divided:
        return True  # no two ranks hold the same rows
    return rank < parallel.tensor if dense.computed != dense.shape else rank == 0
