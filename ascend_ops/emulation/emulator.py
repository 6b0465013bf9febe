"""Compile the Ascend C kernels with g++ against the emulation header, and call them with NumPy arrays.

Shape suffixes: T tokens, M rows sorted by expert (and padded), H hidden, K experts.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ascend_ops.library import cache_folder

PROJECT = Path(__file__).parent.parent
FOLDERS = ("emulation", "op_host", "op_kernel")
CHIPS = {"910A": (1001, 32), "910B": (2201, 48)}  # __NPU_ARCH__, cores of the largest part
DTYPES = {"float32": ("float", np.float32), "float16": ("half", np.float16), "bfloat16": ("bfloat16_t", np.uint16)}


class CompileError(Exception):
    """The kernels do not compile for this chip and dtype."""


class KernelError(Exception):
    """A kernel broke a rule of the hardware; the text begins with the rule in brackets (machine.h lists them)."""


def compile_emulator(chip: str, dtype: str, project: Path = PROJECT, folder: Path | None = None) -> Path:
    """Shared library with the kernels of `project` for a chip ("910A", "910B") and dtype.

    It is kept in `folder`, by default that of all compiled things (`library.cache_folder`).
    Raises CompileError with the compiler's message: also what a chip lacks does not compile.
    """
    sources = [path for part in FOLDERS for path in sorted((project / part).glob("*.[hc]*"))]
    digest = hashlib.sha256(f"{chip} {dtype}".encode())
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    folder = folder or cache_folder()
    target = folder / f"emulator_{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        built = Path(temporary) / target.name
        command = ["g++", "-std=c++17", "-O1", "-Wall", "-shared", "-fPIC", f"-I{project / 'emulation'}"]
        command += [f"-D__NPU_ARCH__={CHIPS[chip][0]}", f"-DDTYPE={DTYPES[dtype][0]}"]
        command += [str(project / "emulation" / "harness.cpp"), "-o", str(built)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise CompileError("g++ is needed to compile the emulation and is not on PATH; install it") from error
        if done.returncode:
            raise CompileError(done.stderr)
        built.rename(target)  # atomic: several processes may build at the same time
    return target


class Emulator:
    """The two operators on one emulated chip, in one dtype. bfloat16 arrays are their bits, uint16.

    Every call runs the kernel block after block on guarded copies of its arguments and raises KernelError when a rule is broken;
    `cores` is the number of cores the tiling may use (default: the chip's), `reverse` runs the last block first.
    After a call: `blocks` launched, and `transfers(kind)`.
    """

    def __init__(self, chip: str, dtype: str, library: Path | None = None):
        self.chip, self.dtype = chip, dtype
        self.numpy_dtype: Any = DTYPES[dtype][1]
        self.blocks = 0
        self.library = ctypes.CDLL(str(library or compile_emulator(chip, dtype)))
        self.library.run.restype = ctypes.c_char_p
        self.library.transfers.restype = ctypes.c_int64

    def expert_dispatch(
        self, x_TH: np.ndarray, order_M: np.ndarray, *, cores: int | None = None, reverse: bool = False
    ) -> np.ndarray:
        return self._rows("expert_dispatch", x_TH, order_M, None, cores, reverse)

    def expert_combine(
        self,
        rows_MH: np.ndarray,
        inverse_T: np.ndarray,
        residual_TH: np.ndarray | None = None,
        *,
        cores: int | None = None,
        reverse: bool = False,
    ) -> np.ndarray:
        return self._rows("expert_combine", rows_MH, inverse_T, residual_TH, cores, reverse)

    def transfers(self, kind: str) -> np.ndarray:
        """Bytes of each transfer of the last call: "load" and "store" between GM and the UB, "scalar" reads of GM."""
        number = ("load", "store", "scalar").index(kind)
        count = self.library.transfers(number, None, ctypes.c_int64(0))
        sizes = np.zeros(count, np.int64)
        self.library.transfers(number, sizes.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(count))
        return sizes

    def bytes_moved(self) -> int:
        """Bytes that crossed the GM bus in the last call."""
        return int(sum(self.transfers(kind).sum() for kind in ("load", "store", "scalar")))

    def traffic(
        self,
        source_rows: int,
        rows: int,
        hidden: int,
        *,
        residual: bool = False,
        read: int | None = None,
        cores: int | None = None,
    ) -> tuple[int, int]:
        """(bytes moved, fewest possible) of a row operator by the tiling; `read` rows have an index that is not negative."""
        moved, minimum = ctypes.c_int64(), ctypes.c_int64()
        self.library.rows_traffic(
            ctypes.c_int(cores or CHIPS[self.chip][1]),
            (ctypes.c_int64 * 3)(source_rows, rows, hidden),
            ctypes.c_int(residual),
            ctypes.c_int64(rows if read is None else read),
            ctypes.byref(moved),
            ctypes.byref(minimum),
        )
        return moved.value, minimum.value

    def _rows(
        self,
        op: str,
        source: np.ndarray,
        index: np.ndarray,
        residual: np.ndarray | None,
        cores: int | None,
        reverse: bool,
    ) -> np.ndarray:
        out = np.zeros((len(index), source.shape[1]), self.numpy_dtype)
        source = np.ascontiguousarray(source, self.numpy_dtype)
        if residual is not None:
            residual = np.ascontiguousarray(residual, self.numpy_dtype)
        arrays = [source, np.ascontiguousarray(index, np.int32), residual, out]
        self._run(op, arrays, (len(source), len(index), source.shape[1]), cores, reverse)
        return out

    def _run(self, op: str, arrays: list[Any], sizes: tuple[int, ...], cores: int | None, reverse: bool) -> None:
        blocks = ctypes.c_int64()
        broken = self.library.run(
            op.encode(),
            ctypes.c_int(cores or CHIPS[self.chip][1]),
            ctypes.c_int(reverse),
            (ctypes.c_void_p * len(arrays))(*(None if array is None else array.ctypes.data for array in arrays)),
            (ctypes.c_int64 * len(sizes))(*sizes),
            ctypes.byref(blocks),
        )
        if broken is not None:
            raise KernelError(f"{op} on {self.chip} in {self.dtype}: {broken.decode()}")
        self.blocks = blocks.value


@cache
def _emulator(chip: str, dtype: str) -> Emulator:
    return Emulator(chip, dtype)


def bytes_ratio(rows: int, hidden: int, dtype: str = "float16", chip: str = "910B", residual: bool = False) -> float:
    """Bytes a device moves for one dispatch (with residual: combine) of `rows` rows ÷ the fewest possible.

    1.0 is every row read once and written once. From the shipped tiling; tests hold it against what the emulation counted.
    """
    moved, minimum = _emulator(chip, dtype).traffic(rows, rows, hidden, residual=residual)
    return moved / minimum
