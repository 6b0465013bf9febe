"""The loops of Adam and the norm, for every instruction set of this processor, against NumPy and the float64 oracle.

The set is chosen once per process, so each has a process of its own that calls the kernels and sends the arrays back.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kernel_call import KernelProcess

from ascend_ops.adam import HYPER, adam_oracle

ISAS = ("avx512", "avx2", "scalar")
LENGTHS = (1, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 2047, 2049, 16_385)
"""Around the widths of vectors, of a conversion block and of a piece of the parallel loop."""
PLAIN = {"lr": 1e-2, "grad_scale": 1.0, "apply": 1.0, "beta1": 0.8, "beta2": 0.95, "eps": 1e-20, "zero_grad": 0.0}

FLUSH = """#include <immintrin.h>
extern "C" void set_flushing(int on) { _mm_setcsr((_mm_getcsr() & ~0x8040u) | (on ? 0x8040u : 0u)); }
extern "C" unsigned flushing() { return (_mm_getcsr() & 0x8040u) == 0x8040u; }
"""


class Processor(KernelProcess):
    """Adam and conversions of one row in such a process."""

    def adam(self, w, m, v, grad, decay: float = 0.0, flush: str = "", **hyper: float) -> list[np.ndarray]:
        """w, m, v and grad of one row after a step."""
        rows = [a[None] for a in (w, m, v, grad)]
        return [a[0] for a in self.call("AdamRows", *rows, *one_row(decay, hyper), updated(), flush=flush)[:4]]

    def half(self, x: np.ndarray) -> np.ndarray:
        """float32 narrowed to float16: the copy of a row that is not updated."""
        arrays = one_row(0.0, {"apply": 0.0})
        arrays.insert(3, np.zeros(1, np.int32))
        zeros, copy = np.zeros((1, len(x)), np.float32), np.zeros((1, len(x)), np.float16)
        return self.call("AdamRowsCopied", x[None], zeros, zeros, zeros, copy, *arrays, updated())[4][0]


def one_row(decay: float, hyper: dict[str, float]) -> list[np.ndarray]:
    """Step counts, active, offsets, hyper and decay of a store of one row."""
    values = np.array([{**PLAIN, **hyper}[name] for name in HYPER], np.float32)
    places = [np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([0, 1], np.int32)]
    return [*places, values, np.array([decay], np.float32)]


def updated() -> np.ndarray:
    return np.zeros(1, np.float32)


@pytest.fixture(scope="module")
def processors() -> Iterator[dict[str, Processor]]:
    """By the instruction set that is in use, of those that the processor has."""
    made = [Processor(PANGU_SIGMA_ISA=isa) for isa in ISAS]
    yield {processor.isa(): processor for processor in made}
    for processor in made:
        processor.close()


@pytest.fixture(params=ISAS)
def processor(request: pytest.FixtureRequest, processors: dict[str, Processor]) -> Processor:
    if request.param not in processors:
        pytest.skip(f"this processor has no {request.param}")
    return processors[request.param]


@pytest.fixture(scope="module")
def flush(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("flush")
    (folder / "flush.cc").write_text(FLUSH)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", folder / "flush.so", folder / "flush.cc"], check=True)
    return str(folder / "flush.so")


def test_the_environment_narrows_the_instruction_set(processors: dict[str, Processor]):
    """One that the processor has not is answered with the next one down."""
    assert list(processors) == [isa for isa in ISAS if isa in processors]
    assert "scalar" in processors


def test_every_half_widens_exactly(processor: Processor):
    """All 65,536; seen as the first moment of a step with beta1 = 0."""
    grad = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    zeros = np.zeros(len(grad), np.float32)
    with np.errstate(invalid="ignore"):
        expected = grad.astype(np.float32)
    found = processor.adam(zeros, np.copysign(zeros, -1), zeros, grad, beta1=0.0)[1]  # -0 + x is x, also for -0
    number = ~np.isnan(expected)
    assert np.isnan(found[~number]).all()
    assert (found.view(np.uint32) == expected.view(np.uint32))[number].all()


def floats() -> np.ndarray:
    """Every half, what lies between it and the next one and beside that, and bits drawn over the whole range of float32."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float64)
    halves[-1] = 65_536.0  # what would follow the largest one
    ties = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)
    positive = np.concatenate(
        [halves.astype(np.float32), ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, 1e9)]
    )
    drawn = np.random.default_rng(0).integers(0, 1 << 32, 100_003, np.uint32).view(np.float32)
    special = np.array([np.inf, np.nan, 1e-45, 1e-38, 2e-38, 65_519.99, 65_520.0, 3e38], np.float32)
    return np.concatenate([positive, -positive, drawn, special, -special]).astype(np.float32)


def test_floats_narrow_to_the_nearest_half_and_ties_to_even(processor: Processor):
    x = floats()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    found = processor.half(x)
    number = ~np.isnan(x)
    assert np.isnan(found[~number]).all()
    assert (found.view(np.uint16) == expected.view(np.uint16))[number].all()


def to_bfloat(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even, where x is not NaN: its two neighbours compared in float64."""
    below = x.view(np.uint32) & np.uint32(0xFFFF0000)
    above = below + np.uint32(0x10000)  # away from zero
    with np.errstate(invalid="ignore"):
        exact, low, high = (np.abs(a.view(np.float32).astype(np.float64)) for a in (x, below, above))
        high = np.where(np.isinf(high), 2.0**128, high)  # infinity is where the next number would be
        to_low, to_high = exact - low, high - exact
    up = (to_high < to_low) | ((to_high == to_low) & ((below >> 16) & 1 == 1))
    return np.where(np.isinf(x) | ~up, below >> 16, above >> 16).astype(np.uint16)


def test_moments_narrow_to_the_nearest_bfloat_and_ties_to_even(processor: Processor):
    """Seen as the first moment of a step with beta1 = 0."""
    ties = (np.arange(0x7F80, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    near = [(ties.view(np.uint32) + np.uint32(off)).view(np.float32) for off in (1, 0xFFFFFFFF)]
    x = np.concatenate([floats(), ties, -ties, *near])
    minus_0, zeros = np.full(len(x), 0x8000, np.uint16), np.zeros(len(x), np.uint16)
    found = processor.adam(np.zeros(len(x), np.float32), minus_0, zeros, x, beta1=0.0)[1]
    number = ~np.isnan(x)
    assert np.isnan((found.astype(np.uint32) << 16).view(np.float32)[~number]).all()
    assert (found == to_bfloat(x))[number].all()
    assert (found[np.isposinf(x)] == 0x7F80).all()


@pytest.mark.parametrize("length", LENGTHS)
def test_adam_of_any_length_follows_the_oracle(processor: Processor, length: int):
    rng = np.random.default_rng(length)
    w, m, grad = (rng.standard_normal(length).astype(np.float32) for _ in range(3))
    v = rng.random(length, np.float32)
    hyper = {**PLAIN, "grad_scale": 0.37}
    found = processor.adam(w, m, v, grad, decay=0.1, **hyper)
    for mine, exact in zip(found, exact_step(w, m, v, grad, weight_decay=0.1, **hyper), strict=False):
        np.testing.assert_allclose(mine, exact, rtol=1e-5, atol=1e-7)
    assert (found[3] == grad).all()


def exact_step(w, m, v, grad, weight_decay: float = 0.0, **hyper: float) -> tuple[np.ndarray, ...]:
    """The first step in float64, with the numbers that the kernel receives as float32."""
    values = {name: float(np.float32(value)) for name, value in {**PLAIN, **hyper}.items()}
    del values["apply"], values["zero_grad"]
    return adam_oracle(w, m, v, 1, grad, weight_decay=weight_decay, **values)


@pytest.mark.parametrize("flushes", [False, True], ids=["", "flush-to-zero"])
def test_tiny_gradients_are_kept_whatever_the_thread_does_with_subnormal_numbers(
    processor: Processor, flush: str, flushes: bool
):
    """Moments down to the smallest subnormal. Weights start at 0, so that their step is seen and not lost in rounding."""
    size = np.repeat(np.logspace(-45, -15, 61), 7)
    grad = (size * np.resize([1, -1], len(size))).astype(np.float32)
    zeros = np.zeros(len(grad), np.float32)
    w, m, v, _ = processor.adam(zeros, zeros, zeros, grad, flush=flush if flushes else "")
    _, exact_m, exact_v = exact_step(zeros, zeros, zeros, grad)
    quantum = 2.0**-149
    np.testing.assert_allclose(m, exact_m, rtol=1e-6, atol=quantum)
    np.testing.assert_allclose(v, exact_v, rtol=1e-6, atol=2 * quantum)
    assert ((v > 0) & (v < 1e-38)).any()
    assert (v[size < 1e-23] == 0).all()
    assert ((m != 0) & (np.abs(m) < 1e-38)).any()
    # the weight from the moments as they are stored
    move = 1e-2 * (m.astype(np.float64) / 0.2) / (np.sqrt(v.astype(np.float64) / np.float64(np.float32(0.05))) + 1e-20)
    np.testing.assert_allclose(w, -move, rtol=1e-4, atol=quantum / 1e-20)
    assert (np.sign(w) == -np.sign(grad))[size > 1e-38].all()


def test_a_second_moment_of_zero_is_no_division_by_zero(processor: Processor):
    w, zeros = np.ones(33, np.float32), np.zeros(33, np.float32)
    found = processor.adam(w, zeros, zeros, zeros)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in (w, zeros, zeros, zeros)]
    found = processor.adam(w, zeros, zeros, np.full(33, 1e-30, np.float32))
    np.testing.assert_allclose(found[0], 1 - 1e-2 * 1e-30 / 1e-20)
    assert not found[2].any()


def test_where_a_number_is_in_its_row_makes_no_difference(processor: Processor):
    """Vectors and what is left over of them round alike."""
    rng = np.random.default_rng(5)
    values = [np.full(77, x, np.float32) for x in rng.random(4)]
    for array in processor.adam(*values, decay=0.1):
        assert (array == array[0]).all()


def test_instruction_sets_agree_to_rounding(processors: dict[str, Processor]):
    rng = np.random.default_rng(6)
    w, m, grad = (rng.standard_normal(5001).astype(np.float32) for _ in range(3))
    v = rng.random(5001, np.float32)
    first, *others = (p.adam(w, m, v, grad, decay=0.1) for p in processors.values())
    for other in others:
        for one, two in zip(first, other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


def square_sum(processor: Processor, *tensors: np.ndarray) -> np.float32:
    return processor.call("SquareSum", *tensors, np.full(1, -1.0, np.float32))[-1][0]


def exact_square_sum(*tensors: np.ndarray) -> float:
    return sum(float(np.square(t.astype(np.float64)).sum()) for t in tensors)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_square_sum_is_that_of_float64(processor: Processor, length: int):
    rng = np.random.default_rng(length)
    tensors = [rng.standard_normal(length).astype(dtype) for dtype in (np.float32, np.float16, np.float32)]
    tensors[2] = tensors[2].reshape(1, length, 1) * np.float32(1e4)
    assert square_sum(processor, *tensors) == pytest.approx(exact_square_sum(*tensors), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 8, 32])
def test_one_number_that_is_not_finite_comes_through_the_square_sum(
    processor: Processor, dtype: type, value: float, place: int
):
    x = np.ones(33, dtype)
    x[place] = value
    np.testing.assert_equal(square_sum(processor, np.ones(20_000, np.float32), x), np.float32(abs(value)))


def test_the_square_sum_overflows_and_vanishes_in_its_result_only(processor: Processor):
    assert square_sum(processor, np.full(5, 1e30, np.float32)) == np.inf
    large = np.full(5, 1.5e19, np.float32)  # each square, and all of them together, are below 3.4e38 … and above it
    assert square_sum(processor, large[:1]) == pytest.approx(2.25e38, rel=1e-6)
    assert square_sum(processor, large) == np.inf
    tiny = np.full(200_000, 1e-24, np.float32)  # a square is 1e-48, zero in float32
    assert square_sum(processor, tiny) == pytest.approx(2e-43, rel=0.01)
    assert square_sum(processor, np.full(33, 1e-30, np.float32), np.ones(1, np.float32)) == 1.0
    assert square_sum(processor, np.zeros(33, np.float32)) == 0.0


def test_numbers_too_small_for_one_float_sum_are_added_one_by_one(processor: Processor):
    """In float32, 1 + 1e-8 is 1 however often it is added."""
    x = np.full(400_001, 1e-4, np.float32)
    x[0] = 1.0
    assert square_sum(processor, x) == pytest.approx(1.004, rel=1e-6)


def test_the_square_sum_is_the_same_bits_for_any_number_of_threads():
    rng = np.random.default_rng(7)
    tensors = [rng.standard_normal(n).astype(np.float32) for n in (300_001, 5, 70_000)]
    found = []
    for threads in ("1", "2", "3"):
        processor = Processor(OMP_NUM_THREADS=threads)
        found.append(square_sum(processor, *tensors).tobytes())
        processor.close()
    assert len(set(found)) == 1
