"""Suggestion of a layout for a number of NPUs that the configuration has no layout for. Pure Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from pangu_sigma.ascend.supported import check_layout
from pangu_sigma.config import MOST_RANKS, Config, ConfigError, ParallelConfig
from pangu_sigma.config_file import parse_config
from pangu_sigma.planning.machine import HOST_MEMORY, NPU_MEMORY, NPUS_PER_HOST
from pangu_sigma.planning.memory import fullest_host, fullest_stage, host_items, npu_items, total

_MOST_TRIED = 4_096
"""Largest number of NPUs that is looked at for one that can be laid out, or fits: each takes a millisecond or more."""


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
    if devices > MOST_RANKS:
        raise ConfigError(f"--devices {devices}: at most {MOST_RANKS:,} are planned")
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


def devices_that_fit(config: Config) -> int | None:
    """The least of 2, 4, 8, … times as many NPUs on which a suggested layout fits; None if none does."""
    devices = config.parallel.ranks
    while (devices := 2 * devices) <= _MOST_TRIED:
        try:
            if fits(with_parallel(config, **suggest_layout(config, devices).model_dump())):
                return devices
        except ConfigError:
            continue  # something does not divide evenly
    return None


def what_fits(config: Config) -> dict[str, int | bool | str] | None:
    """Keys to set so that every NPU and every host have room on the same ranks. None if `config` fits as it is, or if all of that
    is not enough.

    They are ECSS, recompute and, where the host is short, moments of experts in bfloat16; then the largest batch that suffices,
    with as many more passes for the same update.
    """
    return next((keys for keys, tried in _changes(config) if fits(tried)), None) or None


def what_fits_an_npu(config: Config) -> tuple[dict[str, int | bool | str], int] | None:
    """Keys with which every NPU has room and some host has not, and the bytes that this host then needs: why `what_fits` found
    nothing. None if no keys do even that."""
    for keys, tried in _changes(config):
        if total(npu_items(tried, fullest_stage(tried))) <= NPU_MEMORY:
            return keys, total(host_items(tried, fullest_host(tried)))
    return None


def _changes(config: Config) -> Iterator[tuple[dict[str, int | bool | str], Config]]:
    """Every change of keys that may save memory, the least first, with the configuration that it makes. The first is no change."""
    train, recompute, ecss = config.train, config.parallel.recompute, config.ecss
    moments = list(dict.fromkeys((ecss.moments, "bfloat16")))
    divisors = [n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0]
    for divisor, kind in itertools.product(divisors, moments):
        for enabled, again in itertools.product(sorted({ecss.enabled, True}), sorted({recompute, True})):
            keys: dict[str, int | bool | str] = {
                "ecss.enabled": enabled,
                "ecss.moments": kind,
                "parallel.recompute": again,
                "train.batch_size": train.batch_size // divisor,
                "train.accumulation": train.accumulation * divisor,
            }
            try:
                tried = _with_keys(config, keys)
                check_layout(tried)
            except ConfigError:
                continue  # too few sequences for so many ranks, or moments that beta2 does not allow
            tree = config.model_dump()
            yield {key: value for key, value in keys.items() if value != _at(tree, key)}, tried


def _at(tree: dict[str, Any], path: str) -> Any:
    section, key = path.split(".")
    return tree[section][key]


def _with_keys(config: Config, keys: dict[str, int | bool | str]) -> Config:
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
    most = min(config.parallel.stages * config.data.domain_sets * sequences * NPUS_PER_HOST, _MOST_TRIED)
    fewer = next((n for n in range(min(devices - 1, most), 0, -1) if any(_layouts(config, n))), None)
    more = next((n for n in range(max(devices + 1, 1), most + 1) if any(_layouts(config, n))), None)
    nearest = " or ".join(str(n) for n in (fewer, more) if n)
    return (
        f"--devices {devices}: {config.name} cannot be laid out on so many NPUs. MindSpore takes 1, 2, 4 or a multiple of 8; each "
        f"needs an equal part of data.domain_sets={config.data.domain_sets}, of the {sequences} sequences of a block and, up to "
        f"{NPUS_PER_HOST} ways, of attention heads, hidden and ffn. The nearest numbers that can be are {nearest}"
    )
