"""Names and shapes of a model's weights, in the order of the network. Pure Python, without MindSpore.

Network, expert store, checkpoints, exports, readers of other projects' files and the plan of a cluster all take them from here.
"""

from __future__ import annotations

from pangu_sigma.config import Config
from pangu_sigma.sections import ModelConfig

Shapes = dict[str, tuple[int, ...]]
"""Shape of each array, by its name."""


def ffn_shapes(hidden: int, width: int) -> Shapes:
    """Return the shapes of the tensors of an FFN with `width` inner units. Both matrices are [width, hidden]."""
    return {"w1": (width, hidden), "b1": (width,), "w2": (width, hidden), "b2": (hidden,)}


def expert_shapes(model: ModelConfig, segment: int) -> Shapes:
    """Return the shapes of one expert's tensors. segment: number of the expert's segment in its layer (a layer's FFN is the sum of
    its segments). Only segment 0 has b2, which is the output bias of the whole layer."""
    shapes = ffn_shapes(model.hidden, model.segment_ffn)
    return shapes if segment == 0 else {name: shape for name, shape in shapes.items() if name != "b2"}


def table_shapes(hidden: int, seq_length: int, rows: int) -> Shapes:
    """Return the shapes of the embedding tables: words, with `rows` rows, positions, and positions of the query layer."""
    return {"embedding": (rows, hidden), "positions": (seq_length, hidden), "query_positions": (seq_length, hidden)}


def norm_shapes(name: str, hidden: int) -> Shapes:
    """Return the shapes of the tensors of a LayerNorm with this name."""
    return {f"{name}.gain": (hidden,), f"{name}.bias": (hidden,)}


def layer_shapes(layer: int, hidden: int, width: int | None) -> Shapes:
    """Return the shapes of a layer's tensors. layer: its number. width: inner units of its FFN; None: an RRE layer, whose FFN
    consists of experts, which `stored_shapes` has."""
    path, shapes = f"layers.{layer}", norm_shapes(f"layers.{layer}.attention_norm", hidden)
    for name in ("query", "key", "value", "output"):
        shapes |= {f"{path}.attention.{name}.weight": (hidden, hidden), f"{path}.attention.{name}.bias": (hidden,)}
    shapes |= norm_shapes(f"{path}.ffn_norm", hidden)
    dense_ffn = {} if width is None else ffn_shapes(hidden, width)
    return shapes | {f"{path}.ffn.{name}": shape for name, shape in dense_ffn.items()}


ROW_ARRAYS = ("weight", "moment", "variance", "step")
"""Names of the arrays of a row of `model.rows`, in the order of a record: [U, W] float32, and the step count, int32 [U]."""
FIRST_ROW_SCALE = 0.1
"""Initial value of the scale of rows in front of a layer (our choice, and the choice of other models with such rows)."""


def row_scale_shapes(layers: int) -> Shapes:
    """Return the scale of the rows (`model.rows`) in front of each layer."""
    return {f"layers.{layer}.row_scale": (1,) for layer in range(layers)}


def dense_shapes(config: Config) -> Shapes:
    """Return the shapes of all weights but the experts': tables, layers from the bottom up (without an FFN in RRE layers), the last
    LayerNorm, and the scales of `model.rows` if there are any."""
    m = config.model
    shapes = table_shapes(m.hidden, m.seq_length, config.slots * m.slot_rows)
    for layer in range(m.layers):
        shapes |= layer_shapes(layer, m.hidden, m.ffn if layer < m.dense_layers else None)
    shapes |= norm_shapes("norm", m.hidden)
    return shapes | row_scale_shapes(m.layers) if m.rows else shapes


def stored_shapes(config: Config) -> Shapes:
    """Return the shapes of the weights of all stored experts, [experts, …], by "experts.N.TENSOR", where N counts the segments of
    all RRE layers from the bottom up."""
    shapes: Shapes = {}
    for n, kind in enumerate(config.model.routed):
        shapes_of_one = expert_shapes(config.model, config.model.in_layer(n).number)
        shapes |= {f"experts.{n}.{name}": (config.stored_experts(kind), *s) for name, s in shapes_of_one.items()}
    return shapes
