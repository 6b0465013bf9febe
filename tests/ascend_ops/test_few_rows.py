"""The operators of decoding against float64, in every instruction set and precision; and that a row never depends on the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ascend_ops import few_rows
from ascend_ops.activation import activation_oracle
from ascend_ops.few_rows import (
    FFN,
    FfnWeights,
    FindRows,
    KeyedRows,
    LaneAttention,
    Matrix,
    NormRows,
    Projection,
    Projections,
    TiedHead,
)
from ascend_ops.large_pages import LargePages
from ascend_ops.library import cpu_library

aligned = LargePages().zeros
PRECISIONS = ("float32", "float16", "int8", "int4")
WIDTHS = [(24, 40, 2), (64, 640, 4), (51, 33, 3), (576, 96, 9)]
"""Hidden, ffn, heads: less than a vector, more than a slice, not a multiple of anything, more than is added at a time."""
IN_GROUPS = [(64, 640, 4), (192, 64, 2), (576, 320, 9)]
"""The same for int4: one group, three, and more than is added at a time, by tiles of each width."""
ROWS = [1, 2, 7, 70]


def widths(precision: str) -> list[tuple[int, int, int]]:
    return IN_GROUPS if precision == "int4" else WIDTHS


def forget() -> None:
    few_rows._libraries.cache_clear()
    few_rows._kernel.cache_clear()


@pytest.fixture
def isa(isa_library: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels of each instruction set."""
    monkeypatch.setattr(few_rows, "cpu_library", lambda: isa_library)
    forget()
    yield
    forget()


def drawn(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    array = aligned(shape)
    array[...] = scale * np.random.default_rng(seed).standard_normal(shape)
    return array


def copied(values: np.ndarray, precision: str) -> Matrix:
    return Matrix.copy_of(values, precision, LargePages())


def matrix(seed: int, precision: str, *shape: int) -> Matrix:
    return copied(drawn(seed, *shape, scale=shape[-1] ** -0.5), precision)


def wide(m: Matrix) -> np.ndarray:
    return m.as_float32().astype(np.float64)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)


def aligned_copy(values: np.ndarray) -> np.ndarray:
    copy = aligned(values.shape, values.dtype)
    copy[...] = values
    return copy


def check_rows(compute: Callable[..., np.ndarray], inputs: list[np.ndarray], expected: np.ndarray) -> None:
    """`compute` of the inputs is close to what is expected, and gives every row alone the same bits."""
    together = compute(*map(aligned_copy, inputs))
    close(together, expected)
    alone = [compute(*(aligned_copy(array[t : t + 1]) for array in inputs)) for t in range(len(expected))]
    assert (np.concatenate(alone) == together).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_linear_layers_and_the_head_are_the_oracle(isa, precision):
    for hidden, ffn, _ in widths(precision):
        weights = [matrix(i, precision, hidden, ffn) for i in range(2)]
        biases = [drawn(9 + i, ffn) for i in range(2)]
        table = matrix(1, precision, 700, hidden)

        def layers(x, before, weights=weights, biases=biases) -> np.ndarray:
            y = aligned(before.shape)
            projections = (
                Projection(x, weights[0], biases[0], y),
                Projection(x, weights[1], biases[1], before, adds=True),
            )
            Projections([*projections])(len(x))
            return np.concatenate([y, before], axis=1)

        def head(x, table=table) -> np.ndarray:
            logits = np.full((len(x), 700), np.nan, np.float32)
            TiedHead(x, table)(len(x), logits)
            return logits

        for rows in ROWS:
            x, before = drawn(rows, rows, hidden), drawn(rows + 1, rows, ffn)
            products = [x.astype(np.float64) @ wide(w) + b for w, b in zip(weights, biases, strict=True)]
            check_rows(layers, [x, before], np.concatenate([products[0], before + products[1]], axis=1))
            check_rows(head, [x], x.astype(np.float64) @ wide(table).T)


def test_layer_norm_is_the_oracle(isa):
    for hidden, _, _ in WIDTHS:
        x, gain, bias = drawn(0, 70, hidden, scale=3) + np.float32(5), drawn(1, hidden), drawn(2, hidden)
        y = aligned(x.shape)
        NormRows(x, gain, bias, y)(len(x))
        exact = x.astype(np.float64)
        centred = exact - exact.mean(axis=1, keepdims=True)
        close(y, centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * gain + bias)
        NormRows(x, gain, bias, x)(len(x))
        assert (x == y).all(), "in place"
        e, scale = drawn(2, 70, hidden), np.array([0.3], np.float32)
        sums = y + scale * e
        NormRows(x, gain, bias, y, (scale, e))(len(x))
        close(x, sums)
        NormRows(x.copy(), gain, bias, sums)(len(x))
        assert (y == sums).all(), "after the sum"


def test_rows_are_found_by_their_keys():
    """Rows of one entry of two domains, of which half were met, beside an entry of which none was."""
    rng, (V, R, T) = np.random.default_rng(0), (50, 23, 40)
    row_V, before_V1 = (rng.integers(R, size=size).astype(np.int32) for size in (V, V + 1))
    keys_U, weight_UW = np.arange(0, 2 * R, 2), drawn(1, R, 5)
    ids_T, before_T = rng.integers(V, size=(2, T))
    domains_T, positions_T = rng.integers(2, size=(2, T))
    unmet = KeyedRows(row_V, before_V1, R, 0, keys_U[:0], drawn(2, 0, 3))
    find = FindRows([KeyedRows(row_V, before_V1, R, R, keys_U, weight_UW), unmet], T + 1)
    find.e[:] = 1
    e_TH = find(ids_T, domains_T, positions_T, before_T)
    key_T = (row_V[ids_T] + before_V1[np.where(positions_T == 0, V, before_T)]) % R + domains_T * R
    expected_TH = np.zeros((T, 8), np.float32)
    expected_TH[key_T % 2 == 0, :5] = weight_UW[key_T[key_T % 2 == 0] // 2]
    assert (e_TH == expected_TH).all() and e_TH.any()
    assert (find.e[:T] == e_TH).all() and (find.e[T] == 1).all()


@pytest.mark.parametrize(
    ("precision", "activation"), [*((p, "fast_gelu") for p in PRECISIONS), ("float32", "tanh"), ("int8", "erf")]
)
def test_each_row_meets_its_expert(isa, precision, activation):
    for hidden, ffn, _ in widths(precision)[:3]:
        experts = [
            FfnWeights(
                matrix(e, precision, ffn, hidden),
                drawn(e, ffn),
                matrix(e + 5, precision, ffn, hidden),
                drawn(e + 6, hidden),
            )
            for e in range(3)
        ]

        def routed(x, before, number_T, experts=experts) -> np.ndarray:
            FFN(experts, activation, x, before)(len(x), number_T.ctypes.data)
            return before

        def ffn_of(x: np.ndarray, w: FfnWeights) -> np.ndarray:
            inner = x.astype(np.float64) @ wide(w.w1).T + w.b1
            return activation_oracle(inner, activation) @ wide(w.w2) + w.b2

        for rows in (*ROWS, 300):
            x, before = drawn(rows, rows, hidden), drawn(rows + 1, rows, hidden)
            number_T, expected = np.random.default_rng(rows).integers(0, 3, rows), before.astype(np.float64)
            for e, w in enumerate(experts):
                expected[number_T == e] += ffn_of(x[number_T == e], w)
            check_rows(routed, [x, before, number_T.astype(np.int32)], expected)
            y = aligned(x.shape)
            FFN(experts[:1], activation, x, y)(rows)
            close(y, ffn_of(x, experts[0]))


def attention_oracle(q, k, v, lanes, at, first) -> np.ndarray:
    """Each token sees those of its lane from the first of its document up to itself."""
    out = np.zeros_like(q, dtype=np.float64)
    for t in range(len(q)):
        seen = [s for s in range(len(q)) if lanes[s] == lanes[t] and first[t] <= at[s] <= at[t]]
        scores = np.einsum("nd,snd->ns", q[t].astype(np.float64), k[seen]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[t] = np.einsum("ns,snd->nd", weights / weights.sum(axis=1, keepdims=True), v[seen])
    return out


@pytest.mark.parametrize("width", [12, 16, 64, 80])
def test_attention_sees_its_document_in_its_lane_and_gives_the_same_bits_token_by_token(isa, width):
    heads, lengths = 2, {0: 45, 2: 1, 3: 20}
    documents = {0: [0, 17, 18], 2: [0], 3: [0, 4]}
    lanes = np.concatenate([np.full(n, lane) for lane, n in lengths.items()]).astype(np.int32)
    at = np.concatenate([np.arange(n) for n in lengths.values()]).astype(np.int32)
    first = np.array([max(b for b in documents[lane] if b <= i) for lane, i in zip(lanes, at, strict=True)], np.int32)
    q, k, v = (drawn(i, len(at), heads * width, scale=2) for i in range(3))

    def compute(chunks: list[np.ndarray]) -> np.ndarray:
        caches = [np.full((4, heads, 50, width), np.nan, np.float32) for _ in range(2)]  # of what is not there
        actual = np.full_like(q, np.nan)
        for some in chunks:
            mine = [aligned((len(some), heads * width)) for _ in range(4)]
            for new, whole in zip(mine, (q, k, v), strict=False):
                new[...] = whole[some]
            lane, number, begin = (array[some].copy() for array in (lanes, at, first))
            everywhere = [array.ctypes.data for array in (lane, number)]
            attend = LaneAttention(*mine, *caches)
            attend(len(some), *everywhere, len(some), *everywhere, begin.ctypes.data)
            actual[some] = mine[3]
            asking = np.arange(len(some))[1::3]
            of_some = [array[asking].copy() for array in (lane, number, begin)]
            mine[0][: len(asking)] = q[some][asking]
            attend(len(some), *everywhere, len(asking), *(array.ctypes.data for array in of_some))
            assert (mine[3][: len(asking)] == actual[some][asking]).all(), "whoever else asks, or does not"
        return actual

    actual = compute([np.arange(len(at))])
    shaped = [array.reshape(len(at), heads, width) for array in (q, k, v)]
    close(actual, attention_oracle(*shaped, lanes, at, first).reshape(actual.shape))
    assert (compute([np.array([t]) for t in range(len(at))]) == actual).all()
    assert (compute(np.array_split(np.arange(len(at)), 5)) == actual).all()


def test_scores_of_any_size_make_a_softmax(isa):
    q, k, v = (aligned((1, 16)) for _ in range(3))
    caches = [aligned((1, 1, 40, 16)) for _ in range(2)]
    caches[0][0, 0, :20] = np.linspace(-1e4, 1e4, 20)[:, None]
    caches[1][0, 0, :20] = np.arange(20)[:, None]
    q[...], k[...] = 1, -1e4
    out, zero, at = aligned((1, 16)), np.zeros(1, np.int32), np.full(1, 20, np.int32)
    LaneAttention(q, k, v, out, *caches)(
        1, *(array.ctypes.data for array in (zero, at)), 1, *(array.ctypes.data for array in (zero, at, zero))
    )
    assert (out == 19).all()


def test_copies_in_a_precision_are_the_nearest_and_as_small_as_it():
    values = drawn(0, 30, 50)
    values[3] = 0
    same, half, byte = (copied(values, precision) for precision in PRECISIONS[:3])
    assert (same.as_float32() == values).all()
    assert (half.as_float32() == values.astype(np.float16)).all()
    assert half.nbytes == values.nbytes // 2 and byte.nbytes == values.nbytes // 4 + 4 * 30
    error = np.abs(byte.as_float32() - values).max(axis=1)
    assert (error <= np.abs(values).max(axis=1) / 254 * (1 + 1e-5)).all() and (byte.as_float32()[3] == 0).all()


def test_four_bits_are_half_a_step_away_at_most_on_the_side_that_has_eight():
    values = drawn(0, 30, 192)
    values[3, :64] = 0
    values[4, 5] = -9
    nibbles = copied(values, "int4")
    actual = nibbles.as_float32()
    assert nibbles.shape == values.shape and nibbles.nbytes == values.size // 2 + 4 * 30 * 3
    groups, steps = values.reshape(30, 3, 64), np.abs(nibbles.scales)[:, :, None]
    error = np.abs(actual.reshape(groups.shape) - groups)
    inside = groups * -np.sign(nibbles.scales)[:, :, None] >= -7.5 * steps
    assert (error <= steps * np.where(inside, 0.5, 1) * (1 + 1e-5)).all()
    assert (np.abs(groups).max(axis=2)[:, :, None] <= 8 * steps * (1 + 1e-6)).all()
    assert (actual[3, :64] == 0).all() and actual[4, 5] == -9
    some = nibbles.rows(slice(2, 5))
    assert (some.as_float32() == actual[2:5]).all() and some.shape == (3, 192)


def test_the_number_of_threads_changes_nothing(tmp_path, threads_of):
    x = drawn(0, 70, 64)
    experts = [
        FfnWeights(matrix(e, "float32", 300, 64), drawn(e, 300), matrix(e, "float32", 300, 64), drawn(e, 64))
        for e in range(2)
    ]
    number_T, actual = np.arange(70, dtype=np.int32) % 2, []
    for threads in (1, 2, 7):
        with pytest.MonkeyPatch.context() as patch, threads_of(threads):
            copy = shutil.copy(cpu_library(), tmp_path / f"{threads}.so")  # a library starts its threads once
            patch.setattr(few_rows, "cpu_library", lambda copy=copy: str(copy))
            forget()
            for rows in (1, 9, 70):
                y = aligned(x.shape)
                FFN(experts, "erf", x, y)(rows, number_T.ctypes.data)
                actual.append((rows, y[:rows].tobytes()))
    forget()
    assert len(set(actual)) == 3


def test_mindspore_does_not_take_the_threads_away():
    asked = "import mindspore, ctypes; from ascend_ops.library import cpu_library; print(ctypes.CDLL(cpu_library()).ShareThreads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) == len(os.sched_getaffinity(0)), "it sets OMP_NUM_THREADS to 1 when it is imported"
