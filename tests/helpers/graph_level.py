"""Program of test_910a_runs_kernel_by_kernel_because_one_graph_has_no_operators_on_the_host: the step of one rank of 910A goes to
MindSpore's backend, at the graph level of the first argument, or, if that is empty, of `use_ascend`. Other arguments: keys."""

from __future__ import annotations

import os
import sys

import mindspore as ms

from pangu_sigma.ascend.context import use_ascend
from pangu_sigma.ascend.inputs import step_inputs
from pangu_sigma.ascend.step import AscendStep
from pangu_sigma.config_file import load_config
from pangu_sigma.planning.cann_stub import name_soc

level, config = sys.argv[1], load_config("sigma_tiny", sys.argv[2:])
name_soc(config.parallel.chip)
use_ascend(config)
if level:
    ms.set_context(jit_config={"jit_level": level})
step = AscendStep(config)
step.set_train()
try:
    step.compile(*step_inputs(config))
except RuntimeError as error:
    print(str(error).splitlines()[0], flush=True)
os._exit(0)
