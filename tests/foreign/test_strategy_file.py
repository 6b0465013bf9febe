from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import foreign_files as foreign
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.strategy_file import Cut, read_strategy


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_parts_lie_where_mindspore_cuts_them(data: st.DataObject):
    """Against MindSpore's own `_load_tensor`, which cuts a tensor for a rank."""
    from mindspore import Tensor
    from mindspore.parallel._tensor import _load_tensor

    grid = data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3))
    axes = data.draw(st.permutations([*range(len(grid)), -1, -1]))[:2]
    cut = Cut(tuple(grid), tuple(axes))
    values = np.arange(8 * 8, dtype=np.float32).reshape(8, 8)
    for rank in range(cut.ranks):
        part = np.asarray(_load_tensor(Tensor(values), grid, axes, rank_id=rank))
        assert cut.whole_shape(part.shape) == values.shape
        at = cut.first_index(rank, part.shape)
        np.testing.assert_array_equal(values[at[0] : at[0] + part.shape[0], at[1] : at[1] + part.shape[1]], part)


def test_the_optimizer_cuts_once_more_along_the_first_axis():
    cut = Cut((4, 2), (0, -1), step=2, stretches=4)
    assert cut.whole_shape((1, 3)) == (8, 3)
    assert [cut.first_index(rank, (1, 3))[0] for rank in range(8)] == [0, 4, 1, 5, 2, 6, 3, 7]
    fewer = Cut((4, 2), (-1, 0), step=2, stretches=2)  # ranks 4 to 7 hold what 0 to 3 do
    assert [fewer.first_index(rank, (2, 3)) for rank in range(8)] == [(0, 0), (0, 3), (2, 0), (2, 3)] * 2


def strategy(**change: object) -> bytes:
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    message = ParallelStrategyMap()
    message.ParseFromString(foreign.strategy({"w": ([0, -1], 2)}, {"w": (2, 4)}, [2, 4]))
    layout = message.parallel_layout_item[0].parallel_layouts
    for name, value in change.items():
        if isinstance(value, list):
            del getattr(layout, name)[0].dim[:]
            getattr(layout, name)[0].dim.extend(value)
        elif name == "more":
            layout.tensor_map.add().dim.extend([1])
        else:
            setattr(layout, name, value)
    return message.SerializeToString()


def test_a_strategy_is_read(tmp_path: Path):
    (tmp_path / "s").write_bytes(strategy())
    assert read_strategy(tmp_path / "s") == {"w": Cut((2, 4), (0, -1), (2, 4), step=4, stretches=2)}
    (tmp_path / "s").write_bytes(strategy(opt_weight_shard_size=-1))
    assert read_strategy(tmp_path / "s")["w"].stretches == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "it says of no parameter"),
        (lambda: b"\x08\x00", "it says of no parameter"),
        (lambda: b"\xff" * 20, "no strategy file of MindSpore"),
        (lambda: strategy()[:-3], "no strategy file of MindSpore"),
        (lambda: strategy(dev_matrix=[0, 4]), "dev_matrix"),
        (lambda: strategy(dev_matrix=[1 << 31, 4]), "dev_matrix"),
        (lambda: strategy(dev_matrix=[]), "dev_matrix"),
        (lambda: strategy(tensor_map=[5, -1]), "tensor_map"),
        (lambda: strategy(tensor_map=[-7, -1]), "tensor_map"),
        (lambda: strategy(tensor_map=[0, 0]), "cut into 2 stretches"),
        (lambda: strategy(opt_weight_shard_size=64), "cut into 64 stretches"),
        (lambda: strategy(opt_weight_shard_step=1 << 20), "ranks apart"),
        (lambda: strategy(field=3), "fields of its rows"),
        (lambda: strategy(more=True), "several axes of the grid"),
    ],
)
def test_what_is_damaged_or_not_understood_is_refused(tmp_path: Path, content, message: str):
    (tmp_path / "s").write_bytes(content())
    with pytest.raises(LayoutError, match=rf"s: .*{message}"):
        read_strategy(tmp_path / "s")
