"""Reader of MindSpore's strategy files, which say how automatic parallelism split the tensors of a run among ranks.

    ParallelStrategyMap  parallel_layout_item = 3*:  param_name = 1, parallel_layouts = 2:
        dev_matrix = 1 {dim}, tensor_map = 2 {dim}, param_split_shape = 3 {dim}, indices_offset = 4, field = 5,
        opt_weight_shard_step = 6, opt_weight_shard_size = 7

The ranks form a device matrix `dev_matrix`, the last axis fastest. Axis d of a tensor is split along the matrix axis
`tensor_map[d]`, counted from the last; -1: not split. A part that several ranks hold may be split further along the tensor's first
axis, for the optimizer: into `opt_weight_shard_size` stretches, on ranks that are `opt_weight_shard_step` apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.file_tensors import WholeTensor
from pangu_sigma.foreign.protobuf import Field, message, numbers

_MOST_BYTES = 64 << 20
"""Maximum bytes of a strategy file."""
_MOST_RANKS = 1 << 16


@dataclass(frozen=True)
class Cut:
    """Split of one tensor among ranks, as a MindSpore strategy file states it.

    grid: sizes of the grid of all ranks (`dev_matrix`). axes: for each axis of the tensor, the grid's axis that splits it, counted
    from the last; -1: none (`tensor_map`). part: shape of a part (`param_split_shape`), or empty. stretches: number of parts into
    which the optimizer splits axis 0 further, on ranks that are `step` apart (`opt_weight_shard_size`, `opt_weight_shard_step`)."""

    grid: tuple[int, ...]
    axes: tuple[int, ...]
    part: tuple[int, ...] = ()
    step: int = 1
    stretches: int = 1

    @property
    def ranks(self) -> int:
        """Number of ranks among which the tensor is split."""
        return math.prod(self.grid)

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the whole tensor. shape: shape of one rank's part."""
        # an axis of the grid is counted from the last; -1: the tensor's axis is not split
        sizes = [n if axis < 0 else n * self.grid[-1 - axis] for n, axis in zip(shape, self.axes, strict=True)]
        return (sizes[0] * self.stretches, *sizes[1:])  # the optimizer splits the first axis further

    def first_index(self, rank: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the index in the whole tensor of the first value of a rank's part. shape: shape of the part."""
        part_index = []  # number of the part along each axis of the tensor
        for axis in self.axes:  # of the grid, counted from the last; -1: the tensor's axis is not split
            neighbour_distance = math.prod(self.grid[len(self.grid) - axis :]) if axis > 0 else 1  # in ranks
            part_index.append(0 if axis < 0 else rank // neighbour_distance % self.grid[-1 - axis])
        # the optimizer splits the first axis further, into stretches
        part_index[0] = part_index[0] * self.stretches + rank // self.step % self.stretches
        return tuple(index * size for index, size in zip(part_index, shape, strict=True))

    def join(self, tensors: Mapping[tuple[int, ...], WholeTensor]) -> WholeTensor:
        """Join the parts of ranks to the whole tensor. tensors: index of a part's first value in the whole → part; of one shape."""
        parts = []
        for corner, tensor in tensors.items():
            parts += [replace(part, corner=tuple(np.add(corner, part.corner).tolist())) for part in tensor.parts]
        return WholeTensor(self.whole_shape(next(iter(tensors.values())).shape), parts)


def read_strategy(file: Path) -> dict[str, Cut]:
    """Read the split of each parameter, by name, from a strategy file. Raises LayoutError for another or an unsupported file."""
    if file.stat().st_size > _MOST_BYTES:
        raise LayoutError(f"{file}: a strategy file of {file.stat().st_size:,} bytes is none; it holds no weights")
    content = file.read_bytes()
    try:  # field 3: parallel_layout_item
        cuts = dict(_parse_item(content, item) for item in message(content, 0, len(content)).get(3, []))
        if len({cut.ranks for cut in cuts.values()}) != 1:
            raise ValueError("it says of no parameter how it was cut, or of pipeline stages, which are not read")
    except (ValueError, LookupError) as error:
        reason = str(error)[:200]
        raise LayoutError(f"{file}: no strategy file of MindSpore ({reason}); take the one of the release") from None
    return cuts


def _parse_item(content: bytes, item: Field) -> tuple[str, Cut]:
    """Parse one `parallel_layout_item` into (parameter name, cut). Raises ValueError or LookupError for an unsupported cut."""
    item_fields = message(content, item.begin, item.end)
    name_field, layout = item_fields[1][-1], item_fields[2][-1]  # param_name, parallel_layouts
    name = content[name_field.begin : name_field.end].decode()
    fields = message(content, layout.begin, layout.end)
    if len(fields.get(2, [])) > 1:
        raise ValueError(f"{name[:80]} is cut along several axes of the grid at once")

    def dims(number: int) -> tuple[int, ...]:
        """Return the numbers in a field of the layout that is a list."""
        fields_of_lists = [message(content, field.begin, field.end) for field in fields.get(number, [])]
        dim_fields = [field for fields_by_number in fields_of_lists for field in fields_by_number.get(1, [])]
        return tuple(n for field in dim_fields for n in numbers(content, field))

    grid, axes, part = dims(1), dims(2), dims(3)  # dev_matrix, tensor_map, param_split_shape
    # field: unequal parts; opt_weight_shard_step: ranks between two stretches; opt_weight_shard_size: number of stretches
    row_fields, step, stretches = (numbers(content, fields[n][-1])[0] if n in fields else 0 for n in (5, 6, 7))
    ranks = math.prod(grid) if grid and len(grid) < 16 and all(0 < n <= _MOST_RANKS for n in grid) else 0
    if not 0 < ranks <= _MOST_RANKS or not axes or len(axes) > 8 or not all(-1 <= axis < len(grid) for axis in axes):
        raise ValueError(f"{name[:80]} has dev_matrix {grid[:16]} and tensor_map {axes[:16]}")
    if row_fields:
        raise ValueError(f"{name[:80]} is cut by fields of its rows, as PanGu-α is not")
    split_axes = [axis for axis in axes if axis >= 0]  # counted from the grid's last axis; -1: not cut
    holders = ranks // math.prod(grid[-1 - axis] for axis in set(split_axes))  # number of ranks with the same part
    stretches = holders if stretches == -1 else stretches  # -1: over all of them
    if len(set(split_axes)) < len(split_axes) or not 0 <= stretches <= holders or not 0 <= step <= ranks:
        cut = f"is cut into {stretches} stretches for the optimizer, {step} ranks apart"
        raise ValueError(f"{name[:80]} has tensor_map {axes} and {cut}, which {holders} equal ranks cannot hold")
    return name, Cut(grid, axes, part, max(1, step), max(1, stretches))
