"""How ranks divide the arrays of the training state (weights, Adam state): the rows and columns of each that a rank has. Pure
Python. Names, shapes and order are the core's (model/arrays.py).

* Tensor parallelism as in Megatron and PanGu-α: query, key, value and the first FFN matrix are divided by columns, with their
  biases; attention output and the second FFN matrix by rows; tables by hidden. LayerNorm and the biases that are added after the
  sum over ranks are whole on every rank. `npu/sharding.py` says the same to MindSpore, by the cuts of operators;
  compiled steps are compared with it (tests/npu/plan/test_compile.py).
* Optimizer parallelism (ZeRO) as MindSpore does it: ranks that compute with the same slice of a matrix each keep some of its rows,
  if they divide evenly. Otherwise each keeps the whole slice. Vectors are never divided.
* Own experts are divided among groups and expert ranks; common ones among the expert ranks of each group, which has a copy of all;
  each expert is divided among tensor ranks along the ffn axis.
* A stage has the arrays of its layers. The first stage has the word table, undivided, because it is sent to the last stage.

Common arguments. stage: the pipeline stage; without stages, 0. Layers and experts keep their numbers of the whole model.
alike: True to return one array for each kind of layer, whose `count` is the number of such layers; it is enough for sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from pangu_sigma.config import Config
from pangu_sigma.model.arrays import Shapes, expert_shapes, layer_shapes, norm_shapes, table_shapes
from pangu_sigma.ranks.layout import active_entries, active_in_group, layers_of_stage, rre_layers_of_stage

Shape = tuple[int, ...]
_TABLES = tuple(table_shapes(1, 1, 1))

NPU, HOST = "Ascend", "CPU"
"""Names of the devices in MindSpore."""

ITEM_SIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4}
"""Bytes of an element, by dtype."""


@dataclass(frozen=True)
class Array:
    """Weight, Adam state or gradient accumulator of a training run, with its shape in the whole model and on one rank.

    computed: shape that the rank computes with: its slice under tensor and expert parallelism. kept: shape that the rank keeps
        between steps: its rows of `computed` under optimizer parallelism.
    replicas: number of ranks that compute with the same slice. copies: number of slices with the same values: of common
        experts, of which each group has a copy.
    used_as: dtype in which the network reads the array: float32 for tables and LayerNorm, else the compute dtype. Copies, gathered
        slices and gradients that are summed over ranks have this dtype.
    count: number of arrays that this one represents: with the argument `alike`, of all layers of its kind; else 1.
    """

    name: str
    kind: Literal["weight", "moment", "variance", "step", "accumulator"]
    shape: Shape
    computed: Shape
    kept: Shape
    replicas: int
    dtype: str
    used_as: str
    device: str
    copies: int = 1
    count: int = 1

    @property
    def divided(self) -> bool:
        """True if the ranks that have this same slice divide it among them (ZeRO), so that each keeps some of its rows."""
        return self.kept != self.computed

    @property
    def nbytes(self) -> int:
        """Bytes of the slice that the rank keeps."""
        return math.prod(self.kept) * ITEM_SIZE[self.dtype]

    @property
    def used_nbytes(self) -> int:
        """Bytes of the slice that the rank computes with, in the dtype in which the network reads it."""
        return math.prod(self.computed) * ITEM_SIZE[self.used_as]


def all_arrays(config: Config, stage: int = 0, alike: bool = False) -> list[Array]:
    """Return the weights and Adam state of a stage, dense parameters first. alike: True for one array per kind of layer."""
    dense = dense_weights(config, stage, alike)
    return [*dense, *_moments(dense, "float32"), *expert_arrays(config, stage, alike)]


def dense_weights(config: Config, stage: int = 0, alike: bool = False) -> list[Array]:
    """Return the weights of a stage except experts, tables first: float32, on the NPU. alike: one array per kind of layer."""
    layers = layers_of_stage(config, stage)
    layer_counts = [(layer, 1) for layer in layers]
    if alike:  # the first layer represents all dense layers, the last one all RRE layers; there may be 0 of a kind
        routed = len(rre_layers_of_stage(config, stage))
        layer_counts = [(layers[0], len(layers) - routed), (layers[-1], routed)]
    m, shapes = config.model, [(1, _tables(config, stage))]  # with each dictionary of shapes, how many it represents
    for layer, count in layer_counts:
        shapes.append((count, layer_shapes(layer, m.hidden, m.ffn if layer < m.dense_layers else None)))
        shapes.append((count if m.rows else 0, {f"layers.{layer}.row_scale": (1,)}))
    if stage == config.parallel.stages - 1:
        shapes.append((1, norm_shapes("norm", m.hidden)))
    return [_dense_array(config, n, name, shape) for n, arrays in shapes if n for name, shape in arrays.items()]


def expert_arrays(config: Config, stage: int = 0, alike: bool = False) -> list[Array]:
    """Return weights and Adam state of the experts that a rank stores: on its host with ECSS, on the NPU without. The first axis
    counts experts. Moments have the dtype `ecss.moments` on the host, float32 on the NPU. alike: see `all_arrays`."""
    device = HOST if config.ecss.enabled else NPU
    moments = config.ecss.moments if config.ecss.enabled else "float32"
    layers = rre_layers_of_stage(config, stage)
    count = len(layers) if alike else 1  # with `alike`, the arrays of the first layer represent all layers
    arrays = []
    for layer in layers[:1] if alike else layers:
        for segment_of_layer, segment in enumerate(config.model.segments_of(layer)):
            experts = config.stored_experts(config.model.routed[segment])
            for name, shape in expert_shapes(config.model, segment_of_layer).items():
                weight = _expert_array(config, count, segment, name, (experts, *shape), device)
                arrays += [weight, *_moments([weight], moments)]
            step = _expert_array(config, count, segment, "step", (experts,), device)
            arrays.append(replace(step, kind="step", dtype="int32"))
    return arrays


def _moments(weights: list[Array], dtype: str) -> list[Array]:
    """Return Adam's first moments of the weights, then the second ones."""
    kinds: tuple[Literal["moment", "variance"], ...] = ("moment", "variance")
    return [replace(a, name=f"{a.name}.{kind}", kind=kind, dtype=dtype) for kind in kinds for a in weights]


def active_buffers(config: Config, stage: int = 0, alike: bool = False) -> list[Array]:
    """Return the placeholder parameters of a stage's active experts (ECSS), in the network's argument order; biases are [experts,
    1, …]. They are on the host and take no memory: their gradients are on the NPU, and the weights come there as values."""
    buffers = []
    for weight in expert_arrays(config, stage, alike):
        if config.ecss.enabled and weight.kind == "weight":
            entries = active_entries(config, config.model.routed[int(weight.name.split(".")[1])])
            bias_axis = (1,) if len(weight.shape) == 2 else ()
            # common experts, too, have entries for each group: ranks of different groups compute with slices of their own
            count = config.parallel.groups * config.parallel.expert * entries
            shape, computed = (count, *bias_axis, *weight.shape[1:]), (entries, *bias_axis, *weight.computed[1:])
            buffer = replace(weight, shape=shape, computed=computed, kept=computed, dtype=weight.used_as, device=HOST)
            buffers.append(replace(buffer, name=weight.name.replace("experts", "active", 1)))
    return buffers


def accumulator_arrays(config: Config, stage: int = 0, alike: bool = False) -> list[Array]:
    """Return the arrays that accumulate gradients of micro-batches, if an update has several: one for each dense weight and each
    active expert's tensor of a stage, in its dtype, and on the last stage one for the word table that it receives. The shape is
    `computed`, because ZeRO does not divide accumulators. alike: True for one array per kind of layer."""
    if config.train.accumulation == 1:
        return []
    weights = [*dense_weights(config, stage, alike), *active_buffers(config, stage, alike)]
    if 0 < stage == config.parallel.stages - 1:
        weights.append(word_table(config))
    return [replace(a, name=f"{a.name}.accumulated", kind="accumulator", kept=a.computed, device=NPU) for a in weights]


def arrays_of_step(config: Config, stage: int) -> list[Array]:
    """Return all arrays that a rank has in a step: weights, Adam state, buffers of the active experts, gradient accumulators."""
    return [*all_arrays(config, stage), *active_buffers(config, stage), *accumulator_arrays(config, stage)]


def active_elements(config: Config, stage: int = 0) -> int:
    """Return the largest number of elements of active experts' weights that a rank computes with in a step."""
    layer_elements = 0
    for segment_of_layer, kind in enumerate(config.model.segments):
        experts = active_in_group(config, kind) // config.parallel.expert
        for name, shape in expert_shapes(config.model, segment_of_layer).items():
            layer_elements += experts * math.prod(_divide(shape, tensor_axis(name), config.parallel.tensor))
    return layer_elements * len(rre_layers_of_stage(config, stage))


def only_micro_batches_sum(config: Config) -> bool:
    """Return True if gradients of experts are summed over micro-batches, but neither over ranks nor over stages. MindSpore 2.9 then
    returns the sums only behind a standard operator, so the Ascend step has one (npu/active_experts.py)."""
    return config.train.accumulation > 1 and config.parallel.stages == config.parallel.data == 1


def word_table(config: Config) -> Array:
    """Return the word table, which the first stage keeps."""
    return _dense_array(config, 1, "embedding", _tables(config, 0)["embedding"])


TENSOR_AXES = {
    **dict.fromkeys(("embedding", "positions", "query_positions"), 1),
    **{f"attention.{name}.weight": 1 for name in ("query", "key", "value")},
    **{f"attention.{name}.bias": 0 for name in ("query", "key", "value")},
    **{"attention.output.weight": 0, **{f"{ffn}{name}": 0 for ffn in ("", "ffn.") for name in ("w1", "b1", "w2")}},
}
"""Axis that tensor parallelism divides, by the name of the array in its layer or in its expert; other arrays are whole."""


def tensor_axis(name: str) -> int | None:
    """Return the axis that tensor parallelism divides; None for no axis. name: name of a dense weight, or of a tensor in its
    expert."""
    return TENSOR_AXES.get(name.split(".", 2)[2] if name.startswith("layers.") else name)


def _tables(config: Config, stage: int) -> Shapes:
    """Return the tables of a stage: words and positions on the first one, the query layer's positions on the last one."""
    m, names = config.model, ["embedding", "positions"] if stage == 0 else []
    if stage == config.parallel.stages - 1:
        names += ["query_positions"]
    shapes = table_shapes(m.hidden, m.seq_length, config.slots * m.slot_rows)
    return {name: shape for name, shape in shapes.items() if name in names}


def _dense_array(config: Config, count: int, name: str, shape: Shape) -> Array:
    """Return the array of a dense weight with its slice on a rank. count: number of layers that it represents.

    A rank computes with its slice by tensor parallelism, and keeps a part of its rows if parallel.optimizer divides them over the
    ranks with equal slices (replicas)."""
    parallel, axis = config.parallel, tensor_axis(name)
    used_as = "float32" if "norm." in name or name in _TABLES else config.train.compute_dtype
    computed = _divide(shape, axis, parallel.tensor)
    replicas = parallel.stage_ranks if axis is None else parallel.stage_ranks // parallel.tensor
    is_sent = name == "embedding" and parallel.stages > 1  # to the last stage, whole
    is_divided = parallel.optimizer and len(shape) == 2 and computed[0] % replicas == 0 and not is_sent
    kept = _divide(computed, 0, replicas) if is_divided else computed
    return Array(name, "weight", shape, computed, kept, replicas, "float32", used_as, NPU, count=count)


def _expert_array(config: Config, count: int, segment: int, name: str, shape: Shape, device: str) -> Array:
    """Return a weight of all experts of a segment with its slice on a rank. count: number of layers that it represents. name: name
    of the tensor in an expert. shape: of all experts together, whose number is the first axis."""
    parallel, is_own, axis = config.parallel, config.model.routed[segment] == "own", tensor_axis(name)
    # groups divide the domains' own experts; each group has a copy of all common experts
    stored_shape = _divide(shape, 0, parallel.expert * (parallel.groups if is_own else 1))
    computed = _divide(stored_shape, None if axis is None else axis + 1, parallel.tensor)
    copies = 1 if is_own else parallel.groups
    replicas = parallel.data * (parallel.tensor if axis is None else 1) * copies
    used_as, name = config.train.compute_dtype, f"experts.{segment}.{name}"
    return Array(name, "weight", shape, computed, computed, replicas, "float32", used_as, device, copies, count)


def _divide(shape: Shape, axis: int | None, parts: int) -> Shape:
    """Return the shape of one of `parts` equal parts along an axis; the whole shape if `axis` is None."""
    if axis is None:
        return shape
    return (*shape[:axis], shape[axis] // parts, *shape[axis + 1 :])
