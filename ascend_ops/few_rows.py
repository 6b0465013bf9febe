"""Operators for decoding on the CPU with a KV cache, on NumPy arrays and without MindSpore.

An operator is constructed once, on arrays that stay where they are, and called for every pass with its number of rows only: passing
arrays would cost more than the smallest operators compute. It reads and writes the first rows of these arrays, and keeps the arrays
alive, because its kernel has only their addresses. Results of a row do not depend on the other rows of the call, nor on the number
of threads. Arrays may lie anywhere, but are fastest in `LargePages`.

Shape suffixes: T rows (tokens), H hidden, F ffn, n heads, d = H/n, L lanes (cache parts of one text each), S tokens of a lane.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from ascend_ops.large_pages import LargePages
from ascend_ops.library import cpu_library

StoredPrecision = Literal["float32", "float16", "int8"]
"""Storage format of a matrix in a file: float32, the nearest float16, or int8 with a float32 scale for each of its rows."""
Precision = Literal[StoredPrecision, "int4"]
"""Storage format of a matrix in memory: as in a file, or four bits with a float32 scale for each `GROUP` columns of a row."""

GROUP = 64
"""Number of columns of an int4 matrix that share a scale; the number of its columns is a multiple of it."""
_KINDS = {"float32": 0, "float16": 1, "int8": 2, "uint16": 3}
_BLOCK = 4096
"""Number of rows that are quantised at a time."""
_ACTIVATIONS = {"fast_gelu": 0, "tanh": 1, "erf": 2}
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True)
class Matrix:
    """Weight matrix in a storage format (`Precision`).

    values: its elements; if the format is int4, uint16 words of four of them each, in the order of nibbles.h. scales: float32 of
    each row if the format is int8, of each group, [rows, groups], if it is int4, else None.
    """

    values: np.ndarray
    scales: np.ndarray | None = None

    @classmethod
    def copy_of(cls, values: np.ndarray, precision: Precision, room: LargePages) -> Matrix:
        """Convert a float32 matrix to a storage format, in memory of `room`. An int4 matrix needs a multiple of GROUP columns."""
        rows, columns = values.shape
        if precision == "int4":
            copy, scales = room.zeros((rows, columns // 4), np.uint16), room.zeros((rows, columns // GROUP))
        elif precision == "int8":
            copy, scales = room.zeros(values.shape, precision), room.zeros((rows,))
        else:
            copy = room.zeros(values.shape, precision)
            copy[...] = values
            return cls(copy)
        quantise = _quantise_in_groups if precision == "int4" else _quantise_by_row
        for first in range(0, rows, _BLOCK):  # a word table is large, and so would be its intermediate arrays
            block = slice(first, first + _BLOCK)
            copy[block], scales[block] = quantise(values[block])
        return cls(copy, scales)

    def copy_to(self, room: LargePages) -> Matrix:
        """Return a copy of the matrix in memory of `room`."""
        return Matrix(_copy(self.values, room), None if self.scales is None else _copy(self.scales, room))

    def rows(self, selection: slice | np.ndarray) -> Matrix:
        """Return the selected rows as a matrix. selection: index of the first axis."""
        return Matrix(self.values[selection], None if self.scales is None else self.scales[selection])

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns of the matrix."""
        rows, columns = self.values.shape
        return rows, 4 * columns if self.values.dtype == np.uint16 else columns  # a word of int4 has four numbers

    @property
    def kind(self) -> int:
        """Number of the storage format for the kernels."""
        return _KINDS[self.values.dtype.name]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def as_float32(self) -> np.ndarray:
        """Return the dequantised values, as the operators use them."""
        if self.values.dtype == np.uint16 and self.scales is not None:  # int4
            rows, groups = self.scales.shape
            numbers = self.values.reshape(rows, groups, 1, -1) >> _SHIFTS & 15
            signed = (numbers ^ 8).astype(np.float32) - 8  # from two's complement
            return (signed * self.scales[:, :, None, None]).reshape(self.shape)
        unscaled = self.values.astype(np.float32, copy=False)
        return unscaled if self.scales is None else unscaled * self.scales[:, None]


def _copy(values: np.ndarray, room: LargePages) -> np.ndarray:
    copy = room.zeros(values.shape, values.dtype.name)
    copy[...] = values
    return copy


_SHIFTS = np.arange(0, 16, 4, dtype=np.uint16)[:, None]
"""Bits of a word below each of its four numbers."""


def _quantise_by_row(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise rows to int8. Return their numbers, still as floats, and the scale of each row."""
    largest = np.abs(values).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(values / scales[:, None]), scales


def _quantise_in_groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise rows to int4. Return words of four numbers [rows, columns/4], and the scale of each group [rows, groups].

    Numbers are -8 … 7. The value of a group that is farthest from 0 becomes -8; if it is positive, the scale is negative.
    """
    groups = values.reshape(len(values), -1, GROUP)
    farthest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    scales = np.where(farthest != 0, farthest / -8, 1).astype(np.float32)
    numbers = np.clip(np.rint(groups / scales[:, :, None]), -8, 7).astype(np.int16) & 15
    words = numbers.view(np.uint16).reshape(*scales.shape, 4, -1) << _SHIFTS
    return words.sum(axis=2, dtype=np.uint16).reshape(len(values), -1), scales


@dataclass(frozen=True)
class Projection:
    """Linear layer of decoding: y [T, out] = x [T, in] · weight [in, out] + bias [out]. adds: True to add the result to y."""

    x: np.ndarray
    weight: Matrix
    bias: np.ndarray
    y: np.ndarray
    adds: bool = False


class _ProjectionFields(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("x", "weight", "scale")),
        *((name, _NUMBER) for name in ("kind", "inputs", "outputs", "transposed")),
        ("bias", _POINTER),
        ("y", _POINTER),
        ("adds", _NUMBER),
    ]


class Projections:
    """Linear layers of decoding that do not read each other's results, in one call. call(rows: number of rows)"""

    def __init__(self, layers: Sequence[Projection]):
        self._layers = list(layers)
        self._fields = (_ProjectionFields * len(layers))(*(_fields_of(layer) for layer in layers))
        self._call = _kernel("HostLinears")
        self._arguments = ctypes.addressof(self._fields), len(layers)

    def __call__(self, rows: int) -> None:
        self._call(rows, *self._arguments)


def _fields_of(layer: Projection) -> _ProjectionFields:
    """Return a layer as the struct Linear of decode.cc."""
    inputs, outputs = layer.weight.shape
    assert layer.x.shape[1] == inputs and layer.y.shape[1] == outputs
    return _ProjectionFields(
        _address(layer.x, np.float32),
        _address(layer.weight.values),
        _address(layer.weight.scales, np.float32),
        layer.weight.kind,
        inputs,
        outputs,
        0,
        _address(layer.bias, np.float32),
        _address(layer.y, np.float32),
        layer.adds,
    )


class TiedHead:
    """Output head of decoding: logits [T, R] = x [T, H] · weight [R, H]. call(rows, logits) writes the first rows of `logits`."""

    def __init__(self, x: np.ndarray, weight: Matrix):
        self._arrays = x, weight
        outputs, inputs = weight.shape
        assert x.shape[1] == inputs
        addresses = (_address(x, np.float32), _address(weight.values), _address(weight.scales, np.float32))
        self._fields = _ProjectionFields(*addresses, weight.kind, inputs, outputs, 1, None, None, 0)
        self._call, self._argument = _kernel("HostLinears"), ctypes.addressof(self._fields)

    def __call__(self, rows: int, logits: np.ndarray) -> None:
        self._fields.y = _address(logits, np.float32)
        self._call(rows, self._argument, 1)


class NormRows:
    """LayerNorm of decoding, with ε = 1e-5: y = LayerNorm(x); y may be x. call(rows: number of rows)

    added: (scale [1], e [T, H]): x += scale · e before; None: x stays.
    """

    def __init__(
        self,
        x: np.ndarray,
        gain: np.ndarray,
        bias: np.ndarray,
        y: np.ndarray,
        added: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        assert x.shape[1] == y.shape[1] == len(gain) == len(bias)
        assert added is None or (added[0].shape == (1,) and added[1].shape[1] == x.shape[1])
        self._arrays = x, gain, bias, y, added
        self._call = _kernel("HostNorm")
        added_addresses = (_address(array, np.float32) for array in added or (None, None))
        self._arguments = *(_address(array, np.float32) for array in (x, gain, bias, y)), x.shape[1], *added_addresses

    def __call__(self, rows: int) -> None:
        self._call(rows, *self._arguments)


@dataclass(frozen=True)
class KeyedRows:
    """Rows of an entry of `model.rows`, found by key: keys_U ascending, and weight_UW of the row of each key.

    A token's key is row_V[id] + before_V1[id before it], modulo `rows`, plus domain · of_domain. The last element of before_V1 is
    for the first token of a document. V is the vocabulary.
    """

    row_V: np.ndarray
    before_V1: np.ndarray
    rows: int
    of_domain: int
    keys_U: np.ndarray
    weight_UW: np.ndarray


class _RowsFields(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("row", "before")),
        *((name, _NUMBER) for name in ("rows", "of_domain")),
        *((name, _POINTER) for name in ("keys", "weight")),
        *((name, _NUMBER) for name in ("met", "width")),
    ]


class FindRows:
    """Rows of tokens in all entries side by side; zeros where no row has the key. call(ids, domains, positions, before) writes
    them to the first rows of e, and returns these.

    All are int [T]. positions: of the tokens in their documents. before: ids before the tokens, any number where the position is 0.
    """

    def __init__(self, entries: Sequence[KeyedRows], tokens: int):
        """tokens: largest number of tokens of a call."""
        self.e = LargePages().zeros((tokens, sum(entry.weight_UW.shape[1] for entry in entries)))
        self._inputs_4T = np.zeros((4, tokens), np.int64)  # the four arguments of a call
        self._entries = list(entries)
        self._fields, self._call = (_RowsFields * len(entries))(*map(_rows_fields, entries)), _kernel("HostFindRows")
        self._arguments = (
            *(ctypes.addressof(self._fields), len(entries), len(entries[0].row_V)),
            *(_address(self._inputs_4T), tokens, _address(self.e)),
        )

    def __call__(
        self, ids_T: np.ndarray, domains_T: np.ndarray, positions_T: np.ndarray, before_T: np.ndarray
    ) -> np.ndarray:
        self._inputs_4T[:, : len(ids_T)] = ids_T, domains_T, positions_T, before_T
        self._call(len(ids_T), *self._arguments)
        return self.e[: len(ids_T)]


def _rows_fields(entry: KeyedRows) -> _RowsFields:
    """Return an entry as the struct MetRows of rows.cc."""
    met, width = entry.weight_UW.shape
    assert len(entry.before_V1) == len(entry.row_V) + 1 and len(entry.keys_U) == met
    return _RowsFields(
        _address(entry.row_V, np.int32),
        _address(entry.before_V1, np.int32),
        entry.rows,
        entry.of_domain,
        _address(entry.keys_U, np.int64),
        _address(entry.weight_UW, np.float32),
        met,
        width,
    )


@dataclass(frozen=True)
class FfnWeights:
    """Weights of an FFN: w1 [F, H], b1 [F], w2 [F, H], b2 [H]."""

    w1: Matrix
    b1: np.ndarray
    w2: Matrix
    b2: np.ndarray


class _ExpertFields(ctypes.Structure):
    _fields_ = [(name, _POINTER) for name in ("w1", "scale1", "b1", "w2", "scale2", "b2")]


class _FfnFields(ctypes.Structure):
    _fields_ = [
        ("experts", _POINTER),
        *((name, _NUMBER) for name in ("kind", "ffn", "hidden")),
        *((name, _POINTER) for name in ("activation", "x", "y")),
    ]


class FFN:
    """FFN of decoding: y += expert(x), row by row. call(rows, experts): number of rows, and address of int32 [T], the expert of
    each row; 0 if there is only one expert."""

    def __init__(self, experts: Sequence[FfnWeights], activation: str, x: np.ndarray, y: np.ndarray):
        ffn, hidden = experts[0].w1.shape
        assert x.shape[1] == y.shape[1] == hidden
        self._arrays = list(experts), x, y
        self._experts = (_ExpertFields * len(experts))(*map(_expert_fields, experts))
        self._fields = _FfnFields(
            ctypes.addressof(self._experts),
            experts[0].w1.kind,
            ffn,
            hidden,
            _activation(activation),
            _address(x, np.float32),
            _address(y, np.float32),
        )
        self._call, self._argument = _kernel("HostFfn"), ctypes.addressof(self._fields)

    def __call__(self, rows: int, experts: int = 0) -> None:
        self._call(rows, self._argument, experts)


def _expert_fields(w: FfnWeights) -> _ExpertFields:
    """Return an expert as the struct Expert of decode.cc."""
    assert w.w1.values.shape == w.w2.values.shape and w.w1.kind == w.w2.kind
    return _ExpertFields(
        _address(w.w1.values),
        _address(w.w1.scales),
        _address(w.b1, np.float32),
        _address(w.w2.values),
        _address(w.w2.scales),
        _address(w.b2, np.float32),
    )


class _AttentionFields(ctypes.Structure):
    _fields_ = [
        *((name, _NUMBER) for name in ("heads", "width", "length")),
        *((name, _POINTER) for name in ("q", "k", "v", "out", "keys", "values")),
        ("scale", ctypes.c_float),
    ]


class LaneAttention:
    """Causal attention with a KV cache. It stores k and v [T, n·d] of new tokens (n heads), then attends within documents.

    keys, values: the cache of L lanes, [L, n, S, d]; a lane has the tokens of one text.
    call(rows, lanes, at, asking, asking_lanes, asking_at, first). rows: number of new tokens, T. lanes, at: addresses of int32 [T],
    lane and position of each new token. asking: number of query tokens, which are among the new ones. asking_lanes, asking_at,
    first: addresses of int32 [asking], lane and position of each query token, and first position of its document. Query tokens
    have the first rows of q and out. A lane's tokens are adjacent, in order.
    """

    def __init__(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, keys: np.ndarray, values: np.ndarray
    ):
        _, heads, length, width = keys.shape
        assert keys.shape == values.shape and all(array.shape[1] == heads * width for array in (q, k, v, out))
        self._arrays = q, k, v, out, keys, values
        addresses = (_address(array, np.float32) for array in self._arrays)
        self._fields = _AttentionFields(heads, width, length, *addresses, width**-0.5)
        self._call, self._argument = _kernel("HostAttention"), ctypes.addressof(self._fields)

    def __call__(
        self, rows: int, lanes: int, at: int, asking: int, asking_lanes: int, asking_at: int, first: int
    ) -> None:
        self._call(rows, self._argument, lanes, at, asking, asking_lanes, asking_at, first)


def _address(array: np.ndarray | None, dtype: type | None = None) -> int | None:
    """Return the address of an array's first element; None for None. The array must be contiguous, and of `dtype` if given."""
    if array is None:
        return None
    assert array.flags.c_contiguous and (dtype is None or array.dtype == dtype)
    return array.ctypes.data


class _Kernel:
    """A function of the library. call(*arguments, rows=…)

    With few rows it keeps Python's lock: a token is dozens of calls, and after each another thread could take the lock and keep it
    for milliseconds. With many it releases the lock.
    """

    def __init__(self, name: str, *arguments: Any):
        self._keeps_lock, self._releases_lock = (getattr(library, name) for library in _libraries())
        for function in (self._keeps_lock, self._releases_lock):
            function.argtypes, function.restype = arguments, None

    def __call__(self, rows: int, *arguments: int | None) -> None:
        function = self._keeps_lock if rows <= _FEW_ROWS else self._releases_lock
        function(rows, *arguments)


_FEW_ROWS = 32
"""Number of rows that a kernel computes in a fraction of a millisecond."""


@cache
def _libraries() -> tuple[ctypes.PyDLL, ctypes.CDLL]:
    """Return the library twice: with functions that keep Python's lock, and with functions that release it."""
    return ctypes.PyDLL(cpu_library()), ctypes.CDLL(cpu_library())


@cache
def _kernel(name: str) -> _Kernel:
    return _Kernel(name, *_ARGUMENTS[name])


_ARGUMENTS = {
    "HostLinears": (_NUMBER, _POINTER, _NUMBER),
    "HostNorm": (_NUMBER, *[_POINTER] * 4, _NUMBER, _POINTER, _POINTER),
    "HostFindRows": (_NUMBER, _POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER, _POINTER),
    "HostFfn": (_NUMBER, _POINTER, _POINTER),
    "HostAttention": (_NUMBER, _POINTER, _POINTER, _POINTER, _NUMBER, *[_POINTER] * 3),
}


def _activation(name: str) -> int:
    """Return the address of the kernels of an activation. name: a key of _ACTIVATIONS."""
    function = _libraries()[0].HostActivation
    function.argtypes, function.restype = (_NUMBER,), _POINTER
    return function(_ACTIVATIONS[name])
