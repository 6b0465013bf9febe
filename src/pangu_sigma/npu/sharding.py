"""Parallel strategies of the network's operators on many Ascend ranks: tables of them, and their application to a built network.

A strategy gives the number of slices along each axis of each input, and of the output, if the operator is ours; MindSpore puts the
collectives between operators whose strategies differ, and cuts the parameters. Symbols stand for the numbers:

    D  ranks that see different tokens (groups · expert · data)        T  tensor ranks; both of one stage
    E  groups · expert: ranks that store different experts             1  not cut
    G  groups        P  expert        R  data

Tensor parallelism is PanGu-α's: Q, K, V and FFN-up by columns, attention output and FFN-down by rows, so two AllReduces a layer.
Rows of logits are divided over the tensor ranks as well: no vocabulary is cut, and the softmax stays inside a rank.

Every operator of a cell in the table must have a strategy, and every cell with operators must be in it: an operator that is new in
the network is an error here, before MindSpore would guess.
"""

from __future__ import annotations

from mindspore import Parameter, nn, ops
from mindspore.parallel import Layout as DeviceLayout

from ascend_ops.adam_worker import FetchStored
from ascend_ops.expert_dispatch import Gather, GatherAdd
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.model import pangu_sigma as model
from pangu_sigma.model.dense_ffn import MatMulFFN
from pangu_sigma.model.rowwise import LayerNorm
from pangu_sigma.npu import dropless, exchange
from pangu_sigma.npu.active_experts import ActiveExperts, FetchExperts
from pangu_sigma.npu.cuts import active_buffers, dense_weights
from pangu_sigma.ranks.layout import layers_of_stage
from pangu_sigma.rre.experts import PaddedFFN
from pangu_sigma.sections import ParallelConfig

Strategy = tuple[tuple[str | int, ...], ...]

EXPERT_TENSORS: Strategy = (("E", "T", 1), ("E", 1, "T"), ("E", "T", 1), ("E", 1, 1))
"""How ranks divide the tensors of the active experts of a segment."""


def _erf(*axes: str) -> dict[str, Strategy]:
    """Return the strategies of the operators that an `ActivatedFFN` with erf has beside `activate`."""
    return {"scale": (axes, ()), "halve": (axes, ()), "gate": (axes, axes)}


STRATEGIES: dict[type[nn.Cell], dict[str, Strategy]] = {
    model.Attention: {
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
        **_erf("D", "T"),
        "down": (("D", "T"), ("T", 1)),
        "add_down": (("D", 1), (1,)),
    },
    PaddedFFN: {
        "up": (("E", "R", 1), ("E", "T", 1)),
        "add_up": (("E", "R", "T"), ("E", 1, "T")),
        "activate": (("E", "R", "T"),),
        **_erf("E", "R", "T"),
        "down": (("E", "R", "T"), ("E", "T", 1)),
        "add_down": (("E", "R", 1), ("E", 1, 1)),
    },
    model.DenseFFN: {"add": (("D", 1), ("D", 1))},
    model.RoutedFFN: {},
    model.ExpertFFN: {},
    model.Layer: {"add": (("D", 1), ("D", 1))},
    model.AddRows: {"multiply": (("D", 1), (1,)), "add": (("D", 1), ("D", 1))},
    model.AttentionMask: {
        "expand_queries": (("D", 1),),
        "expand_keys": (("D", 1),),
        "differ": (("D", 1, 1), ("D", 1, 1)),
        "either": (("D", 1, 1), (1, 1, 1)),
        "multiply": (("D", 1, 1), ()),
        "expand_heads": (("D", 1, 1),),
    },
    Gather: {"gather": (("D", 1), ("D",), ("D", 1))},
    GatherAdd: {"gather": (("D", 1), ("D",), ("D", 1)), "gather_add": (("D", 1), ("D",), ("D", 1), ("D", 1))},
    exchange.CompactedDispatch: {
        "pack": (("G", "P", "R", 1, 1, 1, "T"),),
        "arrange": (("G", "P", 1, "R", 1, 1, "T"),),
        "line_up": (("G", "P", "R", 1, 1, "T"),),
    },
    exchange.CompactedCombine: {
        "separate": (("G", "P", 1, "R", 1, "T"),),
        "unarrange": (("G", "P", "R", 1, 1, 1, "T"),),
        "unpack": (("G", 1, "P", "R", 1, 1, "T"),),
    },
    exchange.ColumnGather: {"gather": (("D", "T"), ("D",), ("D", "T"))},
    dropless.DroplessDispatch: {"morph": (("D", "T"), *[("D",)] * 6, ("D", "T"))},
    dropless.DroplessFFN: {
        "morph": (("D", 1), ("E", "T", 1), ("E", 1, "T"), ("E", "T", 1), ("D",), ("E", 1, 1), ("D", 1)),
        "morph_further": (("D", 1), ("E", "T", 1), ("E", 1, "T"), ("E", "T", 1), ("D",), ("D", 1)),
    },
    dropless.DroplessCombine: {"morph": (("D", "T"), *[("D",)] * 6, ("D", "T")), "add": (("D", 1), ("D", 1))},
    model.Embedding: {
        "lookup": ((1, "T"), ("D",)),
        "lookup_positions": ((1, "T"), ("D",)),
        "add": (("D", "T"), ("D", "T")),
    },
    model.QueryEmbedding: {"lookup": ((1, "T"), ("D",))},
    model.Head: {"pick_slots": ((1, 1, "T"), ("D",)), "matmul": (("D", "T", 1), ("D", 1, 1))},
    model.NextTokenLoss: {
        "log_softmax": (("D", "T", 1),),
        "pick": (("D", "T", 1), ("D", "T", 1)),
        "weigh": (("D", "T", 1), ("D", "T", 1)),
        "sum_tokens": (("D", "T", 1),),
        "negate": (("D",),),
    },
    FetchExperts: {name: (cut, ()) for name, cut in zip(model.FFN_TENSORS, EXPERT_TENSORS, strict=True)},
    ActiveExperts: {"multiply": (("D",), (1,))},
}
"""Strategy of each operator of each cell, by the name of the attribute that holds it."""

_BY_COLUMNS: dict[str, Strategy] = {"matmul": (("D", 1), (1, "T")), "add": (("D", "T"), ("T",))}
ROLES: dict[str, dict[str, Strategy]] = {
    **dict.fromkeys(("query", "key", "value"), _BY_COLUMNS),
    "output": {"matmul": (("D", "T"), ("T", 1)), "add": (("D", 1), (1,))},
}
"""Strategies of the four `Linear`s of an `Attention`: three are cut by columns (their output), one by rows (its input)."""


def apply_strategies(network: ActiveExperts, config: Config, own_stage: int) -> None:
    """Set MindSpore's parallel strategy of every operator of the network and its loss. Mark how ranks cut every parameter, and the
    pipeline stage of every cell. own_stage: pipeline stage of this rank, which fetches experts of this stage only.

    Raises ConfigError for an operator without an entry in the tables; the message names its cell."""
    parallel = config.parallel
    sizes = _sizes(parallel)
    for path, cell in network.cells_and_names():
        if ".local" in path:
            continue  # inside a Morph, an operator with a strategy of its own: MindSpore looks no further
        # on one rank MindSpore finds strategies itself, but not for an operator that takes tuples, as the fetch of experts does
        is_fetch = isinstance(cell, FetchStored)
        for name, operator in vars(cell).items():
            if isinstance(operator, ops.Primitive) and (parallel.ranks > 1 or is_fetch):
                outputs = cell.tensors + 1 if is_fetch else 1  # the weights, and the token
                _apply(operator, _strategy(path, cell, name, operator.name), sizes, outputs)
        if parallel.recompute and isinstance(cell, model.Layer):
            cell.recompute()
    mark_parameters(network, config)
    if parallel.stages > 1:
        for stage in range(parallel.stages):
            for cell in cells_of_stage(network.loss.network, config, stage):
                cell.pipeline_stage = stage
        network.fetch.pipeline_stage = own_stage


def mark_parameters(network: ActiveExperts, config: Config) -> None:
    """Set two attributes of each parameter: `cut`, the `Array` that says how ranks divide it, and MindSpore's `parallel_optimizer`,
    True if optimizer parallelism divides it."""
    stages = range(config.parallel.stages)
    cuts = {a.name: a for s in stages for a in (*dense_weights(config, s), *active_buffers(config, s))}
    for name, parameter in (*network.loss.network.parameters_and_names(), *((p.name, p) for p in network.active)):
        parameter.cut = cuts[name]
        parameter.parallel_optimizer = parameter.cut.divided


def cells_of_stage(network: model.PanGuSigma, config: Config, stage: int) -> list[nn.Cell]:
    """Return the cells that run on the ranks of a pipeline stage.

    Operators outside of these cells run on the stages of their inputs; the attention mask, which has no input from another stage,
    is made on all stages. The cells are parts of layers and never whole layers, because MindSpore 2.9 fails if a tensor that a
    stage receives goes into a cell with an operator whose gradient rule is ours.
    """
    cells: list[nn.Cell] = [network.embed] if stage == 0 else []
    for layer in (network.layers[i] for i in layers_of_stage(config, stage)):
        cells += [layer.add_rows] if config.model.rows else []
        cells += [layer.attention_norm, layer.attention, layer.ffn_norm, layer.ffn]
    return [*cells, network.norm, network.ask, network.head] if stage == config.parallel.stages - 1 else cells


def parameters_of_stage(network: model.PanGuSigma, config: Config, stage: int) -> list[Parameter]:
    """Return the dense parameters that the ranks of a stage keep and update, in the network's order."""
    names = {weight.name for weight in dense_weights(config, stage)}
    return [parameter for name, parameter in network.parameters_and_names() if name in names]


def received_by_stage(network: model.PanGuSigma, config: Config, stage: int) -> list[Parameter]:
    """Return the parameters that a pipeline stage reads and another stage keeps: the word table on the last stage. The last stage
    receives it from the first in every step for the output head, and sends its gradient back to be added."""
    return [network.embedding] if 0 < stage == config.parallel.stages - 1 else []


def _sizes(p: ParallelConfig) -> dict[str | int, int]:
    """Return the number that each symbol of a strategy stands for. p: section `parallel`."""
    sizes: dict[str | int, int] = {"D": p.stage_ranks // p.tensor, "T": p.tensor, "E": p.groups * p.expert}
    return sizes | {"G": p.groups, "P": p.expert, "R": p.data, 1: 1}


def _strategy(path: str, cell: nn.Cell, name: str, operator: str) -> Strategy:
    """Return the strategy of one operator of a cell. Raises ConfigError if the tables have none.

    path: the cell's name in the network. name: the cell's attribute that holds the operator. operator: MindSpore's name of it.
    A strategy has the cuts of the operator's inputs; for an operator of ours the cuts of its outputs follow."""
    if isinstance(cell, FetchStored):  # it has a varying number of tensors, and so no entry in the tables
        tensors = EXPERT_TENSORS[: cell.tensors]
        inputs: Strategy = ((1,), *tensors, (1,), (1,))  # active, like, token, at
        return (*inputs, *tensors, (1,))  # and the outputs: rows, token
    table = ROLES[path.rsplit(".", 1)[1]] if isinstance(cell, model.Linear) else STRATEGIES.get(type(cell), {})
    if name not in table:
        raise ConfigError(f"{path}: operator {name} ({operator}) has no strategy; add it to npu/sharding.py")
    return table[name]


def _apply(operator: ops.Primitive, strategy: Strategy, sizes: dict[str | int, int], outputs: int) -> None:
    """Set the strategy of an operator. strategy: symbols of the axes of each input, then, if the operator is ours, of each output.
    sizes: number of slices that each symbol stands for. outputs: number of outputs."""
    if not isinstance(operator, ops.Custom | ops.Morph):
        operator.shard(tuple(tuple(sizes[axis] for axis in axes) for axes in strategy))
        return
    # our operators compute with the slices of their own rank: MindSpore takes layouts of devices for them, not numbers of slices
    devices = DeviceLayout((sizes["E"], sizes["R"], sizes["T"]), ("E", "R", "T"))
    device_axes = {"D": ("E", "R"), 1: "None"}
    layouts = tuple(devices(*(device_axes.get(axis, axis) for axis in axes)) for axes in strategy)
    operator.shard(layouts[:-outputs], layouts[-outputs:])
