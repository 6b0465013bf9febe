"""The host sides of the Ascend C operators, unchanged, against an arithmetic of ours: definitions, tiling, inference, refusals."""

from __future__ import annotations

import pytest
from helpers.host_cases import TILED, check_host

from ascend_ops.emulation.op_host import shipped_host


def test_shipped_host_passes_what_mutants_must_fail():
    check_host(shipped_host())


@pytest.mark.parametrize(("chip", "dtype"), TILED)
@pytest.mark.parametrize("hidden", [2560, 5120])
def test_rows_of_the_models_pass_through_four_buffers(chip: str, dtype: str, hidden: int):
    shapes = [(8192, hidden), (8192,), (8192, hidden)]
    moved = shipped_host().launch("ExpertDispatch", chip, dtype, shapes[:2]).tiling
    summed = shipped_host().launch("ExpertCombine", chip, dtype, shapes).tiling
    assert (moved.buffers, summed.buffers) == (4, 2)
