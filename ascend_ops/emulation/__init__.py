"""Host emulation of the Ascend C subset that the kernels of `op_kernel/` use, and of CANN's calls of `op_host/`. Both are compiled
unchanged, and the rules of the hardware are checked."""

from ascend_ops.emulation.emulator import CHIPS, DTYPES, Emulator, KernelError, bytes_ratio, compile_emulator
from ascend_ops.emulation.op_host import SOCS, Argument, Launch, OpHost, TilingError, compile_host

__all__ = [
    "CHIPS",
    "DTYPES",
    "SOCS",
    "Argument",
    "Emulator",
    "KernelError",
    "Launch",
    "OpHost",
    "TilingError",
    "bytes_ratio",
    "compile_emulator",
    "compile_host",
]
