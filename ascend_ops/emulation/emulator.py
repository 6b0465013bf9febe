"""Compile the Ascend C kernels with g++ against the emulation header, and call them with NumPy arrays.

Shape suffixes: T tokens, M rows sorted by expert (and padded), H hidden, K experts.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from ascend_ops.emulation.compiling import PROJECT, compile_harness
from ascend_ops.emulation.op_host import OpHost, shipped_host

CHIPS = {
    "910A": {"__NPU_ARCH__": "1001", "__CCE_AICORE__": "100"},
    "910B": {"__NPU_ARCH__": "2201", "__CCE_AICORE__": "220"},
}
"""Macros that CANN's compiler defines for a chip; for 910_93 they are those of 910B."""

DTYPES = {"float32": ("float", np.float32), "float16": ("half", np.float16), "bfloat16": ("bfloat16_t", np.uint16)}
"""Name of each dtype in C++, and its NumPy type."""


class KernelError(Exception):
    """Error of an emulated kernel that breaks a rule of the hardware; it begins with the rule's name in brackets (machine.h)."""


def compile_emulator(chip: str, dtype: str, project: Path = PROJECT, folder: Path | None = None) -> Path:
    """Compile the kernels of `project` for a chip ("910A", "910B") and dtype to a shared library.

    folder: where the library is kept; None: the folder of all compiled libraries. Raises BuildError for features the chip lacks.
    """
    return compile_harness("harness.cpp", {**CHIPS[chip], "DTYPE": DTYPES[dtype][0]}, project, folder)


class Emulator:
    """Dispatch and combine operators on one emulated chip, in one dtype. bfloat16 arrays hold their bits as uint16.

    Each call takes the tiling from the operator's host side, runs the kernel block after block on guarded copies of its arguments,
    and raises KernelError if a rule is broken. cores: number of cores for the tiling (default: the chip's). reverse: True to run
    the last block first. After a call: `blocks` launched, and `transfers(kind)`.
    """

    def __init__(self, chip: str, dtype: str, library: Path | None = None, host: OpHost | None = None):
        self.chip, self.dtype, self.host = chip, dtype, host or shipped_host()
        self.numpy_dtype: Any = DTYPES[dtype][1]
        self.blocks = 0
        self.library = ctypes.CDLL(str(library or compile_emulator(chip, dtype)))
        self.library.run.restype = ctypes.c_char_p
        self.library.transfers.restype = ctypes.c_int64

    def expert_dispatch(
        self, x_TH: np.ndarray, order_M: np.ndarray, *, cores: int | None = None, reverse: bool = False
    ) -> np.ndarray:
        """Return what `ExpertDispatch` returns: M rows [M, H]."""
        return self._run("ExpertDispatch", x_TH, order_M, None, cores, reverse=reverse)

    def expert_combine(
        self,
        rows_MH: np.ndarray,
        inverse_T: np.ndarray,
        residual_TH: np.ndarray | None = None,
        *,
        cores: int | None = None,
        reverse: bool = False,
    ) -> np.ndarray:
        """Return what `ExpertCombine` returns for M rows of experts: [T, H]."""
        return self._run("ExpertCombine", rows_MH, inverse_T, residual_TH, cores, reverse=reverse)

    def last_rows(
        self,
        op: str,
        source_rows: int,
        source_RH: np.ndarray,
        index_M: np.ndarray,
        residual_NH: np.ndarray | None,
        rows: int,
        *,
        cores: int | None = None,
    ) -> np.ndarray:
        """Run only the last block of operator `op`, and return the last N rows (`rows`) of its output [M, H]. Its tensors may be
        larger than this machine's memory.

        source: the last R of `source_rows` rows. residual: its last N rows. The rows before them are addresses without memory: a
        transfer there is checked against the bounds of its tensor, and moves nothing.
        """
        return self._run(op, source_RH, index_M, residual_NH, cores, source_rows=source_rows, rows=rows)

    def transfers(self, kind: str) -> np.ndarray:
        """Return the size in bytes of each transfer of a kind between global memory and cores in the last call. kind: "load",
        "store", or "scalar" (one value is read)."""
        number = ("load", "store", "scalar").index(kind)
        count = self.library.transfers(number, None, ctypes.c_int64(0))
        sizes = np.zeros(count, np.int64)
        self.library.transfers(number, sizes.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(count))
        return sizes

    def bytes_moved(self) -> int:
        """Return the bytes that the last call read from global memory and wrote to it."""
        return int(sum(self.transfers(kind).sum() for kind in ("load", "store", "scalar")))

    def _run(
        self,
        op: str,
        source: np.ndarray,
        index: np.ndarray,
        residual: np.ndarray | None,
        cores: int | None,
        *,
        reverse: bool = False,
        source_rows: int | None = None,
        rows: int | None = None,
    ) -> np.ndarray:
        """Run an operator, and return its output. source_rows: number of the source's rows if the array has only the last of them.
        rows: number of rows, if only the last block runs and returns its last rows; else None."""
        shape = (len(index), source.shape[1])  # of the output
        source = np.ascontiguousarray(source, self.numpy_dtype)
        if residual is not None:
            residual = np.ascontiguousarray(residual, self.numpy_dtype)
        source_rows = source_rows or len(source)
        shapes = [(source_rows, shape[1]), shape[:1], None if residual is None else shape]
        launch = self.host.launch(op, self.chip, self.dtype, shapes, cores)
        out = np.zeros((shape[0] if rows is None else rows, shape[1]), self.numpy_dtype)
        arrays = [source, np.ascontiguousarray(index, np.int32), residual, out]
        violation = self.library.run(
            op.encode(),
            ctypes.c_int64(launch.blocks),
            ctypes.c_int64(0 if rows is None else launch.blocks - 1),
            ctypes.c_int(reverse),
            ctypes.byref(launch.tiling),
            (ctypes.c_void_p * len(arrays))(*(None if array is None else array.ctypes.data for array in arrays)),
            (ctypes.c_int64 * 5)(source_rows, *shape, len(source), len(out)),
        )
        if violation is not None:
            raise KernelError(f"{op} on {self.chip} in {self.dtype}: {violation.decode()}")
        self.blocks = launch.blocks
        return out


def bytes_ratio(rows: int, hidden: int, dtype: str = "float16", chip: str = "910B", residual: bool = False) -> float:
    """Return the bytes that a device moves for one dispatch (with residual: combine) of `rows` rows ÷ the fewest possible.

    1.0 means that every row is read once and written once. Computed from the shipped tiling; tests compare it with the emulation.
    """
    shape, operator = (rows, hidden), "ExpertCombine" if residual else "ExpertDispatch"
    moved, minimum = shipped_host().traffic(operator, chip, dtype, [shape, (rows,), shape if residual else None], rows)
    return moved / minimum
