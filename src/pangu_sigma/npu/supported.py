"""Checks that a configuration can train on Ascend (step.py). Pure Python, so that an error comes before MindSpore's.

Each error names the key, its value and the fix. config.py checks earlier that sizes divide among ranks.
"""

from __future__ import annotations

import os

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.errors import argument
from pangu_sigma.npu.communicators import check_layout
from pangu_sigma.npu.host.access import Host, missing_for_ascend, other_family
from pangu_sigma.npu.row_counts import dispatch_layout


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
    if config.finetune is not None and config.finetune.learn != "all":
        raise ConfigError(
            f"finetune.learn={config.finetune.learn}: the Ascend step updates every parameter; fine-tune on the CPU, or set "
            "finetune.learn=all"
        )
    if config.ecss.store != "host" and (config.model.rre_layers or config.model.rows):
        raise ConfigError(
            f"ecss.store={config.ecss.store}: the Ascend step keeps experts and rows in the host's memory; set ecss.store=host"
        )
    if not config.model.rre_layers:
        return
    if not config.ecss.enabled:
        raise ConfigError("ecss.enabled=false: the Ascend step keeps experts on the host; set ecss.enabled=true")
    if config.parallel.gather == "cann" and dispatch_layout(config) != "dropless":
        raise ConfigError(
            "parallel.gather=cann: CANN's operator is for 910B and later without stages; leave parallel.gather out, or use another "
            "chip (parallel.chip) or parallel.stages=1"
        )


def check_machine(config: Config) -> None:
    """Raise ConfigError if this machine has no NPUs of the family of `parallel.chip`, or no driver for them."""
    if "MS_SIMULATION_LEVEL" in os.environ:
        return
    host = Host()
    if (missing := missing_for_ascend(host)) is not None:
        raise ConfigError(
            f"{argument('--device')} ascend: {missing.state}; {missing.fix}, or train on the CPU. `pangu-sigma doctor --device "
            "ascend` checks all of it"
        )
    if (other := other_family(host, config.parallel.chip, "parallel.chip")) is not None:
        raise ConfigError(f"{other.state}; {other.fix}")
