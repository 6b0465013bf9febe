"""The Ascend C operators on a device, through the product's own front: the only test that proves them. Skipped, with the reason,
anywhere else; the suite runs the same cases on the CPU (tests/ascend_ops/test_expert_dispatch.py).

source <CANN>/set_env.sh, build.sh, install.sh and its two export lines, then: pytest tests/device
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from helpers.front_cases import KINDS, check_combine, check_dispatch, check_gradients, check_transposed

SHAPES = [(1, 1, 1), (3, 5, 2), (7, 300, 3), (200, 333, 33), (40, 4000, 16), (16, 24, 60_000), (2048, 2500, 5120)]
"""Source rows, rows, hidden."""

VIEWS = [(7, 300, 3), (200, 333, 33), (64, 80, 5120)]


@pytest.fixture(scope="module")
def chip() -> str:
    """Name of the Ascend device that MindSpore works on, with the operators installed."""
    if "pangu_sigma" not in os.environ.get("ASCEND_CUSTOM_OPP_PATH", ""):
        pytest.skip("the operators are not installed: ASCEND_CUSTOM_OPP_PATH does not name them (ascend_ops/README.md)")
    import mindspore

    try:
        mindspore.set_device("Ascend")
        return mindspore.hal.get_device_name(0)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"no Ascend device: {error}")


@pytest.fixture(params=["GRAPH_MODE", "PYNATIVE_MODE"])
def mode(request: pytest.FixtureRequest, chip: str) -> Iterator[None]:
    import mindspore

    mindspore.set_context(mode=getattr(mindspore, request.param))
    yield
    mindspore.set_context(mode=mindspore.GRAPH_MODE)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, chip: str) -> str:
    if request.param == "bfloat16" and chip.startswith("Ascend910A"):
        pytest.skip("910A has no bfloat16")
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_dispatch(mode: None, kind: str, shape: tuple[int, int, int]):
    check_dispatch(kind, *shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("residual", [True, False])
def test_combine(mode: None, kind: str, shape: tuple[int, int, int], residual: bool):
    check_combine(kind, *shape, residual)


@pytest.mark.parametrize("shape", VIEWS)
def test_strided_views(mode: None, kind: str, shape: tuple[int, int, int]):
    check_dispatch(kind, *shape, strided=True)
    check_transposed(kind, *shape)
    check_combine(kind, *shape, True, strided=True)
    check_combine(kind, *shape, False, strided=True)


@pytest.mark.parametrize(("tokens", "hidden"), [(37, 3), (500, 5120)])
def test_gradients(mode: None, kind: str, tokens: int, hidden: int):
    check_gradients(kind, tokens, hidden)
