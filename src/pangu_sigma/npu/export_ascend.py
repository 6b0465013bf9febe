"""Export a model with its graph compiled for Ascend, on a machine that need not have an NPU.

It is the graph for the CPU with Ascend's operators: LayerNorm is one fused operator there. A process of its own compiles (`python
-m pangu_sigma.npu.export_ascend RUN OUTPUT WEIGHTS`), with stand-ins where there is no CANN; cann_stub.py says why.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_sigma.errors import exit_status
from pangu_sigma.npu.plan.cann_stub import ascend_environment
from pangu_sigma.process import child_environment

if TYPE_CHECKING:
    from ascend_ops.few_rows import StoredPrecision

_COMPILES = "PANGU_SIGMA_EXPORTS_FOR_ASCEND"
"""Environment variable that is set in the compiling process."""


def _export(run: Path, output: Path, weights: StoredPrecision) -> int:
    """Compile and export a run in this process, and return its exit status."""
    from pangu_sigma.convert.mindir import export_mindir
    from pangu_sigma.npu.context import target_ascend

    folder = export_mindir(run, output, weights, target_ascend)
    sys.stderr.write(f"{folder}: compiled for Ascend; nothing of it has run\n")
    return 0


def main() -> int:
    """Export a run for Ascend, and return the exit status. This process starts another one with the same arguments, which compiles
    and exits through `os._exit`, because unloading the stand-ins for CANN would crash."""
    parser = argparse.ArgumentParser(prog="export_ascend.sh")
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("weights", nargs="?", choices=["float32", "float16", "int8"], default="float16")
    options = parser.parse_args()
    if _COMPILES not in os.environ:
        environment = child_environment() if "ASCEND_HOME_PATH" in os.environ else ascend_environment(1, 0)
        command = [sys.executable, "-m", "pangu_sigma.npu.export_ascend", *sys.argv[1:]]
        return subprocess.run(command, env=environment | {_COMPILES: "1"}).returncode
    status = exit_status(lambda: _export(options.run, options.output, options.weights))
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
