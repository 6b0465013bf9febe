"""A layout for a number of NPUs, when the configuration has none for it. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pangu_sigma.config import Config, ConfigError, ParallelConfig, parse_config
from pangu_sigma.parallel.machine import HOST_MEMORY, NPU_MEMORY, NPUS_PER_HOST
from pangu_sigma.parallel.memory import host_items, npu_items, total


def with_parallel(config: Config, **keys: int | bool) -> Config:
    """`config` with other values in its parallel section, validated. Raises ConfigError."""
    return parse_config(config.model_dump() | {"parallel": config.parallel.model_dump() | keys})


def suggest_layout(config: Config, devices: int) -> ParallelConfig:
    """The parallel section for `devices` NPUs: the smallest tensor degree that fits, without recompute if possible; as many groups
    as sets of domains allow, as many expert ranks as experts allow, the rest data parallel. When nothing fits, the largest tensor
    degree, with recompute. Our choice, for memory and not for speed: data parallel ranks update the same experts once more.

    Raises ConfigError when `devices` cannot be laid out, and names the nearest numbers that can.
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
    """Whether every NPU and every host have room."""
    return total(npu_items(config)) <= NPU_MEMORY and total(host_items(config)) <= HOST_MEMORY


def what_fits(config: Config) -> dict[str, int | bool] | None:
    """Keys to set so that an NPU has room on the same ranks: recompute, then as few passes over smaller batches as suffice. Each
    update still sees the same number of sequences. None when `config` fits as it is, or when that is not enough."""
    train = config.train
    for passes in range(1, train.batch_size + 1):
        if train.batch_size % passes:
            continue
        batch, accumulation = train.batch_size // passes, train.accumulation * passes
        keys = train.model_dump() | {"batch_size": batch, "accumulation": accumulation}
        for recompute in sorted({config.parallel.recompute, True}):
            try:
                tried = with_parallel(parse_config(config.model_dump() | {"train": keys}), recompute=recompute)
            except ConfigError:
                continue  # fewer sequences than ranks that divide them
            if total(npu_items(tried)) <= NPU_MEMORY:
                return _changes(config, tried)
    return None


def _changes(config: Config, tried: Config) -> dict[str, int | bool] | None:
    keys: dict[str, int | bool] = {}
    if tried.parallel.recompute != config.parallel.recompute:
        keys["parallel.recompute"] = True
    if tried.train != config.train:
        keys |= {"train.batch_size": tried.train.batch_size, "train.accumulation": tried.train.accumulation}
    return keys or None


def _layouts(config: Config, devices: int) -> Iterator[Config]:
    """Every configuration that lays out `devices`, the smallest tensor degree first."""
    for tensor in range(1, NPUS_PER_HOST + 1):
        if NPUS_PER_HOST % tensor or devices < 1 or devices % tensor:
            continue
        groups = math.gcd(config.data.domain_sets, devices // tensor)
        rest = devices // tensor // groups
        expert = math.gcd(config.model.experts_per_domain, rest)
        try:
            yield with_parallel(config, groups=groups, expert=expert, data=rest // expert, tensor=tensor)
        except ConfigError:
            continue  # something does not come out even, such as attention heads


def _cannot(config: Config, devices: int) -> str:
    sequences = config.train.batch_size // config.data.domains_per_step
    most = config.data.domain_sets * sequences * NPUS_PER_HOST
    fewer = next((n for n in range(min(devices - 1, most), 0, -1) if any(_layouts(config, n))), None)
    more = next((n for n in range(max(devices + 1, 1), most + 1) if any(_layouts(config, n))), None)
    nearest = " or ".join(str(n) for n in (fewer, more) if n)
    return (
        f"--devices {devices}: {config.name} cannot be laid out on so many NPUs, because each needs an equal part of "
        f"data.domain_sets={config.data.domain_sets}, of the {sequences} sequences of a block and, up to {NPUS_PER_HOST} ways, of "
        f"attention heads, hidden and ffn; the nearest numbers that can be are {nearest}"
    )
