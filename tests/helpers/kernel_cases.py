"""NumPy oracles of the Ascend C operators, and a set of cases that no broken kernel passes."""

from __future__ import annotations

import numpy as np

from ascend_ops.emulation import CHIPS, DTYPES, Emulator
from ascend_ops.expert_dispatch import dispatch_oracle

TARGETS = [(chip, dtype) for chip in CHIPS for dtype in DTYPES if (chip, dtype) != ("910A", "bfloat16")]


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of float32 values rounded to nearest even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def random_rows(rng: np.random.Generator, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32)
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(DTYPES[dtype][1])


NEGATIVES = np.array([-1, -2, -5120, -(2**31)], np.int32)
"""All of them are padding, or a token without a row."""


def random_index(rng: np.random.Generator, source_rows: int, length: int, negative: float = 0.2) -> np.ndarray:
    index = rng.integers(0, source_rows, length).astype(np.int32)
    return np.where(rng.random(length) < negative, rng.choice(NEGATIVES, length), index)


def combine_oracle(rows: np.ndarray, inverse: np.ndarray, residual: np.ndarray, dtype: str) -> np.ndarray:
    """The exact sum, rounded once."""
    gathered = dispatch_oracle(rows, inverse)
    if dtype == "bfloat16":
        return to_bfloat16(from_bfloat16(gathered) + from_bfloat16(residual))
    return (gathered.astype(np.float64) + residual.astype(np.float64)).astype(rows.dtype)


def check_rows(
    emulator: Emulator,
    source_rows: int,
    rows: int,
    hidden: int,
    cores: int,
    reverse: bool = False,
    negative: float = 0.2,
) -> None:
    """Dispatch and combine without residual move bits; with residual the sum is rounded once."""
    rng = np.random.default_rng([source_rows, rows, hidden])
    source = random_rows(rng, emulator.dtype, (source_rows, hidden))
    residual = random_rows(rng, emulator.dtype, (rows, hidden))
    index = random_index(rng, source_rows, rows, negative)
    expected = dispatch_oracle(source, index)
    for operator in (emulator.expert_dispatch, emulator.expert_combine):
        actual = operator(source, index, cores=cores, reverse=reverse)
        assert actual.tobytes() == expected.tobytes(), f"{operator.__name__} moved the wrong bits"
    actual = emulator.expert_combine(source, index, residual, cores=cores, reverse=reverse)
    assert np.array_equal(actual, combine_oracle(source, index, residual, emulator.dtype)), "wrong sums"


def check_far_rows(emulator: Emulator, op: str, rows: int, hidden: int, cores: int, residual: bool = False) -> None:
    """The last rows of output and source, at whatever offset they are; all rows before them are padding.

    A sum looks at every row of its block, so with a residual only one row is left over for the last core.
    """
    rng = np.random.default_rng([rows, hidden])
    last = 1 if residual else 5
    source = random_rows(rng, emulator.dtype, (last, hidden))
    added = random_rows(rng, emulator.dtype, (last, hidden)) if residual else None
    index = np.full(rows, -1, np.int32)
    index[-last:] = rows - 1 - np.arange(last)
    actual = emulator.last_rows(op, rows, source, index, added, last, cores=cores)
    moved = source[::-1]
    if added is None:
        assert actual.tobytes() == moved.tobytes(), "wrong bits at the end of many rows"
    else:
        expected = combine_oracle(moved, np.arange(last, dtype=np.int32), added, emulator.dtype)
        assert np.array_equal(actual, expected), "wrong sums at the end of many rows"


def check_far_offsets(emulator: Emulator) -> None:
    """Beyond 2^31 and 2^32 elements of source and output, from the start of the tensors and from the start of a core."""
    for elements in (2**31, 2**32):
        check_far_rows(emulator, "ExpertDispatch", elements // 5120 + 3, 5120, cores=1)
        check_far_rows(emulator, "ExpertCombine", elements // 5000, 5120, cores=48)  # the last core begins there
    # 47 cores of 48 rows, and for the last one row, which begins beyond 2^32 elements
    check_far_rows(emulator, "ExpertCombine", 2257, 2**32 // 2256 // 16 * 16 + 16, cores=48, residual=True)
    # a run of padding of more than 2^32 elements
    source, index = np.ones((1, 2**21 + 8), emulator.numpy_dtype), np.full(2048, -1, np.int32)
    assert not emulator.last_rows("ExpertDispatch", 1, source, index, None, 1, cores=1).any(), "wrong end of a padding"
    # 910A: flat rows, of a source of more than 2^32 elements
    tiny, end = random_rows(np.random.default_rng(0), emulator.dtype, (4, 3)), 2**31 - 1
    index = np.array([-1, end - 2, end - 1, -7, end - 4], np.int32)
    actual = emulator.last_rows("ExpertDispatch", end, tiny, index, None, len(index), cores=1)
    expected = dispatch_oracle(tiny, np.where(index < 0, index, index - (end - 4)))
    assert actual.tobytes() == expected.tobytes(), "wrong bits at the end of a source of flat rows"


def check_everything(emulator: Emulator) -> None:
    """Small, but every path of every kernel is taken more than once."""
    check_rows(emulator, 5, 17, 1, cores=3)  # 910A: flat rows, one core too few tokens for a block of its own
    check_rows(emulator, 40, 230, 7, cores=2)
    check_rows(emulator, 9, 2, 3, cores=4)  # 910A: the whole output is less than a block
    check_rows(emulator, 3, 6001, 3, cores=1)  # 910A: several flat tiles, 910B: several index tiles
    check_rows(emulator, 30, 5003, 16, cores=2)  # several index tiles
    check_rows(emulator, 30, 75, 33, cores=4, reverse=True)
    check_rows(emulator, 12, 43, 5120, cores=3)
    check_rows(emulator, 12, 20, 5120, cores=2, negative=0.9)
    check_rows(emulator, 4, 5, 60_001, cores=2)  # column tiles
    check_rows(emulator, 3, 4, 14_900, cores=2)  # a bfloat16 sum that fits the UB only in two column tiles
    check_rows(emulator, 3, 4, 65_536 // emulator.numpy_dtype().itemsize, cores=2)  # transfers of 64 KiB
    check_far_offsets(emulator)
