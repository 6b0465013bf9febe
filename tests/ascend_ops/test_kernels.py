"""The loops of cpu/kernels.cc, each instruction set of this processor on its own: what NumPy and the float64 oracle say."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_ops.adam import adam_oracle
from ascend_ops.library import cpu_library

SUBNORMAL = float(np.finfo(np.float32).smallest_subnormal)
BETA1, BETA2, EPS, RATE = 0.8, 0.95, 1e-20, 1e-2


class Scalars(ctypes.Structure):
    """`AdamScalars` of kernels.h."""

    _fields_ = [(n, ctypes.c_float) for n in ("grad_scale", "beta1", "beta2", "eps", "rate", "unbias", "keep")]


class Loops:
    """The functions of one instruction set, called on NumPy arrays."""

    NAMES = ("adam", "square_sum", "widen_half", "narrow_half", "widen_bfloat", "narrow_bfloat")

    def __init__(self, library: ctypes.CDLL):
        best = library._Z11BestKernelsv
        best.restype = ctypes.POINTER(ctypes.c_void_p)
        table = best()
        self.isa = ctypes.string_at(table[0]).decode()
        self.at = dict(zip(self.NAMES, table[1:7], strict=True))

    def convert(self, name: str, values: np.ndarray, out: np.ndarray) -> np.ndarray:
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(self.at[name])
        function(values.ctypes.data, out.ctypes.data, out.size)
        return out

    def square_sum(self, values: np.ndarray) -> float:
        function = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p, ctypes.c_int64)(self.at["square_sum"])
        return function(values.ctypes.data, values.size)

    def adam(self, w: np.ndarray, m: np.ndarray, v: np.ndarray, grad: np.ndarray, t: int) -> None:
        scalars = Scalars(1.0, BETA1, BETA2, EPS, RATE / (1 - BETA1**t), 1 / np.sqrt(1 - BETA2**t), 1.0)
        arguments = [*[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.POINTER(Scalars)]
        function = ctypes.CFUNCTYPE(None, *arguments)(self.at["adam"])
        function(*(array.ctypes.data for array in (w, m, v, grad)), w.size, ctypes.byref(scalars))


@pytest.fixture(scope="session")
def every_loops(isa_libraries: dict[str, str]) -> dict[str, Loops]:
    """By name, each instruction set that this processor has."""
    return {isa: Loops(ctypes.CDLL(library)) for isa, library in isa_libraries.items()}


@pytest.fixture
def loops(isa_library: str) -> Loops:
    return Loops(ctypes.CDLL(isa_library))


@pytest.fixture
def flush_to_zero(tmp_path: Path) -> Callable[[], AbstractContextManager[None]]:
    """`with flush_to_zero():` this thread treats subnormal numbers as zeros, as some libraries make it do."""
    (tmp_path / "csr.cc").write_text(
        "#include <immintrin.h>\n"
        'extern "C" unsigned Get() { return _mm_getcsr(); }\n'
        'extern "C" void Set(unsigned csr) { _mm_setcsr(csr); }\n'
    )
    if subprocess.run(["g++", "-shared", "-fPIC", "-o", tmp_path / "csr.so", tmp_path / "csr.cc"]).returncode:
        pytest.skip("not an x86 processor")
    helper = ctypes.CDLL(str(tmp_path / "csr.so"))
    helper.Get.restype, helper.Set.argtypes = ctypes.c_uint32, [ctypes.c_uint32]

    @contextmanager
    def flushed() -> Iterator[None]:
        before = helper.Get()
        helper.Set(before | 0x8040)
        try:
            yield
            assert helper.Get() & 0x8040 == 0x8040, "what was called should leave the setting alone"
        finally:
            helper.Set(before)

    return flushed


def hard_floats() -> np.ndarray:
    """Where rounding to 16 bits is decided: halves, the middles of two, the floats beside them; so with bfloat16; any others."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    halves = np.unique(halves[np.isfinite(halves)])
    near = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2]).astype(np.float32)
    beside = [np.nextafter(near, np.float32(towards)) for towards in (np.inf, -np.inf)]
    bfloats = np.arange(1 << 16, dtype=np.uint32) << 16
    others = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits = [bfloats | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    return np.concatenate([near, *beside, np.concatenate([*bits, others]).view(np.float32)])


SPECIAL_BFLOATS = [
    (0.0, 0x0000), (-0.0, 0x8000), (np.inf, 0x7F80), (-np.inf, 0xFF80), (3.4028234e38, 0x7F80), (-3.3895e38, 0xFF7F),
    (1e-45, 0x0000), (2.0**-133, 0x0001), (2.0**-134, 0x0000), (1 + 2.0**-8, 0x3F80), (1 + 3 * 2.0**-8, 0x3F82),
    (1 + 2.0**-8 + 2.0**-20, 0x3F81),
]  # fmt: skip


def narrowed(loops: Loops, name: str, values: np.ndarray) -> np.ndarray:
    return loops.convert(name, values, np.empty(values.size, np.uint16))


def nearest_bfloat(values: np.ndarray) -> np.ndarray:
    """Bits of the bfloat16 nearest to finite floats, of two equally near the even one; found by comparing distances."""
    low = values.view(np.uint32) >> 16
    below = (low << 16).view(np.float32).astype(np.float64)
    above = (low + 1 << 16).view(np.float32).astype(np.float64)
    above = np.where(
        np.isinf(above), np.copysign(2.0**128, above), above
    )  # infinity stands where the next number would
    to_low, to_high = np.abs(values - below), np.abs(above - values)
    return np.where((to_low < to_high) | ((to_low == to_high) & (low % 2 == 0)), low, low + 1).astype(np.uint16)


def test_the_library_can_be_held_to_any_instruction_set_up_to_its_best(every_loops: dict[str, Loops]):
    assert "scalar" in every_loops
    unlimited = Loops(ctypes.CDLL(cpu_library())).isa
    assert os.environ.get("PANGU_SIGMA_ISA") or unlimited == next(iter(every_loops)), "the widest is tried first"


def test_every_half_becomes_its_float(loops: Loops):
    halves = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        expected = halves.view(np.float16).astype(np.float32)
    found, nan = loops.convert("widen_half", halves, np.empty(1 << 16, np.float32)), np.isnan(expected)
    assert nan.sum() == 2 * 1023
    assert np.isnan(found[nan]).all()
    assert found[~nan].tobytes() == expected[~nan].tobytes()


def test_a_float_becomes_the_nearest_half(loops: Loops):
    values = hard_floats()
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    found, nan = narrowed(loops, "narrow_half", values).view(np.float16), np.isnan(values)
    assert np.isnan(found[nan]).all() and np.isinf(values).any()
    assert found[~nan].tobytes() == expected[~nan].tobytes()


def test_a_float_becomes_the_nearest_bfloat16(loops: Loops):
    values = hard_floats()
    found, finite = narrowed(loops, "narrow_bfloat", values), np.isfinite(values)
    assert ((found[np.isnan(values)] & 0x7FFF) > 0x7F80).all(), "NaN stays NaN, also when only its low bits say so"
    assert (found[finite] == nearest_bfloat(values[finite])).all()
    special, bits = zip(*SPECIAL_BFLOATS * 4, strict=True)  # four times: full vectors and a rest
    assert narrowed(loops, "narrow_bfloat", np.array(special, np.float32)).tolist() == list(bits)


def test_every_bfloat16_becomes_its_float(loops: Loops):
    every = np.arange(1 << 16, dtype=np.uint16)
    found = loops.convert("widen_bfloat", every, np.empty(1 << 16, np.float32))
    assert (found.view(np.uint32) == every.astype(np.uint32) << 16).all()


@settings(deadline=None, max_examples=40)
@given(length=st.integers(0, 70), offset=st.integers(0, 3))
def test_an_array_of_any_length_at_any_place_is_converted_and_updated_and_nothing_beside_it(
    every_loops: dict[str, Loops], length: int, offset: int
):
    part, values = (
        slice(offset, offset + length),
        np.random.default_rng(length).normal(size=length + 8).astype(np.float32),
    )
    halves, bfloats = values.astype(np.float16).view(np.uint16), nearest_bfloat(values)
    cases = {
        "narrow_half": (values, halves),
        "narrow_bfloat": (values, bfloats),
        "widen_half": (halves, halves.view(np.float16).astype(np.float32)),
        "widen_bfloat": (bfloats, (bfloats.astype(np.uint32) << 16).view(np.float32)),
    }
    for loops in every_loops.values():
        for name, (source, expected) in cases.items():
            out = np.full(length + 8, 7, expected.dtype)
            loops.convert(name, source[part], out[part])
            assert (out[part] == expected[part]).all()
            assert (np.delete(out, np.arange(length + 8)[part]) == 7).all()
        arrays = [np.ones(length + 8, np.float32) for _ in range(4)]
        loops.adam(*(array[part] for array in arrays), t=1)
        for array in arrays[:3]:
            assert (np.delete(array, np.arange(length + 8)[part]) == 1).all()
        assert (arrays[0][part] < 1).all()


@pytest.mark.parametrize("length", [1, 7, 8, 15, 16, 17, 31, 33, 64, 1000])
def test_adam_is_the_oracle_at_every_length(loops: Loops, length: int):
    rng = np.random.default_rng(length)
    w, m, v = (rng.normal(size=length).astype(np.float32) for _ in range(3))
    v = np.abs(v)
    exact = (w, m, v)
    for t in (1, 2, 3):
        grad = rng.normal(size=length).astype(np.float32)
        exact = oracle(*exact, t, grad)
        loops.adam(w, m, v, grad, t)
    for found, expected in zip((w, m, v), exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def oracle(w: np.ndarray, m: np.ndarray, v: np.ndarray, t: int, grad: np.ndarray) -> tuple[np.ndarray, ...]:
    options = {"lr": RATE, "grad_scale": 1.0, "beta1": BETA1, "beta2": BETA2, "eps": EPS, "weight_decay": 0.0}
    return adam_oracle(w, m, v, t, grad, **{name: float(np.float32(value)) for name, value in options.items()})


SIZES = [0.0, *(10.0**-e for e in range(19, 31)), 1e-38, 1e-40, 3e-44]
"""From gradients whose square is subnormal, over those whose square is 0, to those that are subnormal themselves."""
GRADS = np.array([*SIZES, *(-s for s in SIZES)], np.float32)


def assert_tiny_step(before: list[np.ndarray], after: list[np.ndarray], grad: np.ndarray, t: int) -> None:
    """The moments of the oracle, to the two smallest floats, and the weight that the moments as stored say."""
    _, m, v = oracle(*before, t, grad)
    np.testing.assert_allclose(after[1], m, rtol=1e-6, atol=2 * SUBNORMAL)
    np.testing.assert_allclose(after[2], v, rtol=1e-6, atol=2 * SUBNORMAL)
    beta1, beta2, eps, rate = (np.float64(np.float32(x)) for x in (BETA1, BETA2, EPS, RATE))
    m, v = (a.astype(np.float64) for a in after[1:])
    move = rate * m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
    np.testing.assert_allclose(after[0], before[0] - move, rtol=2e-6, atol=1e-6 * rate)


def assert_subnormal_is_not_zero(m: np.ndarray, v: np.ndarray) -> None:
    assert (v[:4] > 0).tolist() == [False, True, True, True], "of gradients of 1e-19, 1e-20 and 1e-21"
    assert m[SIZES.index(1e-40)] > 0


def test_adam_of_gradients_whose_square_is_subnormal_or_zero(loops: Loops):
    grad = np.tile(GRADS, 3)
    state = [np.zeros(grad.size, np.float32) for _ in range(3)]
    for t in (1, 2, 3):
        before = [a.copy() for a in state]
        loops.adam(*state, grad, t)
        assert_tiny_step(before, state, grad, t)
    assert_subnormal_is_not_zero(*state[1:])
    assert state[0][0] == 0, "no gradient, no step: 0/ε, not 0/0"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_operator_keeps_subnormal_moments_in_a_thread_that_flushes_them(
    call_kernel: Callable[..., int],
    threads_of: Callable[[int], AbstractContextManager[None]],
    flush_to_zero: Callable[[], AbstractContextManager[None]],
    threads: int,
):
    grad = np.tile(GRADS, 2000)  # several pieces of the parallel loop
    state = [np.zeros((1, grad.size), np.float32) for _ in range(3)]
    hyper = np.array([RATE, 1.0, 1.0, BETA1, BETA2, EPS], np.float32)
    integers = [np.array(values, np.int32) for values in ([0], [0], [0, 1])]
    for t in (1, 2, 3):
        before = [a[0].copy() for a in state]
        with threads_of(threads), flush_to_zero():
            assert call_kernel("AdamRows", *state, grad[None], *integers, hyper, *np.zeros((2, 1), np.float32)) == 0
        assert_tiny_step(before, [a[0] for a in state], grad, t)
    assert_subnormal_is_not_zero(state[1][0], state[2][0])


def test_the_sum_of_squares_is_numpys(loops: Loops):
    rng = np.random.default_rng(0)
    for length in (0, 1, 5, 16, 33, 4097):
        values = (rng.normal(size=length) * 10.0 ** rng.integers(-15, 15, length)).astype(np.float32)
        assert loops.square_sum(values) == pytest.approx((values.astype(np.float64) ** 2).sum(), rel=1e-14)
    for size in (1e30, 1e-30):
        assert loops.square_sum(np.full(3, size, np.float32)) == pytest.approx(3 * size**2, rel=1e-6)


def test_instruction_sets_agree_to_rounding(every_loops: dict[str, Loops]):
    rng = np.random.default_rng(1)
    start, results = np.abs(rng.normal(size=(3, 3001))).astype(np.float32), {}
    grads = rng.normal(size=(5, 3001)).astype(np.float32)
    for name, loops in every_loops.items():
        results[name] = start.copy()
        for t, grad in enumerate(grads, 1):
            loops.adam(*results[name], grad, t)
    for found in results.values():
        np.testing.assert_allclose(found, results["scalar"], rtol=1e-6, atol=1e-6)
    assert (results["scalar"] != start).all()
