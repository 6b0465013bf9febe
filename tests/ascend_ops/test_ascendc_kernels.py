"""The Ascend C kernels, unchanged, under the host emulation: equal to NumPy bit for bit, and within the rules of both chips."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from helpers.kernel_cases import TARGETS, check_everything, check_rows, random_rows

from ascend_ops.emulation import Emulator, KernelError, bytes_ratio, compile_emulator
from ascend_ops.errors import BuildError

HIDDEN = (1, 2, 3, 7, 8, 15, 16, 31, 33, 100, 5120, 20_000, 60_000)


@pytest.fixture(params=TARGETS, ids="-".join)
def emulator(request: pytest.FixtureRequest, emulator_of: Callable[[str, str], Emulator]) -> Emulator:
    return emulator_of(*request.param)


def test_shipped_kernels_pass_what_mutants_must_fail(emulator: Emulator):
    check_everything(emulator)


def test_any_shape_on_any_number_of_cores_in_either_order(emulator: Emulator):
    rng = np.random.default_rng(0)
    for hidden, (source_rows, rows) in itertools.product(HIDDEN, [(1, 1), (7, 1), (40, 70)]):
        check_rows(emulator, source_rows, rows if hidden < 5000 else min(rows, 9), hidden, int(rng.integers(1, 49)))
    for cores in range(1, 49):
        check_rows(emulator, 20, 97, 33, cores, reverse=cores % 2 == 0)
    for negative in (0, 0.1, 0.9, 1) * 4:
        source_rows, rows, hidden, cores = (int(2**exponent) for exponent in rng.uniform(0, [6, 8, 10, 5.6]))
        check_rows(emulator, source_rows, rows, hidden, cores, bool(rng.integers(2)), negative)
    empty = np.zeros((0, 40), emulator.numpy_dtype)
    assert emulator.expert_dispatch(np.zeros((3, 40), emulator.numpy_dtype), np.zeros(0, np.int32)).shape == (0, 40)
    assert not emulator.expert_dispatch(empty, np.full(5, -1, np.int32)).any()


def test_an_index_out_of_range_is_an_error(emulator: Emulator):
    for hidden, bad in itertools.product((3, 40), (4, 1 << 20)):
        x, index = np.zeros((4, hidden), emulator.numpy_dtype), np.array([0, bad], np.int32)
        with pytest.raises(KernelError, match=r"\[range\]"):
            emulator.expert_dispatch(x, index)
        with pytest.raises(KernelError, match=r"\[range\]"):
            emulator.expert_combine(x, index, x[:2])


def test_910a_has_no_bfloat16(tmp_path):
    with pytest.raises(BuildError, match="910A has no bfloat16"):
        compile_emulator("910A", "bfloat16", folder=tmp_path)


def traffic(
    emulator: Emulator, rows: int, hidden: int, residual: bool = False, cores: int | None = None
) -> tuple[int, int]:
    """Bytes of a permutation of rows by the tiling, and the fewest possible."""
    shapes = [(rows, hidden), (rows,), (rows, hidden) if residual else None]
    return emulator.host.traffic("ExpertCombine", emulator.chip, emulator.dtype, shapes, rows, cores)


@pytest.mark.parametrize("residual", [False, True])
def test_rows_of_whole_blocks_are_moved_once(emulator: Emulator, residual: bool):
    """The bytes that the emulation counts are the bytes of the tiling, and the fewest possible."""
    rng = np.random.default_rng(2)
    for rows, hidden in [(640, 5120), (37, 16), (100, 48), (3, 60_000)]:
        x = np.zeros((rows, hidden), emulator.numpy_dtype)
        emulator.expert_combine(x, rng.permutation(rows).astype(np.int32), x if residual else None)
        moved, minimum = traffic(emulator, rows, hidden, residual)
        assert emulator.bytes_moved() == moved == minimum


def test_other_rows_are_moved_once_on_910b_and_with_a_part_of_a_block_more_on_910a(emulator: Emulator):
    rng = np.random.default_rng(3)
    for hidden in (3, 17, 100, 5121):
        x = random_rows(rng, emulator.dtype, (70, hidden))
        emulator.expert_dispatch(x, rng.permutation(70).astype(np.int32), cores=1)
        moved, minimum = traffic(emulator, 70, hidden, cores=1)
        if emulator.chip == "910B":
            assert emulator.bytes_moved() == moved == minimum
        else:
            assert minimum <= moved <= minimum + 2 * 70 * 31
            assert abs(emulator.bytes_moved() - moved) <= 64  # the shifted block of the last flat tile
    assert bytes_ratio(8192, 5120, "float16", "910A", residual=True) == 1.0
    assert 1.0 < bytes_ratio(8192, 5121, "float16", "910A") < 1.01


@pytest.mark.parametrize("residual", [False, True])
def test_transfers_of_rows_of_5120_have_16_kb(emulator: Emulator, residual: bool):
    """Every store but that of a core's last group."""
    x = np.zeros((480, 5120), emulator.numpy_dtype)
    emulator.expert_combine(x, np.arange(480, dtype=np.int32), x if residual else None, cores=10)
    stores, loads = emulator.transfers("store"), emulator.transfers("load")
    assert stores.sum() == x.nbytes
    assert np.count_nonzero(stores < 16 * 1024) <= emulator.blocks
    assert loads[loads > 4 * 1024].min() >= 5120 * x.itemsize  # a gathered row is one transfer
