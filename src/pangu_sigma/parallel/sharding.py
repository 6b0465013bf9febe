"""Where every operator of the network runs on many Ascend ranks: strategies as data, applied to a built network.

A strategy says into how many parts each axis of each input is cut; MindSpore places the collectives between operators whose
strategies differ, and cuts the parameters. Symbols stand for the numbers:

    D  ranks that see different tokens (groups · expert · data)        T  tensor ranks
    E  groups · expert: ranks that store different experts             1  not cut
    G  groups        P  expert        R  data

Tensor parallelism is PanGu-α's: Q, K, V and FFN-up by columns, attention output and FFN-down by rows, so two AllReduces a layer.
Rows of logits are divided over the tensor ranks as well: no vocabulary is cut, and the softmax stays inside a rank.

Every operator of a cell in the table must have a strategy, and every cell with operators must be in it: a network that has grown
an operator is an error here, before MindSpore would guess.
"""

from __future__ import annotations

import math

from mindspore import Parameter, nn, ops
from mindspore.parallel import Layout

from ascend_ops.expert_dispatch import Gather, GatherAdd
from pangu_sigma.config import ConfigError, ParallelConfig
from pangu_sigma.model.experts import MatMulFFN, PaddedFFN
from pangu_sigma.model.pangu_sigma import Attention, DenseFFN, HiddenFrom, Layer, Linear, PanGuSigma, RoutedFFN
from pangu_sigma.model.rowwise import LayerNorm
from pangu_sigma.parallel.exchange import ToExperts, ToTokens
from pangu_sigma.train.loss import NextTokenLoss

Strategy = tuple[tuple[str | int, ...], ...]

COLUMNS: dict[str, Strategy] = {"matmul": (("D", 1), (1, "T")), "add": (("D", "T"), ("T",))}
ROWS: dict[str, Strategy] = {"matmul": (("D", "T"), ("T", 1)), "add": (("D", 1), (1,))}
"""A `Linear` whose output, or whose input, is cut."""

STRATEGIES: dict[type[nn.Cell], dict[str, Strategy]] = {
    Attention: {
        "multiply": (("D", "T", 1, 1), ()),
        "split_heads": (("D", 1, "T", 1),),
        "join_heads": (("D", "T", 1, 1),),
        "scores": (("D", "T", 1, 1), ("D", "T", 1, 1)),
        "mask": (("D", "T", 1, 1), ("D", 1, 1, 1)),
        "softmax": (("D", "T", 1, 1),),
        "weigh": (("D", "T", 1, 1), ("D", "T", 1, 1)),
    },
    LayerNorm: {"norm": (("D", 1), (1,), (1,))},
    MatMulFFN: {
        "up": (("D", 1), ("T", 1)),
        "add_up": (("D", "T"), ("T",)),
        "activate": (("D", "T"),),
        "down": (("D", "T"), ("T", 1)),
        "add_down": (("D", 1), (1,)),
    },
    PaddedFFN: {
        "up": (("E", "R", 1), ("E", "T", 1)),
        "add_up": (("E", "R", "T"), ("E", 1, "T")),
        "activate": (("E", "R", "T"),),
        "down": (("E", "R", "T"), ("E", "T", 1)),
        "add_down": (("E", "R", 1), ("E", 1, 1)),
    },
    DenseFFN: {"add": (("D", 1), ("D", 1))},
    RoutedFFN: {},
    Layer: {"add": (("D", 1), ("D", 1))},
    HiddenFrom: {
        "across": (("D", 1),),
        "down": (("D", 1),),
        "differ": (("D", 1, 1), ("D", 1, 1)),
        "either": (("D", 1, 1), (1, 1, 1)),
        "multiply": (("D", 1, 1), ()),
        "heads": (("D", 1, 1),),
    },
    Gather: {"gather": (("D", 1), ("D",))},
    GatherAdd: {"gather": (("D", 1), ("D",)), "gather_add": (("D", 1), ("D",), ("D", 1))},
    ToExperts: {
        "pack": (("G", "P", "R", 1, 1, 1, "T"),),
        "arrange": (("G", "P", 1, "R", 1, 1, "T"),),
    },
    ToTokens: {
        "unarrange": (("G", "P", 1, "R", 1, 1, "T"),),
        "unpack": (("G", 1, "P", "R", 1, 1, "T"),),
    },
    PanGuSigma: {
        "lookup": ((1, "T"), ("D",)),
        "pick_slots": ((1, 1, "T"), ("D",)),
        "add": (("D", "T"), ("D", "T")),
        "logits_matmul": (("D", "T", 1), ("D", 1, 1)),
    },
    NextTokenLoss: {
        "log_softmax": (("D", "T", 1),),
        "pick": (("D", "T", 1), ("D", "T", 1)),
        "weigh": (("D", "T", 1), ("D", "T", 1)),
        "sum_tokens": (("D", "T", 1),),
        "negate": (("D",),),
        "sum_blocks": (("D",),),
        "scale": ((), ()),
    },
}

ROLES: dict[str, dict[str, Strategy]] = {"query": COLUMNS, "key": COLUMNS, "value": COLUMNS, "output": ROWS}
"""Of the four `Linear`s of an `Attention`."""


PARAMETERS: dict[type[nn.Cell], dict[str, tuple[str, int]]] = {
    Linear: {"weight": ("matmul", 1), "bias": ("add", 1)},
    LayerNorm: {"gain": ("norm", 1), "bias": ("norm", 2)},
    DenseFFN: {"w1": ("ffn.up", 1), "b1": ("ffn.add_up", 1), "w2": ("ffn.down", 1), "b2": ("ffn.add_down", 1)},
    PanGuSigma: dict.fromkeys(("embedding", "positions", "query_positions"), ("lookup", 0)),
}
"""Which operator's which input decides how a parameter is cut."""


EXPERT_TENSORS = {"w1": ("up", 1), "b1": ("add_up", 1), "w2": ("down", 1), "b2": ("add_down", 1)}
"""The same for the tensors of active experts, which meet the operators of a `PaddedFFN`."""


def shard(loss: NextTokenLoss, parallel: ParallelConfig) -> None:
    """Give every operator of the network and its loss its strategy, and every parameter its cut.

    Raises ConfigError for an operator or a parameter that has none here, naming its cell.
    """
    parts = _parts(parallel)
    for path, cell in loss.cells_and_names():
        for name, operator in vars(cell).items():
            if isinstance(operator, ops.Primitive) and parallel.ranks > 1:
                _place(operator, _strategy(path, cell, name, operator.name), parts)
        if parallel.recompute and isinstance(cell, Layer):
            cell.recompute()
        for name, parameter in cell.parameters_and_names(expand=False):
            cut(parameter, _axes(path, cell, name), parallel, divide=parallel.optimizer and parameter.ndim == 2)


def cut(parameter: Parameter, axes: tuple[str | int, ...], parallel: ParallelConfig, divide: bool) -> None:
    """Note on a parameter how it is cut, for the optimizer and for the plan.

    whole_shape: of all ranks together. slice_shape: what one rank holds for the network. shards: ranks that divide that slice among
    them, with its Adam state (ZeRO). replicas: ranks that hold the same numbers, the shards counted as different.
    """
    parts = [_parts(parallel)[axis] for axis in axes]
    parameter.whole_shape = tuple(parameter.shape)
    parameter.slice_shape = tuple(size // part for size, part in zip(parameter.shape, parts, strict=True))
    same = parallel.ranks // math.prod(parts)
    parameter.shards = same if divide and parameter.slice_shape[0] % same == 0 else 1
    parameter.replicas = same // parameter.shards
    parameter.parallel_optimizer = parameter.shards > 1


def _parts(parallel: ParallelConfig) -> dict[str | int, int]:
    return {
        "D": parallel.ranks // parallel.tensor,
        "T": parallel.tensor,
        "E": parallel.groups * parallel.expert,
        "G": parallel.groups,
        "P": parallel.expert,
        "R": parallel.data,
        1: 1,
    }


def _strategy(path: str, cell: nn.Cell, name: str, operator: str) -> Strategy:
    table = ROLES[path.rsplit(".", 1)[1]] if isinstance(cell, Linear) else STRATEGIES.get(type(cell), {})
    if name not in table:
        raise ConfigError(f"{path}: operator {name} ({operator}) has no strategy; add it to parallel/sharding.py")
    return table[name]


def _axes(path: str, cell: nn.Cell, name: str) -> tuple[str | int, ...]:
    """How the operator that reads the parameter cuts it."""
    if name not in PARAMETERS.get(type(cell), {}):
        raise ConfigError(f"{path}: parameter {name} has no cut; add it to parallel/sharding.py")
    operator, index = PARAMETERS[type(cell)][name]
    for part in operator.split(".")[:-1]:
        cell, path = getattr(cell, part), f"{path}.{part}"
    return _strategy(path, cell, operator.rsplit(".", 1)[-1], "")[index]


def _place(operator: ops.Primitive, strategy: Strategy, parts: dict[str | int, int]) -> None:
    if isinstance(operator, ops.Custom):
        _shard_rows(operator, strategy, parts)
    else:
        operator.shard(tuple(tuple(parts[axis] for axis in axes) for axes in strategy))


def _shard_rows(operator: ops.Custom, strategy: Strategy, parts: dict[str | int, int]) -> None:
    """An operator of ours takes layouts, of its inputs and its one output: it acts on the rows of its own rank."""
    layout = Layout((parts["D"], parts["T"]), ("D", "T"))
    inputs = tuple(layout(*("None" if axis == 1 else axis for axis in axes)) for axes in strategy)
    operator.shard(inputs, (layout("D", "None"),))
