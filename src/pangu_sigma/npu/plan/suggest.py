"""Suggest the fastest layout on a number of NPUs, and settings with which a configuration fits. Pure Python."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from pangu_sigma.checkpoint.changes import leaves
from pangu_sigma.chips import family
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import override, parse_config
from pangu_sigma.errors import argument
from pangu_sigma.npu.communicators import check_layout
from pangu_sigma.npu.plan.cost import step_time
from pangu_sigma.npu.plan.memory import host_peak, npu_peak
from pangu_sigma.npu.plan.traffic import link_bytes
from pangu_sigma.npu.row_counts import chip_of
from pangu_sigma.sections import MOST_RANKS, ParallelConfig

_MOST_TRIED = 4_096
"""Largest number of NPUs that is tried in a search for one that fits: a layout takes a millisecond or more."""


def with_parallel(config: Config, **keys: int | bool) -> Config:
    """Return the configuration with other values in its parallel section. Raises ConfigError for invalid values."""
    return parse_config(config.model_dump() | {"parallel": config.parallel.model_dump() | keys})


class TimedLayout(NamedTuple):
    """Layout that fits on the NPUs, with its estimated seconds of a step (`cost.py`)."""

    parallel: ParallelConfig
    step_seconds: float


def fastest_layouts(config: Config, devices: int) -> list[TimedLayout]:
    """Return every layout on `devices` NPUs that fits, the fastest first. Ties go to fewer bytes sent, then to less memory. All
    axes are tried except stages, which stay as configured if they divide `devices` and are 1 otherwise: their benefit depends on
    train.accumulation, which is set with them. Recompute is tried on and off. A tensor group is at most as large as a host. Raises
    ConfigError for more NPUs than are planned."""
    if devices > MOST_RANKS:
        raise ConfigError(f"{argument('--devices')} {devices}: at most {MOST_RANKS:,} are planned")
    ranked = []
    for planned in _layouts(config, devices):
        if fits(planned):
            seconds = step_time(planned).step
            links = [link_bytes(planned, stage) for stage in range(planned.parallel.stages)]
            sent, npu_bytes = sum(link["hccs"] + link["network"] for link in links), sum(npu_peak(planned).values())
            rounded_seconds = float(f"{seconds:.9g}")  # sums in another order differ in the last digits, and are ties
            ranked.append((rounded_seconds, sent, npu_bytes, TimedLayout(planned.parallel, seconds)))
    ranked.sort(key=lambda entry: entry[:3])  # stable: equal ones stay in the order of _layouts
    return [layout for *_, layout in ranked]


def suggest_layout(config: Config, devices: int, layouts: list[TimedLayout] | None = None) -> ParallelConfig:
    """Return the parallel section for `devices` NPUs: the fastest that fits. If none fits, the one that leaves most room for other
    keys: the largest possible numbers of tensor ranks, then groups, then expert ranks, with recompute.

    layouts: the result of `fastest_layouts`, if the caller has it. Raises ConfigError if `devices` cannot be laid out; the message
    has the nearest numbers that can.
    """
    layouts = fastest_layouts(config, devices) if layouts is None else layouts
    if layouts:
        return layouts[0].parallel
    if choices := list(_layouts(config, devices)):
        return choices[-1].parallel  # the last has the largest axes, and recompute
    raise ConfigError(_impossible_layout(config, devices))


def fits(config: Config) -> bool:
    """Return True if every NPU and every host has enough memory."""
    chip = chip_of(config)
    return sum(npu_peak(config).values()) <= chip.memory and sum(host_peak(config).values()) <= chip.host_memory


def least_devices(config: Config) -> int | None:
    """Return the smallest number of NPUs on which a layout fits; None if 4,096 are not enough."""
    return next((n for n in range(1, _MOST_TRIED + 1) if any(map(fits, _layouts(config, n)))), None)


def what_fits(config: Config) -> dict[str, int | bool | str] | None:
    """Return keys and values with which `config` fits on the NPUs and hosts of the same ranks; None if it fits already or none
    suffice. Tried are ECSS, recompute and, if a host has too little memory, expert moments in bfloat16; then smaller micro-batches,
    the largest first, and more of them, so that the update stays the same."""
    for changed_keys, changed_config in _changes(config):
        if fits(changed_config):
            return changed_keys or None  # {}: it fits without a change
    return None


def _changes(config: Config) -> Iterator[tuple[dict[str, int | bool | str], Config]]:
    """Yield changes of keys that may save memory, as values by key, each with the changed configuration. The first is {}, no
    change; then come recompute, ECSS and moments in bfloat16, then the same with smaller micro-batches."""
    train, recompute, ecss = config.train, config.parallel.recompute, config.ecss
    moments_dtypes, old_values = list(dict.fromkeys((ecss.moments, "bfloat16"))), leaves(config.model_dump())
    for divisor, moments_dtype in itertools.product(_divisors(train.batch_size), moments_dtypes):
        for ecss_enabled, with_recompute in itertools.product(sorted({ecss.enabled, True}), sorted({recompute, True})):
            keys: dict[str, int | bool | str] = {
                "ecss.enabled": ecss_enabled,
                "ecss.moments": moments_dtype,
                "parallel.recompute": with_recompute,
                "train.batch_size": train.batch_size // divisor,
                "train.accumulation": train.accumulation * divisor,
            }
            try:
                changed_config = parse_config(override(config.model_dump(), [*keys.items()]))
                check_layout(changed_config)
            except ConfigError:
                continue  # too few sequences for so many ranks, or moments that beta2 does not allow
            yield {key: value for key, value in keys.items() if value != old_values[key]}, changed_config


def _layouts(config: Config, devices: int) -> Iterator[Config]:
    """Yield every layout of `config` on `devices` NPUs, the smallest tensor degree first, without recompute first."""
    stages = config.parallel.stages if devices % config.parallel.stages == 0 else 1
    divisors = map(_divisors, (devices // stages, config.data.domain_sets, config.model.experts_per_domain))
    for tensor, groups, expert in itertools.product(*divisors):
        if tensor > chip_of(config).per_host:
            break  # tensor grows slowest: all further layouts are too large for a host, too
        data, remainder = divmod(devices, stages * groups * expert * tensor)
        if remainder:
            continue
        axes = {"stages": stages, "groups": groups, "expert": expert, "data": data, "tensor": tensor}
        for recompute in (False, True):
            parallel = config.parallel.model_copy(update=axes | {"recompute": recompute})
            planned = config.model_copy(update={"parallel": parallel})
            try:
                planned.check_divisible()
                check_layout(planned)
            except ValueError:
                break  # something does not divide evenly, such as attention heads, with recompute or without
            yield planned


@cache
def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _impossible_layout(config: Config, devices: int) -> str:
    """Return the message for a number of NPUs that has no layout, with the nearest numbers that have one."""
    sequences = config.train.batch_size // config.data.domains_per_step
    # ways to divide: stages, domain sets, sequences, and tensor ranks of a host
    most = min(config.parallel.stages * config.data.domain_sets * sequences * chip_of(config).per_host, _MOST_TRIED)
    fewer = next((n for n in range(min(devices - 1, most), 0, -1) if any(_layouts(config, n))), None)
    more = next((n for n in range(max(devices + 1, 1), most + 1) if any(_layouts(config, n))), None)
    nearest = " or ".join(str(n) for n in (fewer, more) if n)
    groups = ", on 910A the same NPUs of each host" if family(config.parallel.chip) == "910a" else ""
    return (
        f"{argument('--devices')} {devices}: {config.name} cannot be laid out on so many NPUs. MindSpore takes 1, 2, 4 or a "
        f"multiple of 8{groups}; each needs an equal part of data.domain_sets={config.data.domain_sets}, of the {sequences} "
        f"sequences of a block and, up to {chip_of(config).per_host} ways, of attention heads, hidden and ffn. The nearest numbers "
        f"that can be are {nearest}"
    )
