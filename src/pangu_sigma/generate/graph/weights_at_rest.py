"""Weights of an exported graph in float32, float16, or int8 with a scale per row; sums are float32 in all three.

The matrices of attention, dense FFNs and experts, and the embedding table have this precision. A row is a stored row: an
input of a linear layer [in, out], an inner unit of an FFN [F, H], a token of the embedding table. Biases, LayerNorm and positions
are float32.

Where possible, the scales multiply the activations, which have fewer rows, instead of the weights: the cells here replace matrix
products of a built network, with the same result.

Shape suffixes: T tokens, H hidden, K experts stored, F ffn, A blocks of the routing plan.
"""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops
from mindspore.common import dtype as mstype
from mindspore.ops import functional as F

from ascend_ops.few_rows import StoredPrecision
from pangu_sigma.config import Config
from pangu_sigma.generate.graph.constants import fixed_parameter
from pangu_sigma.generate.weights import Weights
from pangu_sigma.model.arrays import expert_shapes
from pangu_sigma.model.pangu_sigma import DenseFFN, Embedding, Linear, PanGuSigma
from pangu_sigma.stored.export import SCALE_ENDING

_MATRICES = ("weight", "w1", "w2", "embedding")
_LARGEST_INT8 = 127


def rows_in_int8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize weight matrices [..., rows, columns] to int8, with a scale for each row [..., rows]: values ≈ int8 · scale."""
    largest = np.abs(values).max(axis=-1)
    scale = np.where(largest > 0, largest / _LARGEST_INT8, 1).astype(np.float32)
    return np.rint(values / scale[..., None]).astype(np.int8), scale


def keep(network: PanGuSigma, weights: Weights, at_rest: StoredPrecision) -> None:
    """Replace the dense weights of a network by `weights` in the precision `at_rest`, in which the exported graph stores them. In
    int8 also replace the products with these weights by cells that multiply by the scales. The network must not have run before."""
    scales: dict[str, Parameter] = {}  # by the name of the scale; empty unless at_rest is int8
    for name, cell in list(network.cells_and_names()):
        for attribute, old in list(cell._params.items()):
            if old.requires_grad:  # a weight, and not a constant
                values = weights.tensor(f"{name}.{attribute}" if name else attribute)
                precision: StoredPrecision = at_rest if attribute in _MATRICES else "float32"
                parameter, *scale = _at_rest(old.name, values, precision)
                setattr(cell, attribute, parameter)
                scales |= {row_scale.name: row_scale for row_scale in scale}
        if isinstance(cell, Linear) and scales:
            cell.matmul = _ScaledInputs(cell.matmul, scales[f"{cell.weight.name}{SCALE_ENDING}"])
        if isinstance(cell, DenseFFN) and scales:
            cell.ffn.up = _ScaledOutputs(cell.ffn.up, scales[f"{cell.w1.name}{SCALE_ENDING}"])
            cell.ffn.down = _ScaledInputs(cell.ffn.down, scales[f"{cell.w2.name}{SCALE_ENDING}"])
    if scales:
        word_scale = scales[f"{network.embedding.name}{SCALE_ENDING}"]
        network.embed = _ScaledEmbedding(word_scale)
        network.head.matmul = _ScaledOutputs(network.head.matmul, word_scale)
    for name, scale in scales.items():
        scale.name = name  # assignment to a cell has renamed it


class KeptExperts(nn.Cell):
    """Expert weights of an exported graph, stored in float32, float16 or int8."""

    def __init__(self, config: Config, weights: Weights, at_rest: StoredPrecision):
        """Stack the weights of the experts of each segment, in the precision `at_rest`. int8 matrices get scales."""
        super().__init__()
        tensors: list[Parameter] = []
        scales: list[Parameter] = []
        self.sizes: tuple[int, ...] = ()  # number of tensors of each segment
        for n, kind in enumerate(config.model.routed):
            names = expert_shapes(config.model, config.model.in_layer(n).number)
            for name in names:
                values = np.stack([weights.expert(n, number, name) for number in range(config.stored_experts(kind))])
                precision: StoredPrecision = at_rest if name in _MATRICES else "float32"
                parameter, *scale = _at_rest(f"{n}.{name}", values, precision)
                tensors.append(parameter)
                scales += scale
            self.sizes += (len(names),)
        self.tensors, self.scales = ParameterTuple(tensors), ParameterTuple(scales)
        self.pick = ops.Gather()

    def construct(self, active_NA):
        """Return for each segment w1, b1, w2 and b2 of the experts `active_NA` of its A blocks, float32 [A, F, H], [A, 1, F],
        [A, F, H], [A, 1, H]. A segment that is not the first of its RRE layer has no b2."""
        weights: tuple = ()
        first = matrices = 0  # number of the segment's first tensor, and of the matrices so far
        for n in range(len(self.sizes)):
            active_A = active_NA[n]
            segment_weights: tuple = ()
            for i in range(first, first + self.sizes[n]):
                weight = F.cast(self.pick(self.tensors[i], active_A, 0), mstype.float32)
                if weight.ndim == 2:  # a bias
                    weight = F.expand_dims(weight, 1)
                elif len(self.scales) > 0:  # a matrix in int8
                    weight = weight * F.expand_dims(self.pick(self.scales[matrices], active_A, 0), 2)
                    matrices += 1
                segment_weights += (weight,)
            first += self.sizes[n]
            weights += (segment_weights,)
        return weights


class _ScaledInputs(nn.Cell):
    """Matrix product x · (w · scale), with a scale for each row of w that is summed over."""

    def __init__(self, matmul: ops.Primitive, scale: Parameter):
        super().__init__()
        self.matmul, self.scale = matmul, scale

    def construct(self, x, w):
        return self.matmul(x * self.scale, w)


class _ScaledOutputs(nn.Cell):
    """Matrix product x · (w · scale)ᵀ."""

    def __init__(self, matmul: ops.Primitive, scale: Parameter):
        super().__init__()
        self.matmul, self.scale = matmul, scale

    def construct(self, x, w):
        return self.matmul(x, w) * self.scale


class _ScaledEmbedding(Embedding):
    """Sum of a scaled row of the embedding table and a row of the position table."""

    def __init__(self, scale: Parameter):
        super().__init__()
        self.scale = scale
        self.lookup_scale = ops.Gather()

    def construct(self, words, positions_SH, rows_T, positions_T):
        words_TH = F.cast(self.lookup(words, rows_T, 0), mstype.float32)
        words_TH = words_TH * F.expand_dims(self.lookup_scale(self.scale, rows_T, 0), 1)
        return self.add(words_TH, self.lookup_positions(positions_SH, positions_T, 0))


def _at_rest(name: str, values: np.ndarray, at_rest: StoredPrecision) -> list[Parameter]:
    """Make the parameter of these values in the precision `at_rest`, and after it for int8 the parameter of their scales."""
    if at_rest != "int8":
        return [fixed_parameter(name, values, np.dtype(at_rest))]
    rounded, scale = rows_in_int8(values)
    return [fixed_parameter(name, rounded, np.int8), fixed_parameter(f"{name}{SCALE_ENDING}", scale, np.float32)]
