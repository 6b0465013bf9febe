"""The Ascend C kernels, unchanged, under the host emulation: equal to NumPy bit for bit, and within the rules of both chips."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.kernel_cases import TARGETS, check_everything, check_rows, random_rows

from ascend_ops.emulation import Emulator, KernelError, bytes_ratio, compile_emulator
from ascend_ops.errors import BuildError
from ascend_ops.expert_dispatch import dispatch_oracle

HIDDEN = (1, 2, 3, 7, 8, 15, 16, 31, 33, 100, 5120, 20_000, 60_000)
by_target = pytest.mark.parametrize("target", TARGETS, ids="-".join)

Emulators = dict[tuple[str, str], Emulator]


@by_target
def test_shipped_kernels_pass_what_mutants_must_fail(emulators: Emulators, target):
    check_everything(emulators[target])


@by_target
@pytest.mark.parametrize("hidden", HIDDEN)
def test_every_hidden_size(emulators: Emulators, target, hidden):
    emulator = emulators[target]
    for source_rows, rows in [(1, 1), (3, 5), (7, 1), (40, 70 if hidden < 5000 else 9)]:
        for cores, reverse in [(1, False), (2, True), (48, False)]:
            check_rows(emulator, source_rows, rows, hidden, cores, reverse)


@by_target
def test_every_block_count_in_either_order(emulators: Emulators, target):
    for cores, (rows, hidden) in itertools.product(range(1, 49), [(97, 33), (61, 5)]):
        check_rows(emulators[target], 20, rows, hidden, cores, reverse=cores % 2 == 0)


@by_target
def test_random_shapes(emulators: Emulators, target):
    rng = np.random.default_rng(0)
    for _ in range(150):
        hidden = int(2 ** rng.uniform(0, 11))
        source_rows, rows, cores = (int(n) for n in rng.integers(1, [60, 400, 49]))
        check_rows(
            emulators[target],
            source_rows,
            rows,
            hidden,
            cores,
            bool(rng.integers(2)),
            float(rng.choice([0, 0.1, 0.9, 1])),
        )


@by_target
def test_many_rows(emulators: Emulators, target):
    check_rows(emulators[target], 60_000, 60_000, 8, cores=48)
    check_rows(emulators[target], 1, 20_000, 2, cores=3)


@by_target
def test_no_rows(emulators: Emulators, target):
    emulator = emulators[target]
    empty = np.zeros((0, 40), emulator.numpy_dtype)
    assert emulator.expert_dispatch(np.zeros((3, 40), emulator.numpy_dtype), np.zeros(0, np.int32)).shape == (0, 40)
    assert not emulator.expert_dispatch(empty, np.full(5, -1, np.int32)).any()


@by_target
def test_an_index_out_of_range_is_seen(emulators: Emulators, target):
    emulator = emulators[target]
    for hidden, bad in itertools.product((3, 40), (4, 1 << 20)):
        x = np.zeros((4, hidden), emulator.numpy_dtype)
        with pytest.raises(KernelError, match=r"\[range\]"):
            emulator.expert_dispatch(x, np.array([0, bad], np.int32))
        with pytest.raises(KernelError, match=r"\[range\]"):
            emulator.expert_combine(x, np.array([0, bad], np.int32), x[:2])


def test_910a_has_no_bfloat16(tmp_path):
    with pytest.raises(BuildError, match="910A has no bfloat16"):
        compile_emulator("910A", "bfloat16", folder=tmp_path)


def traffic(
    emulator: Emulator, rows: int, hidden: int, residual: bool = False, cores: int | None = None
) -> tuple[int, int]:
    """Bytes of a permutation of rows by the tiling, and the fewest possible."""
    shapes = [(rows, hidden), (rows,), (rows, hidden) if residual else None]
    return emulator.host.traffic("ExpertCombine", emulator.chip, emulator.dtype, shapes, rows, cores)


@by_target
@pytest.mark.parametrize("residual", [False, True])
def test_each_byte_is_moved_once(emulators: Emulators, target, residual):
    """Rows of whole 32 B blocks: what the emulation counted is what the tiling says, and that is the minimum."""
    emulator, rng = emulators[target], np.random.default_rng(2)
    for rows, hidden in [(640, 5120), (64, 2560), (37, 16), (100, 48), (40, 60_000)]:
        rows = rows if hidden < 60_000 else 3
        x = np.zeros((rows, hidden), emulator.numpy_dtype)
        emulator.expert_combine(x, rng.permutation(rows).astype(np.int32), x if residual else None)
        moved, minimum = traffic(emulator, rows, hidden, residual)
        assert emulator.bytes_moved() == moved == minimum


@by_target
@pytest.mark.parametrize("hidden", [3, 17, 100, 5121])
def test_overhead_of_other_rows(emulators: Emulators, target, hidden):
    """910B moves any row once; 910A a part of a block more a row."""
    emulator, rng = emulators[target], np.random.default_rng(3)
    x = random_rows(rng, target[1], (70, hidden))
    emulator.expert_dispatch(x, rng.permutation(70).astype(np.int32), cores=1)
    moved, minimum = traffic(emulator, 70, hidden, cores=1)
    if target[0] == "910B":
        assert emulator.bytes_moved() == moved == minimum
    else:
        assert minimum <= moved <= minimum + 2 * 70 * 31
        assert abs(emulator.bytes_moved() - moved) <= 64  # the shifted block of the last flat tile


def test_bytes_ratio():
    assert bytes_ratio(8192, 2560, "float32") == 1.0
    assert bytes_ratio(8192, 5120, "float16", "910A", residual=True) == 1.0
    assert 1.0 < bytes_ratio(8192, 5121, "float16", "910A") < 1.01


@by_target
@pytest.mark.parametrize("residual", [False, True])
def test_transfers_of_real_rows_are_16_kb(emulators: Emulators, target, residual):
    """H = 5120: every store is at least 16 KB, but for the last group of a core."""
    emulator = emulators[target]
    x = np.zeros((480, 5120), emulator.numpy_dtype)
    emulator.expert_combine(x, np.arange(480, dtype=np.int32), x if residual else None, cores=10)
    stores = emulator.transfers("store")
    assert stores.sum() == x.nbytes
    assert np.count_nonzero(stores < 16 * 1024) <= emulator.blocks
    loads = emulator.transfers("load")
    assert loads[loads > 4 * 1024].min() >= 5120 * x.itemsize  # a gathered row is one transfer


@by_target
def test_padding_is_stored_in_16_kb(emulators: Emulators, target):
    emulator = emulators[target]
    x = np.ones((4, 5120), emulator.numpy_dtype)
    order = np.repeat(np.array([0, -1, 1, -1], np.int32), 30)
    got = emulator.expert_dispatch(x, order, cores=1)
    assert np.array_equal(got, dispatch_oracle(x, order))
    assert np.mean(emulator.transfers("store") >= 10 * 1024) > 0.9
