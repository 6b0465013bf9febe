"""The Ascend C operators on a device, through MindSpore: the only test that proves them. Skipped, with the reason, anywhere else.

source <CANN>/set_env.sh, build.sh, install.sh and its two export lines, then: pytest tests/device
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

KINDS = ("float32", "float16", "bfloat16")


@pytest.fixture(scope="module")
def ms():
    """MindSpore on an Ascend device with the operators installed."""
    if "pangu_sigma" not in os.environ.get("ASCEND_CUSTOM_OPP_PATH", ""):
        pytest.skip("the operators are not installed: ASCEND_CUSTOM_OPP_PATH does not name them (ascend_ops/README.md)")
    import mindspore

    try:
        mindspore.set_device("Ascend")
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"no Ascend device: {error}")
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    return mindspore


def operator(ms, name: str, shapes: Callable, dtypes: Callable):
    return ms.ops.Custom(f"aclnn{name}", shapes, dtypes, func_type="aot")


def tensors(ms, kind: str, *arrays: np.ndarray) -> list:
    if kind == "bfloat16" and ms.hal.get_device_name(0).startswith("Ascend910A"):
        pytest.skip("910A has no bfloat16")
    return [ms.Tensor(array).astype(getattr(ms, kind)) for array in arrays]


def numpy(tensor) -> np.ndarray:
    return tensor.float().asnumpy()


def random_table(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    table = rng.integers(0, rows, length).astype(np.int32)
    table[rng.random(length) < 0.1] = -1
    return table


def gather(source: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.where(table[:, None] < 0, np.float32(0), source[np.maximum(table, 0)])


SHAPES = [(1, 1, 1), (3, 5, 2), (7, 300, 3), (200, 333, 33), (40, 4000, 16), (16, 24, 60_000), (2048, 2500, 5120)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens, rows, hidden", SHAPES)
def test_expert_dispatch(ms, kind, tokens, rows, hidden):
    rng = np.random.default_rng(0)
    (x,) = tensors(ms, kind, rng.standard_normal((tokens, hidden), np.float32))
    order = random_table(rng, tokens, rows)
    dispatch = operator(ms, "ExpertDispatch", lambda x, order: (order[0], x[1]), lambda x, order: x)
    assert np.array_equal(numpy(dispatch(x, ms.Tensor(order))), gather(numpy(x), order))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows, tokens, hidden", SHAPES)
def test_expert_combine(ms, kind, rows, tokens, hidden):
    rng = np.random.default_rng(1)
    sorted_rows, residual = tensors(
        ms, kind, rng.standard_normal((rows, hidden), np.float32), rng.standard_normal((tokens, hidden), np.float32)
    )
    inverse = random_table(rng, rows, tokens)
    combine = operator(
        ms, "ExpertCombine", lambda rows, inverse, residual: residual, lambda rows, inverse, residual: rows
    )
    exact = gather(numpy(sorted_rows), inverse) + numpy(residual)
    (wanted,) = tensors(ms, kind, exact)
    assert np.array_equal(numpy(combine(sorted_rows, ms.Tensor(inverse), residual)), numpy(wanted))
