"""Export a model with its graph compiled for Ascend, on a machine that need not have an NPU.

It is the graph for the CPU with Ascend's operators: LayerNorm is one fused operator there. A process of its own compiles (`python
-m pangu_sigma.planning.export_ascend RUN OUTPUT WEIGHTS`), with stand-ins where there is no CANN; cann_stub.py says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

from pangu_sigma.errors import UserError, exit_status
from pangu_sigma.planning.cann_stub import ascend_environment

_COMPILES = "PANGU_SIGMA_EXPORTS_FOR_ASCEND"
"""Environment variable that is set in the compiling process."""


def export_for_ascend(run: Path, output: Path, at_rest: str) -> int:
    """Export a run to `output` in a process of its own. Returns its exit status; its messages are on standard error."""
    with_cann = "ASCEND_HOME_PATH" in os.environ
    environment = (dict(os.environ) if with_cann else ascend_environment(1, 0)) | {_COMPILES: "1"}
    command = [sys.executable, "-m", "pangu_sigma.planning.export_ascend", str(run), str(output), at_rest]
    return subprocess.run(command, env=environment).returncode


def _use_ascend() -> None:
    import mindspore as ms
    from mindspore.communication._comm_helper import GlobalComm

    if "MS_SIMULATION_LEVEL" in os.environ:
        GlobalComm.CHECK_ENVS = False  # it would look for HCCL's Python package
    ms.set_context(mode=ms.GRAPH_MODE, device_target="Ascend")


def _compile(run: Path, output: Path, at_rest: str) -> int:
    from pangu_sigma.convert.mindir import export_mindir
    from pangu_sigma.generate.graph.weights_at_rest import AtRest

    if at_rest not in ("float32", "float16", "int8"):
        raise UserError(f"weights {at_rest!r} are not known; use float32, float16 or int8")
    written = export_mindir(run, output, cast(AtRest, at_rest), _use_ascend)
    sys.stderr.write(f"{written}: compiled for Ascend; nothing of it has run\n")
    return 0


def main() -> int:
    """Export in a new process, or in that process compile and exit at once, because unloading the stand-ins would crash."""
    if len(sys.argv) not in (3, 4):
        sys.stderr.write("usage: export_ascend.sh RUN OUTPUT [float32|float16|int8]\n")
        return 2
    run, output, at_rest = Path(sys.argv[1]), Path(sys.argv[2]), (sys.argv[3:] or ["float16"])[0]
    if _COMPILES not in os.environ:
        return export_for_ascend(run, output, at_rest)
    status = exit_status(lambda: _compile(run, output, at_rest))
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
