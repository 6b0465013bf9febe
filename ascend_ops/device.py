"""Operators with two implementations: a C++ kernel of `cpu/` on the CPU, the Ascend C operator of the same name on Ascend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
from mindspore import ops
from mindspore.communication import get_group_size
from mindspore.ops import CustomRegOp, DataType
from mindspore.parallel import Layout

from ascend_ops.host import host_op

_ROWS = (DataType.F32_Default, DataType.F16_Default, DataType.BF16_Default)
"""Row dtypes that the Ascend C operators are built for; 910A has no bfloat16 and refuses it when the operator runs."""


@dataclass(frozen=True)
class Signature:
    """Declaration of an operator. inputs, outputs: number of axes of each argument, by its name in `op_host/`. rows: names of the
    arguments that have a float dtype; all others are int32."""

    name: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    rows: tuple[str, ...]


def device_op(signature: Signature, shapes: Callable, dtypes: Callable) -> ops.Custom:
    """Return the operator for the current device target, so set the target first. shapes, dtypes: functions that compute the
    shapes, and the dtypes, of the outputs from those of the inputs.
    """
    if ms.get_context("device_target") == "CPU":
        return host_op(signature.name, shapes, dtypes)
    op = ops.Custom(f"aclnn{signature.name}", shapes, dtypes, func_type="aot", reg_info=_registration(signature))
    if ms.get_auto_parallel_context("parallel_mode") in ("semi_auto_parallel", "auto_parallel"):
        _keep_to_own_rows(op, signature)
    return op


def _registration(signature: Signature) -> dict:
    """Return an Ascend operator's registration in MindSpore, with which a graph compiles where the operator is not installed."""
    info = CustomRegOp(signature.name)
    for i, name in enumerate(signature.inputs):
        info = info.input(i, name, "required")
    for i, name in enumerate(signature.outputs):
        info = info.output(i, name, "required")
    names = [*signature.inputs, *signature.outputs]
    for dtype in _ROWS:
        info = info.dtype_format(*(dtype if name in signature.rows else DataType.I32_Default for name in names))
    return info.target("Ascend").get_op_info()


def _keep_to_own_rows(op: ops.Custom, signature: Signature) -> None:
    """Declare the layouts of the operator for auto-parallel: it reads and writes its own rank's rows, without communication."""
    layout = Layout((get_group_size(),), ("rank",))

    def whole(axes: int) -> Layout:
        return layout(*("None",) * axes)

    op.shard(tuple(map(whole, signature.inputs.values())), tuple(map(whole, signature.outputs.values())))
