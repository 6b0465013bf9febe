"""The host sides of the Ascend C operators, unchanged, against an arithmetic of ours: definitions, tiling, inference, refusals."""

from __future__ import annotations

import shutil

import pytest
from helpers.host_cases import TILED, check_host, check_tiling, random_tilings

from ascend_ops.emulation import OpHost, TilingError, compile_host
from ascend_ops.emulation.compiling import FOLDERS, PROJECT
from ascend_ops.emulation.op_host import shipped_host


def test_shipped_host_passes_what_mutants_must_fail():
    check_host(shipped_host())


def test_a_missing_infer_shape_is_a_message_and_no_crash(tmp_path):
    for name in FOLDERS:
        shutil.copytree(PROJECT / name, tmp_path / name)
    source = tmp_path / "op_host/expert_combine.cpp"
    whole = source.read_text()
    short = whole.replace("this->SetInferShape(InferRowShape).SetInferDataType(InferRowDataType);", "")
    assert short != whole
    source.write_text(short.replace(".SetTiling(optiling::TileExpertCombine)", ""))
    with pytest.raises(
        TilingError, match=r"^ExpertCombine has no InferShape InferDataType Tiling, which CANN would call$"
    ):
        OpHost(compile_host(tmp_path, tmp_path))


def test_the_three_dynamic_flags_are_recorded():
    assert all(argument.dynamic for argument in shipped_host().definitions())


def test_random_tilings():
    for case in random_tilings(3000):
        check_tiling(shipped_host(), *case)


@pytest.mark.parametrize(("chip", "dtype"), TILED)
@pytest.mark.parametrize("hidden", [2560, 5120])
def test_rows_of_the_models_pass_through_four_buffers(chip: str, dtype: str, hidden: int):
    shapes = [(8192, hidden), (8192,), (8192, hidden)]
    moved = shipped_host().launch("ExpertDispatch", chip, dtype, shapes[:2]).tiling
    summed = shipped_host().launch("ExpertCombine", chip, dtype, shapes).tiling
    assert (moved.buffers, summed.buffers) == (4, 2)
