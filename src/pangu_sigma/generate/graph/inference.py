"""The network as it is deployed: every expert's weights inside, standard operators only, any batch and sequence length.

Shape suffixes: B sequences, S tokens of the longest, T = B·S, N RRE layers, K experts stored, A experts this call uses, C capacity,
R rows of a slot.

The routing plan stays an input. It comes from the same tables and the same code as in training (`pad_to_capacity`), so an exported
graph holds no routing logic, drops no token, and multiplies only the experts that the call's tokens go to.
"""

from __future__ import annotations

import inspect
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from pangu_sigma.config import Config
from pangu_sigma.model.dense_ffn import MatMulFFN
from pangu_sigma.model.pangu_sigma import FFN_TENSORS, PanGuSigma
from pangu_sigma.rre.experts import padded_experts


class InferenceGraph(nn.Cell):
    """Logits of the next token.

    construct(rows_BS, positions_BS, documents_BS, slots_B, last_B, active_NA, order_NAC, inverse_NT) -> float32 [B, R]
        last: index into the T flattened tokens of the one whose successor is wanted, per sequence. All inputs int32.
        slots and last may as well name several positions of a sequence: a row of logits for each.
    """

    def __init__(self, config: Config, expert_weights: list[np.ndarray]):
        """expert_weights: FFN_TENSORS as arrays [K, …] per RRE layer, bottom layer first."""
        super().__init__()
        model = config.model.model_copy(update={"dropout": 0.0})  # its operator is ours, and needs a compiler
        self.network = PanGuSigma(model, config.slots, routed=padded_experts, dense=MatMulFFN)
        names = [f"experts.{i // len(FFN_TENSORS)}.{i % len(FFN_TENSORS)}" for i in range(len(expert_weights))]
        self.experts = ParameterTuple(
            [Parameter(Tensor(w), name=n, requires_grad=False) for w, n in zip(expert_weights, names, strict=True)]
        )
        self.pick = ops.Gather()

    def construct(self, rows_BS, positions_BS, documents_BS, slots_B, last_B, active_NA, order_NAC, inverse_NT):
        experts: tuple = ()
        for i in range(len(self.experts)):
            weight = self.pick(self.experts[i], active_NA[i // len(FFN_TENSORS)], 0)
            experts += (ops.expand_dims(weight, 1) if weight.ndim == 2 else weight,)  # biases
        hidden_TH = self.network(rows_BS, positions_BS, documents_BS, None, order_NAC, inverse_NT, None, *experts)
        logits_B1R = self.network.logits(self.pick(hidden_TH, last_B, 0), slots_B)
        return ops.cast(ops.squeeze(logits_B1R, 1), ms.float32)


def signature(config: Config) -> dict[str, Any]:
    """What goes into `InferenceGraph` and what comes out, as plain values: name, dtype and axes of each, and the sizes of axes that
    are fixed. All other axes are free: any size at each call."""
    arguments = list(inspect.signature(InferenceGraph.construct).parameters)[1:]
    inputs = [dict(zip(("name", "axes"), name.rsplit("_", 1), strict=True), dtype="int32") for name in arguments]
    outputs = [{"name": "logits", "axes": "BR", "dtype": "float32"}]
    fixed = {"N": max(config.model.rre_layers, 1), "R": config.model.slot_rows}
    return {"inputs": inputs, "outputs": outputs, "fixed": fixed}


def any_length(config: Config) -> tuple[Tensor, ...]:
    """Inputs of `InferenceGraph` whose batch, sequence, experts and capacity are open, for `set_inputs` and export."""
    found = signature(config)
    shapes = [[found["fixed"].get(axis) for axis in each["axes"]] for each in found["inputs"]]
    return tuple(Tensor(shape=shape, dtype=ms.int32) for shape in shapes)
