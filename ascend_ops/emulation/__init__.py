"""Host emulation of the Ascend C subset that the kernels of `op_kernel/` use: unchanged, with the rules checked."""

from ascend_ops.emulation.emulator import (
    CHIPS,
    DTYPES,
    CompileError,
    Emulator,
    KernelError,
    bytes_ratio,
    compile_emulator,
)

__all__ = ["CHIPS", "DTYPES", "CompileError", "Emulator", "KernelError", "bytes_ratio", "compile_emulator"]
