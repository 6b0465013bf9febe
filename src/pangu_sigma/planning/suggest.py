"""Suggestion of a layout for a number of NPUs that the configuration has no layout for. Pure Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from pangu_sigma.ascend.supported import check_layout
from pangu_sigma.config import Config, ConfigError, ParallelConfig
from pangu_sigma.config_file import parse_config
from pangu_sigma.planning.machine import HOST_MEMORY, NPU_MEMORY, NPUS_PER_HOST
from pangu_sigma.planning.memory import fullest_host, fullest_stage, host_items, npu_items, total


def with_parallel(config: Config, **keys: int | bool) -> Config:
    """The configuration with other values in its parallel section. Raises ConfigError if they are not valid."""
    return parse_config(config.model_dump() | {"parallel": config.parallel.model_dump() | keys})


def suggest_layout(config: Config, devices: int) -> ParallelConfig:
    """The parallel section for `devices` NPUs.

    It has the smallest tensor degree that fits, without recompute if possible; as many groups as sets of domains allow, as many
    expert ranks as experts allow, and the rest data parallel; stages as configured if they divide `devices`, else none. If nothing
    fits, it has the largest tensor degree, with recompute. That is our choice, for memory and not for speed: data parallel ranks
    update the same experts once more.

    Raises ConfigError if `devices` cannot be laid out, and names the nearest numbers that can.
    """
    choices = list(_layouts(config, devices))
    if not choices:
        raise ConfigError(_cannot(config, devices))
    for recompute in sorted({config.parallel.recompute, True}):
        for choice in choices:
            tried = with_parallel(choice, recompute=recompute)
            if fits(tried):
                return tried.parallel
    return with_parallel(choices[-1], recompute=True).parallel


def fits(config: Config) -> bool:
    """True if every NPU and every host have room."""
    npus = total(npu_items(config, fullest_stage(config)))
    return npus <= NPU_MEMORY and total(host_items(config, fullest_host(config))) <= HOST_MEMORY


def what_fits(config: Config) -> dict[str, int | bool] | None:
    """Keys to set so that an NPU has room on the same ranks: ECSS, recompute, then the largest batch that suffices, with as many
    more passes for the same update. None if `config` fits as it is, or if all of that is not enough."""
    ecss, recompute, train = config.ecss.enabled, config.parallel.recompute, config.train
    now = _keys(ecss, recompute, train.batch_size, train.accumulation)
    for divisor in (n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0):
        for switches in itertools.product(sorted({ecss, True}), sorted({recompute, True})):
            keys = _keys(*switches, train.batch_size // divisor, train.accumulation * divisor)
            try:
                tried = _with_keys(config, keys)
                check_layout(tried)
            except ConfigError:
                continue  # too few sequences for so many ranks
            if total(npu_items(tried, fullest_stage(tried))) <= NPU_MEMORY:
                return {key: value for key, value in keys.items() if value != now[key]} or None
    return None


def _keys(ecss: bool, recompute: bool, batch: int, passes: int) -> dict[str, int | bool]:
    return {
        "ecss.enabled": ecss,
        "parallel.recompute": recompute,
        "train.batch_size": batch,
        "train.accumulation": passes,
    }


def _with_keys(config: Config, keys: dict[str, int | bool]) -> Config:
    tree = config.model_dump()
    for path, value in keys.items():
        section, key = path.split(".")
        tree[section][key] = value
    return parse_config(tree)


def _layouts(config: Config, devices: int) -> Iterator[Config]:
    """Every configuration that lays out `devices`, the smallest tensor degree first; stages as configured if they divide evenly."""
    stages = config.parallel.stages if devices % config.parallel.stages == 0 else 1
    for tensor in range(1, NPUS_PER_HOST + 1):
        if NPUS_PER_HOST % tensor or devices < 1 or devices % (stages * tensor):
            continue
        groups = math.gcd(config.data.domain_sets, devices // stages // tensor)
        rest = devices // stages // tensor // groups
        expert = math.gcd(config.model.experts_per_domain, rest)
        try:
            axes = {"groups": groups, "expert": expert, "data": rest // expert, "tensor": tensor}
            choice = with_parallel(config, stages=stages, **axes)
            check_layout(choice)
        except ConfigError:
            continue  # something does not divide evenly, such as attention heads
        yield choice


def _cannot(config: Config, devices: int) -> str:
    sequences = config.train.batch_size // config.data.domains_per_step
    most = config.parallel.stages * config.data.domain_sets * sequences * NPUS_PER_HOST
    fewer = next((n for n in range(min(devices - 1, most), 0, -1) if any(_layouts(config, n))), None)
    more = next((n for n in range(max(devices + 1, 1), most + 1) if any(_layouts(config, n))), None)
    nearest = " or ".join(str(n) for n in (fewer, more) if n)
    return (
        f"--devices {devices}: {config.name} cannot be laid out on so many NPUs. MindSpore takes 1, 2, 4 or a multiple of 8; each "
        f"needs an equal part of data.domain_sets={config.data.domain_sets}, of the {sequences} sequences of a block and, up to "
        f"{NPUS_PER_HOST} ways, of attention heads, hidden and ffn. The nearest numbers that can be are {nearest}"
    )
