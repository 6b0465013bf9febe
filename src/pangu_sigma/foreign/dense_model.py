"""Dense PanGu-α in the files of another project: sizes, and tensors under our names and in our orientation.

Names as `PanGuSigma.parameters_and_names` has them for a configuration with `rre_layers=0`:

    embedding [V, H]   positions [S, H]   query_positions [S, H]   norm.gain [H]   norm.bias [H]
    layers.<i>.attention_norm.gain, .bias [H]   layers.<i>.ffn_norm.gain, .bias [H]
    layers.<i>.attention.query|key|value|output.weight [H in, H out], .bias [H]
    layers.<i>.ffn.w1 [F, H], .b1 [F], .w2 [F, H], .b2 [H]

The last layer is the query layer; `norm` is applied before it. A missing or unknown tensor on either side is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.file_tensors import MIXED, WholeTensor
from pangu_sigma.foreign.names import Counterpart
from pangu_sigma.model.arrays import Shapes, layer_shapes, norm_shapes, table_shapes
from pangu_sigma.sections import Activation


@dataclass(frozen=True)
class DenseModel:
    """Dense model in the files of another project.

    path: folder or file that was opened. layout: name of its layout, such as "mindspore" or "megatron".
    hidden, ffn, heads, layers, seq_length, vocabulary: sizes, as in `ModelConfig`; `layers` includes the query layer, and
    `vocabulary` is the number of rows of the embedding table. heads: None if the files do not state it.
    activation: activation of the FFN; assumed if `activation_known` is False, because the files do not state it.
    tensors: every weight, by the names of `tensor_shapes`; float32 or float16 as stored.
    made_from: tensor → "<name in the files>: <how>", where <how> is copied, transposed or joined.
    kinds: tensor → dtype in the files. unused: entry of the files that is not read as a weight → reason for that in a few words.
    """

    path: Path
    layout: str
    hidden: int
    ffn: int
    heads: int | None
    layers: int
    seq_length: int
    vocabulary: int
    activation: Activation
    activation_known: bool
    tensors: dict[str, LazyArray]
    made_from: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)


@dataclass
class Facts:
    """Properties of another project's dense model that its tensors do not show. heads: None if unknown.

    stated_sizes: sizes that the files state, to compare with the tensors: field of `DenseModel` → (name in the file, value).
    """

    heads: int | None = None
    activation: Activation = "tanh"
    activation_known: bool = False
    vocabulary: int | None = None
    stated_sizes: dict[str, tuple[str, int]] = field(default_factory=dict)


def dense_model_of(
    path: Path,
    layout: str,
    sources: Mapping[str, WholeTensor],
    rules: Mapping[str, Counterpart],
    facts: Facts,
    unused: dict[str, str],
) -> DenseModel:
    """Build a dense model from the tensors of another project's files. Raises LayoutError for a missing, unknown or wrong tensor.

    sources: tensors of the files, by name. rules: name of each tensor that the layout must have → our tensor that it becomes.
    facts: properties that the tensors do not show. unused: as in `DenseModel`; cut-off padding of the word table is added.
    """
    for name in sources:
        if name not in rules:
            raise LayoutError(f"{path}: {name[:120]} is no tensor of PanGu-α ({layout}): these are of another model")
    tensors, made_from, kinds = {}, {}, {}
    for name, rule in rules.items():
        if name not in sources:
            raise LayoutError(f"{path}: {name} is missing ({rule.ours}); take the whole release")
        source, shape = sources[name], sources[name].shape
        rows = facts.vocabulary if rule.ours == "embedding" else None
        if rows is not None and len(shape) == 2 and rows < shape[0]:  # Megatron pads the word table
            source = _first_rows(source, rows)
            unused[f"{name}, rows from {rows}"] = f"padding of the vocabulary: {shape[0]} rows"
        if rule.transposed and len(shape) != 2:
            raise LayoutError(f"{path}: {name} is of shape {shape}, and must have two axes; {MIXED}")
        tensors[rule.ours] = source.lazy_array(rule.ours, rule.transposed)
        file_count = len({part.file for part in source.parts})
        changes = [f"joined from {file_count} files"] if file_count > 1 else []
        changes += ["transposed"] if rule.transposed else []
        made_from[rule.ours] = f"{source.parts[0].name}: {', '.join(changes) or 'copied'}"
        kinds[rule.ours] = source.kind
    # the sizes of the model are read from the shapes of these tables
    words, positions, w1 = (tensors[name] for name in ("embedding", "positions", "layers.0.ffn.w1"))
    for table in (words, positions, w1):
        if len(table.shape) != 2 or 0 in table.shape:
            raise LayoutError(f"{path}: {table.origin} is of shape {table.shape}, and must be a table; it is damaged")
    model = DenseModel(
        path=path,
        layout=layout,
        hidden=words.shape[1],
        ffn=w1.shape[0],
        heads=facts.heads,
        layers=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers.")),
        seq_length=positions.shape[0],
        vocabulary=words.shape[0],
        activation=facts.activation,
        activation_known=facts.activation_known,
        tensors=tensors,
        made_from=made_from,
        kinds=kinds,
        unused=unused,
    )
    _check_sizes(model, facts)
    return model


def _first_rows(table: WholeTensor, rows: int) -> WholeTensor:
    """Return a table cut off after `rows` rows; parts that begin behind them are dropped."""
    remaining_parts = [part for part in table.parts if part.corner[0] < rows]
    parts = [replace(part, values=part.values[: rows - part.corner[0]]) for part in remaining_parts]
    return replace(table, shape=(rows, table.shape[1]), parts=parts)


def _check_sizes(model: DenseModel, facts: Facts) -> None:
    """Raise LayoutError if the shape of a tensor, the heads, or a size that the files state contradicts the model's sizes."""
    path = model.path
    if model.heads is not None and (model.heads < 1 or model.hidden % model.heads):
        raise LayoutError(f"{path}: {model.heads} heads do not divide hidden size {model.hidden}; give the right heads")
    sizes = model.hidden, model.ffn, model.layers, model.seq_length, model.vocabulary
    for name, shape in tensor_shapes(*sizes).items():
        tensor = model.tensors[name]
        if tensor.shape != shape:
            raise LayoutError(f"{path}: {tensor.origin or name} is of shape {tensor.shape}, not {shape}; {MIXED}")
    for name, (key, value) in facts.stated_sizes.items():
        if getattr(model, name) != value:
            raise LayoutError(f"{path}: its tensors have {name}={getattr(model, name)}, {key} says {value}; {MIXED}")


def tensor_shapes(hidden: int, ffn: int, layers: int, seq_length: int, vocabulary: int) -> Shapes:
    """Return the shape of every tensor of a dense model of these sizes, by this project's names."""
    shapes = table_shapes(hidden, seq_length, vocabulary)
    for layer in range(layers):
        shapes |= layer_shapes(layer, hidden, ffn)
    return shapes | norm_shapes("norm", hidden)
