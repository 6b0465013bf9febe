"""MindSpore operators of the C++ kernels of `cpu/`; they run on the host, on any device target."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import ops

from ascend_ops.library import cpu_library


def host_op(function: str, shapes: Callable, dtypes: Callable, bprop: Callable | None = None) -> ops.Custom:
    """Return an operator that calls `function` of the CPU library, pinned to the host.

    shapes, dtypes: functions that compute the outputs' shapes, and dtypes, from those of the inputs. bprop: gradient rule.

    MindSpore decides at construction whether an aot operator is a CPU function or an aclnn name, by the device target of that
    moment; a host operator inside an Ascend graph is therefore constructed with the target set to CPU for an instant.
    """
    target = ms.get_context("device_target")
    if target != "CPU":
        ms.set_context(device_target="CPU")
    try:
        op = ops.Custom(f"{cpu_library()}:{function}", shapes, dtypes, func_type="aot", bprop=bprop)
    finally:
        if target != "CPU":
            ms.set_context(device_target=target)
    op.set_device("CPU")
    return op
