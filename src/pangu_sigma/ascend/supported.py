"""Checks that a configuration can train on Ascend (step.py). Pure Python, so that an error comes before MindSpore's.

Each error names the key, its value and the fix. config.py checks earlier that sizes divide among ranks.
"""

from __future__ import annotations

import os

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.npus import missing_for_ascend
from pangu_sigma.parallel.communicators import check_layout
from pangu_sigma.parallel.layout import dispatch_layout


def check_ascend(config: Config) -> None:
    """Raise ConfigError if the Ascend step does not support the configuration. `pangu-sigma plan` prints the error and, unless it
    comes from `check_layout`, plans the configuration all the same."""
    check_layout(config)
    if config.model.dropout > 0:
        raise ConfigError(
            f"model.dropout={config.model.dropout}: the Ascend step has no parallel strategy for dropout; set model.dropout=0"
        )
    if config.train.spikes.skip:
        raise ConfigError(
            "train.spikes.skip=true: the Ascend step does not see the losses of all domains before it updates; set "
            "train.spikes.skip=false, which logs spikes"
        )
    if config.train.optimizer.clip != "global":
        raise ConfigError(
            "train.optimizer.clip=parts: the Ascend step clips by the global norm; set train.optimizer.clip=global"
        )
    if config.finetune is not None and config.finetune.learn != "all":
        raise ConfigError(
            f"finetune.learn={config.finetune.learn}: the Ascend step updates every parameter; fine-tune on the CPU, or set "
            "finetune.learn=all"
        )
    if not config.model.rre_layers:
        return
    if not config.ecss.enabled:
        raise ConfigError("ecss.enabled=false: the Ascend step keeps experts on the host; set ecss.enabled=true")
    if config.parallel.gather == "cann" and dispatch_layout(config, ascend=True) != "dropless":
        raise ConfigError(
            "parallel.gather=cann: CANN's operator is for 910B and later without stages; leave parallel.gather out, or use another "
            "chip (parallel.chip) or parallel.stages=1"
        )
    if config.ecss.store != "host":
        raise ConfigError(
            f"ecss.store={config.ecss.store}: the Ascend step keeps experts in the host's memory; set ecss.store=host"
        )


def check_order(config: Config) -> None:
    """Raise ConfigError for a training whose compiled graph reads active experts and loss scale before its step has written them.

    MindSpore 2.9.0 drops the order between both on several ranks: without stages when it fuses AllReduce, with stages always. This
    was read in its compiled graphs (docs/experiments/log.md); planning and compiling such a step is allowed.
    """
    parallel = config.parallel
    if parallel.ranks == 1 or (parallel.stages == 1 and parallel.fusion_mib == 0):
        return
    if parallel.stages > 1:
        key, fix = f"parallel.stages={parallel.stages}", "set parallel.stages=1 and parallel.fusion_mib=0"
    else:
        key, fix = f"parallel.fusion_mib={parallel.fusion_mib}", "set parallel.fusion_mib=0"
    raise ConfigError(
        f"{key}: on several NPUs the compiled step would compute with the experts and the loss scale of the step before, because "
        f"MindSpore loses the order of a write and a read; {fix}"
    )


def check_machine() -> None:
    """Raise ConfigError if this machine has no NPUs, or no driver for them."""
    missing = None if "MS_SIMULATION_LEVEL" in os.environ else missing_for_ascend()
    if missing is not None:
        raise ConfigError(
            f"--device ascend: {missing.problem}; {missing.fix}, or train on the CPU: --device cpu. `pangu-sigma doctor --device "
            "ascend` checks all of it"
        )
