"""Adam on host rows, in each instruction set: the float64 oracle on the rows that were used, and not one bit of difference on the
others; and the sum of squares that the norm is made of."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
from helpers.kernel_cases import from_bfloat16, to_bfloat16
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_ops.adam import adam_oracle

HYPER = {"lr": 1e-2, "grad_scale": 0.5, "apply": 1.0, "beta1": 0.8, "beta2": 0.95, "eps": 1e-20}
SUBNORMAL = float(np.finfo(np.float32).smallest_subnormal)
Call = Callable[..., int]
Threads = Callable[[int], AbstractContextManager[None]]


class Store:
    """K rows of one tensor [K, P] with its Adam state, and the kernel called on it."""

    def __init__(self, call_kernel: Call, rows: int, width: int = 5, seed: int = 0, moments: type = np.float32):
        self.rng = np.random.default_rng(seed)
        self.w = self.rng.normal(size=(rows, width)).astype(np.float32)
        self.m, self.v = (np.zeros((rows, width), moments) for _ in range(2))
        self.step = np.zeros(rows, np.int32)
        self.call = call_kernel

    def state(self) -> list[np.ndarray]:
        return [self.w, self.m, self.v, self.step]

    def update(
        self, grad: np.ndarray, active: list[int], tokens: list[int], decay: float = 0.0, **hyper: float
    ) -> tuple[int, float]:
        """tokens: of each active entry. Returns the number of the failed check and the rows updated."""
        values = np.array(list({**HYPER, **hyper}.values()), np.float32)
        offsets, updated = np.cumsum([0, *tokens]).astype(np.int32), np.full(1, -1.0, np.float32)
        entries, decays = np.array(active, np.int32), np.array([decay], np.float32)
        self.grad = grad if grad.dtype == np.float16 else grad.astype(np.float32)
        arrays = [self.w, self.m, self.v, self.grad]
        rest = [values, decays, updated]
        return self.call("AdamRows", *arrays, self.step, entries, offsets, *rest), float(updated[0])


def oracle(w, m, v, t, grad, **hyper) -> tuple[np.ndarray, ...]:
    values = {**HYPER, "weight_decay": 0.0, **hyper}
    del values["apply"]
    # The kernel receives float32: the oracle takes the same numbers.
    return adam_oracle(w, m, v, t, grad, **{name: float(np.float32(value)) for name, value in values.items()})


def bits(arrays: list[np.ndarray]) -> list[bytes]:
    return [array.tobytes() for array in arrays]


@settings(max_examples=15)
@given(data=st.data(), rows=st.integers(1, 6), width=st.integers(1, 70), seed=st.integers(0, 999))
def test_used_rows_follow_the_oracle_by_their_own_step_count_and_others_keep_every_bit(
    call_kernel_of_isa: Call, data: st.DataObject, rows: int, width: int, seed: int
):
    store = Store(call_kernel_of_isa, rows, width, seed)
    exact = [list(row) for row in zip(*(a.astype(np.float64) for a in (store.w, store.m, store.v)), strict=True)]
    for _ in range(4):
        active = data.draw(st.lists(st.integers(0, rows - 1), unique=True, min_size=1).map(sorted))
        tokens = data.draw(st.lists(st.integers(0, 3), min_size=len(active), max_size=len(active)))
        used = [row for row, count in zip(active, tokens, strict=True) if count]
        before = [a.copy() for a in store.state()]
        grad = store.rng.normal(size=(len(active), width)).astype(np.float32)
        assert store.update(grad, active, tokens, decay=0.1) == (0, len(used))
        for row in range(rows):
            if row in used:
                gradient = grad[active.index(row)]
                exact[row] = list(oracle(*exact[row], store.step[row], gradient, weight_decay=0.1))
                assert store.step[row] == before[3][row] + 1
            else:
                assert bits([a[row] for a in store.state()]) == bits([a[row] for a in before])
            for actual, expected in zip((store.w[row], store.m[row], store.v[row]), exact[row], strict=True):
                np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def flush_to_zero(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], AbstractContextManager[None]]:
    """`with flush_to_zero():` this thread treats subnormal numbers as zeros, as some libraries make it do."""
    folder = tmp_path_factory.mktemp("csr")
    (folder / "csr.cc").write_text(
        "#include <immintrin.h>\n"
        'extern "C" unsigned Get() { return _mm_getcsr(); }\n'
        'extern "C" void Set(unsigned csr) { _mm_setcsr(csr); }\n'
    )
    if subprocess.run(["g++", "-shared", "-fPIC", "-o", folder / "csr.so", folder / "csr.cc"]).returncode:
        pytest.skip("not an x86 processor")
    helper = ctypes.CDLL(str(folder / "csr.so"))
    helper.Get.restype, helper.Set.argtypes = ctypes.c_uint32, [ctypes.c_uint32]

    @contextmanager
    def flushed() -> Iterator[None]:
        before = helper.Get()
        helper.Set(before | 0x8040)
        try:
            yield
            assert helper.Get() & 0x8040 == 0x8040, "the kernel should leave the setting alone"
        finally:
            helper.Set(before)

    return flushed


SIZES = [0.0, *(10.0**-e for e in range(19, 31)), 1e-38, 1e-40, 3e-44, 1e-15, 1.0, 1e10, 1e15]
"""From gradients whose square is subnormal, over zero squares, to subnormal gradients; and large ones."""
GRADS = np.array([*SIZES, *(-s for s in SIZES)], np.float32)


def test_gradients_of_any_size_follow_the_oracle_also_in_a_thread_that_flushes_subnormal_numbers(
    call_kernel_of_isa: Call, threads_of: Threads, flush_to_zero: Callable[[], AbstractContextManager[None]]
):
    """The moments to the two smallest floats, and the weight that the moments as stored say."""
    grad = np.tile(GRADS, 2000)[None]  # several pieces of the parallel loop
    for threads in (1, 2):
        store = Store(call_kernel_of_isa, 1, grad.size)
        store.w[...] = 0
        for t in (1, 2, 3):
            before = [a[0].copy() for a in store.state()[:3]]
            with threads_of(threads), flush_to_zero():
                assert store.update(grad, [0], [1]) == (0, 1)
            exact = oracle(*before, t, grad[0])
            for actual, expected in zip((store.m[0], store.v[0]), exact[1:], strict=True):
                np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=2 * SUBNORMAL)
            beta1, beta2, eps, rate = (np.float64(np.float32(HYPER[name])) for name in ("beta1", "beta2", "eps", "lr"))
            m, v = store.m[0].astype(np.float64), store.v[0].astype(np.float64)
            move = rate * m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
            np.testing.assert_allclose(store.w[0], before[0] - move, rtol=2e-6, atol=1e-6 * rate)
        assert store.w[0, 0] == 0, "no gradient, no step: 0/ε, not 0/0"
        assert (store.v[0, :3] > 0).tolist() == [False, True, True] and store.m[0, SIZES.index(1e-40)] > 0


def test_apply_0_changes_nothing_even_with_gradients_that_are_not_numbers(call_kernel_of_isa: Call):
    store = Store(call_kernel_of_isa, 2)
    store.update(np.ones((2, 5)), [0, 1], [1, 1])
    before = bits(store.state())
    assert store.update(np.full((2, 5), np.nan), [0, 1], [1, 1], decay=0.1, apply=0.0) == (0, 0)
    assert bits(store.state()) == before


def test_a_half_gradient_is_the_float_that_it_says(call_kernel_of_isa: Call):
    """Every finite half, in rows that leave a rest after whole vectors and whole blocks."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    grad = np.stack([finite[5:], finite[:-5]])
    halves, floats = (Store(call_kernel_of_isa, 2, grad.shape[1]) for _ in range(2))
    assert halves.update(grad, [0, 1], [1, 1]) == floats.update(grad.astype(np.float32), [0, 1], [1, 1]) == (0, 2)
    assert bits(halves.state()) == bits(floats.state())


@settings(max_examples=8)
@given(width=st.sampled_from([1, 5, 16, 33, 2050]), seed=st.integers(0, 999), half=st.booleans())
def test_bfloat16_moments_are_the_oracles_rounded_after_every_step(
    call_kernel_of_isa: Call, width: int, seed: int, half: bool
):
    """From the stored moments the float64 step, then to the nearest bfloat16; the weight moves by the moments before rounding."""
    store = Store(call_kernel_of_isa, 3, width, seed, np.uint16)
    for t in range(1, 6):
        before = [a.copy() for a in store.state()]
        grad = store.rng.normal(size=(2, width)).astype(np.float16 if half else np.float32)
        assert store.update(grad, [0, 2], [1, 2], decay=0.1) == (0, 2)
        for entry, row in enumerate((0, 2)):
            stored = [from_bfloat16(a[row]) for a in before[1:3]]
            w, *moments = oracle(before[0][row], *stored, t, grad[entry], weight_decay=0.1)
            np.testing.assert_allclose(store.w[row], w, rtol=2e-6, atol=1e-7)
            g = np.abs(grad[entry].astype(np.float64))
            for actual, exact, old, new in zip((store.m, store.v), moments, stored, (g, g * g), strict=True):
                slack = 3e-7 * (np.abs(old) + new)  # of float32
                assert (from_bfloat16(to_bfloat16(exact - slack)) <= from_bfloat16(actual[row])).all()
                assert (from_bfloat16(actual[row]) <= from_bfloat16(to_bfloat16(exact + slack))).all()
        assert bits([a[1] for a in store.state()]) == bits([a[1] for a in before])


def test_moments_are_rounded_to_the_nearest_bfloat16_and_read_as_their_floats(call_kernel_of_isa: Call):
    """Every bfloat16, the middles between two, and the floats beside them; NaN and infinity stay what they are."""
    every = np.arange(1 << 16, dtype=np.uint32) << 16
    values = np.concatenate([every | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(np.float32)
    values = values[values != 0]  # a sum with the moment before has no negative zero
    store = Store(call_kernel_of_isa, 1, values.size, moments=np.uint16)
    assert store.update(values[None], [0], [1], beta1=0.0, grad_scale=1.0) == (0, 1)
    nan = np.isnan(values)
    assert np.isnan(from_bfloat16(store.m[0][nan])).all()
    assert (store.m[0][~nan] == to_bfloat16(values[~nan])).all()
    assert to_bfloat16(np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20])).tolist() == [
        0x3F80, 0x3F82, 0x3F81,
    ]  # fmt: skip
    finite = (every >> 16).astype(np.uint16)[np.isfinite(every.view(np.float32))]
    narrow, wide = (Store(call_kernel_of_isa, 1, finite.size, moments=kind) for kind in (np.uint16, np.float32))
    narrow.m[0], wide.m[0], narrow.v[...], wide.v[...] = finite, from_bfloat16(finite), 0x3F80, 1.0
    for moments in (narrow, wide):
        moments.update(np.zeros((1, finite.size)), [0], [1])
    assert narrow.w.tobytes() == wide.w.tobytes()


def test_a_row_that_does_not_exist_is_refused_before_anything_changes(call_kernel: Call):
    store = Store(call_kernel, 2)
    before = bits(store.state())
    for active in ([0, 2], [-1, 0]):
        assert store.update(np.ones((2, 5)), active, [1, 1]) == (4, -1)
        assert store.update(np.ones((2, 5)), active, [0, 0]) == (0, 0), "a place that no token uses"
    assert bits(store.state()) == before


def square_sum(call_kernel: Call, *tensors: np.ndarray) -> np.float32:
    total = np.full(1, -1.0, np.float32)
    assert call_kernel("SquareSum", *tensors, total) == 0
    return total[0]


def tensors_of(rng: np.random.Generator, dtype: type = np.float32) -> list[np.ndarray]:
    """Of all ranks, longer and shorter than a piece of the parallel loop, of sizes that are far apart."""
    shapes: list[tuple[int, ...]] = [(), (1,), (7, 3), (0, 4), (40_001,), (3, 16384)]
    low = -3 if dtype == np.float16 else -12
    return [np.asarray(rng.normal(size=s) * 10.0 ** rng.integers(low, 3, s), dtype) for s in shapes]


def test_sums_of_squares_of_each_tensor_and_of_all_are_float64s(call_kernel_of_isa: Call):
    tensors = [*tensors_of(np.random.default_rng(0)), *tensors_of(np.random.default_rng(1), np.float16)]
    exact = [(tensor.astype(np.float64) ** 2).sum() for tensor in tensors]
    sums = np.full(1 + len(tensors), -1.0, np.float32)
    assert call_kernel_of_isa("SquareSum", *tensors, sums) == 0
    assert sums[:1].tobytes() == square_sum(call_kernel_of_isa, *tensors).tobytes()
    np.testing.assert_allclose(sums, [sum(exact), *exact], rtol=1e-6)
    assert call_kernel_of_isa("SquareSum", *tensors, np.zeros(3, np.float32)) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_element_that_is_not_finite_shows_in_the_sum_of_squares(call_kernel_of_isa: Call, dtype: type):
    for position in (0, 16383, 16384, 40_000):
        values = np.ones(40_001, dtype)
        for infinity in (np.inf, -np.inf):
            values[position] = infinity
            assert square_sum(call_kernel_of_isa, values) == np.inf
        values[position] = np.nan
        assert np.isnan(square_sum(call_kernel_of_isa, values))


def test_squares_that_float32_cannot_hold_are_added_all_the_same(call_kernel_of_isa: Call):
    """1e19 squared is near the end of float32 and 2e-23 squared below its start; only the sum has to fit."""
    uneven = np.ones(200_000, np.float32)
    uneven[1:] = 1e-4
    for values, expected in (
        (np.full(3, 1e19, np.float32), 3e38),
        (np.full(1_000_000, 2e-23, np.float32), 4e-40),
        (np.full(3, 1e30, np.float32), np.inf),  # an overflow: the step is skipped
        (uneven, 1 + 199_999e-8),
    ):
        assert square_sum(call_kernel_of_isa, values) == pytest.approx(expected, rel=1e-5)


def test_any_number_of_threads_gives_the_same_bits(call_kernel: Call, threads_of: Threads):
    tensors, results = tensors_of(np.random.default_rng(0)), set()
    for threads in (1, 2, 3):
        store = Store(call_kernel, 3, width=70_001)
        with threads_of(threads):
            store.update(store.rng.normal(size=(2, 70_001)), [0, 2], [1, 1])
            results.add((square_sum(call_kernel, *tensors).tobytes(), *bits(store.state())))
    assert len(results) == 1
