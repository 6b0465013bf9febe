"""Build the step of a rank (RANK_ID) with MindSpore's backend, for actors.py. Arguments: the configuration and its keys."""

from __future__ import annotations

import os
import sys

from pangu_sigma.config_file import load_config
from pangu_sigma.npu.context import use_ascend
from pangu_sigma.npu.inputs import step_inputs
from pangu_sigma.npu.plan.cann_stub import name_soc
from pangu_sigma.npu.step import AscendStep

config = load_config(sys.argv[1], sys.argv[2:])
name_soc(config.parallel.chip)
use_ascend(config, save_graphs="graphs")
step = AscendStep(config, int(os.environ["RANK_ID"]))
step.set_train()
try:
    step.compile(*step_inputs(config))
except RuntimeError as error:
    print(str(error).splitlines()[0], flush=True)
os._exit(0)
