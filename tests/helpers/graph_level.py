"""Build the step of a rank (RANK_ID) with MindSpore's backend, for test_910a_runs_kernel_by_kernel… and actors.py.

Arguments: the graph level, or nothing for that of `use_ascend`; the configuration and its keys.
"""

from __future__ import annotations

import os
import sys

import mindspore as ms

from pangu_sigma.config_file import load_config
from pangu_sigma.npu.context import use_ascend
from pangu_sigma.npu.inputs import step_inputs
from pangu_sigma.npu.plan.cann_stub import name_soc
from pangu_sigma.npu.step import AscendStep

level, config = sys.argv[1], load_config(sys.argv[2], sys.argv[3:])
name_soc(config.parallel.chip)
use_ascend(config, save_graphs="graphs")
if level:
    ms.set_context(jit_config={"jit_level": level})
step = AscendStep(config, int(os.environ["RANK_ID"]))
step.set_train()
try:
    step.compile(*step_inputs(config))
except RuntimeError as error:
    print(str(error).splitlines()[0], flush=True)
os._exit(0)
