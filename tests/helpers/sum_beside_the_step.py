"""Compile a sum over ranks, and then the step, as a rank that MS_SIMULATION_LEVEL makes: test_process.py starts it."""

from __future__ import annotations

import os
import sys

import numpy as np
from mindspore import Tensor, communication

from pangu_sigma.config_file import load_config
from pangu_sigma.npu.context import use_ascend
from pangu_sigma.process import plain_graphs

config = load_config(sys.argv[1])
use_ascend(config)

from pangu_sigma.npu.inputs import step_inputs  # noqa: E402
from pangu_sigma.npu.step import AscendStep  # noqa: E402
from pangu_sigma.ranks.connect import _Sum  # noqa: E402

status = 1
try:
    with plain_graphs():
        _Sum(communication.GlobalComm.WORLD_COMM_GROUP).compile(Tensor(np.zeros(8, np.float32)))
    step = AscendStep(config, int(os.environ["RANK_ID"]))
    step.set_train()
    step.compile(*step_inputs(config))
    print("compiled", flush=True)
    status = 0
finally:
    os._exit(status)  # the stand-ins crash when they are torn down
