"""Dense PanGu-α in the files of another project: sizes, and tensors under our names and in our orientation.

The names are those of `PanGuSigma.parameters_and_names` for a configuration with `rre_layers=0`:

    embedding [V, H]   positions [S, H]   query_positions [S, H]   norm.gain [H]   norm.bias [H]
    layers.<i>.attention_norm.gain, .bias [H]   layers.<i>.ffn_norm.gain, .bias [H]
    layers.<i>.attention.query|key|value|output.weight [H in, H out], .bias [H]
    layers.<i>.ffn.w1 [F, H], .b1 [F], .w2 [F, H], .b2 [H]

The last layer is the query layer; `norm` is applied before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.errors import UserError
from pangu_sigma.model.arrays import Shapes, layer_shapes, norm_shapes, table_shapes
from pangu_sigma.sections import Activation

MIXED = "the files are not of one model"
"""Reason in the messages of files that contradict each other."""


class LayoutError(UserError, ValueError):
    """Error of a folder or file of weights that cannot be used; the message names the tensor or file, the problem and the fix."""


@dataclass(frozen=True)
class Unused:
    """Entry of a file of weights that is not read as a weight, and the reason for that in a few words."""

    name: str
    reason: str


@dataclass(frozen=True)
class DenseModel:
    """Dense model in the files of another project.

    path: folder or file that was opened. layout: name of its layout, such as "mindspore" or "megatron".
    hidden, ffn, heads, layers, seq_length, vocabulary: sizes, as in `ModelConfig`; `layers` includes the query layer, and
    `vocabulary` is the number of rows of the embedding table. heads: None if the files do not state it.
    activation: activation of the FFN; assumed if `activation_known` is False, because the files do not state it.
    tensors: every weight, by the names of `tensor_shapes`; float32 or float16 as stored.
    made_from: tensor → "<name in the files>: <how>", where <how> is copied, transposed or joined.
    kinds: tensor → dtype in the files. unused: entries of the files that are no weights.
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
    unused: list[Unused] = field(default_factory=list)


def tensor_shapes(hidden: int, ffn: int, layers: int, seq_length: int, vocabulary: int) -> Shapes:
    """Return the shape of every tensor of a dense model of these sizes, by this project's names."""
    shapes = table_shapes(hidden, seq_length, vocabulary)
    for layer in range(layers):
        shapes |= layer_shapes(layer, hidden, ffn)
    return shapes | norm_shapes("norm", hidden)
