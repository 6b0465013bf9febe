"""NumPy oracles of the Ascend C operators, and a set of cases that no broken kernel passes."""

from __future__ import annotations

import numpy as np

from ascend_ops.emulation import CHIPS, DTYPES, Emulator

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


def random_index(rng: np.random.Generator, source_rows: int, length: int, negative: float = 0.2) -> np.ndarray:
    index = rng.integers(0, source_rows, length).astype(np.int32)
    index[rng.random(length) < negative] = -1
    return index


def gather_oracle(source: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.where(index[:, None] < 0, np.zeros((), source.dtype), source[np.maximum(index, 0)])


def combine_oracle(rows: np.ndarray, inverse: np.ndarray, residual: np.ndarray, dtype: str) -> np.ndarray:
    """The exact sum, rounded once."""
    gathered = gather_oracle(rows, inverse)
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
    wanted = gather_oracle(source, index)
    for operator in (emulator.expert_dispatch, emulator.expert_combine):
        got = operator(source, index, cores=cores, reverse=reverse)
        assert got.tobytes() == wanted.tobytes(), f"{operator.__name__} moved the wrong bits"
    got = emulator.expert_combine(source, index, residual, cores=cores, reverse=reverse)
    assert np.array_equal(got, combine_oracle(source, index, residual, emulator.dtype)), "wrong sums"


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
