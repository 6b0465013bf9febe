"""The plan of a configuration on a number of NPUs: memory, traffic and step time, as a tree of plain values and as text; and a scan
over 8, 16, …, 4,096 NPUs. Pure Python."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from pangu_sigma.chips import CHIP_DATA, GIB
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.npu.communicators import check_layout
from pangu_sigma.npu.cuts import Array, arrays_of_step
from pangu_sigma.npu.plan import suggest
from pangu_sigma.npu.plan.cost import step_time, step_time_all_experts
from pangu_sigma.npu.plan.memory import TIGHT_FRACTION, host_peak, npu_items, npu_peak
from pangu_sigma.npu.plan.traffic import collectives, link_bytes
from pangu_sigma.npu.row_counts import chip_of, exchanged_rows, multiplied_rows, tokens_of_rank
from pangu_sigma.npu.supported import check_ascend
from pangu_sigma.ranks.layout import axes_text, layers_of_stage, rre_layers_of_stage
from pangu_sigma.results import aligned
from pangu_sigma.sections import ParallelConfig

FOR_JSON = ("parallel", "collectives", "parameters")
"""Sections of a plan that are for JSON alone: too long to print."""

_PHASES = ("forward", "recompute", "backward", "weight", "gradient", "norm")


def laid_out(config: Config, devices: int, layouts: list[suggest.TimedLayout] | None = None) -> Config:
    """Return the configuration for `devices` ranks: unchanged if its parallel section has that number, else with a suggested
    section. layouts: result of `fastest_layouts`, if there is one already. Raises ConfigError if `config` cannot be laid out."""
    if config.parallel.ranks == devices:
        check_layout(config)
        return config
    return suggest.with_parallel(config, **suggest.suggest_layout(config, devices, layouts).model_dump())


def make_plan(config: Config, devices: int) -> dict[str, Any]:
    """Return the predicted plan of `config` on `devices` NPUs, as sections of plain values. Raises ConfigError if it cannot be laid
    out on them.

    suggested: the parallel section, if it is our suggestion, because the configured one has another number of ranks. next_best: the
    two fastest other layouts that fit. least_devices: smallest number of NPUs on which a layout fits; None if 4,096 are not enough.
    refused: reason why the Ascend step does not support the plan, which is for comparison only then; None if it does. fits: True if
    every NPU and every host has enough memory. what_fits: keys and values with which it fits; None if it does already, or if no
    values suffice. sent_rows, multiplied_rows: rows of one micro-batch in a segment of an RRE layer. npu_gib, host_gib: memory of
    the NPU and of the host that need most; tight: less than a tenth is left. seconds: step time of the slowest stage.
    all_experts_seconds: step time if all experts are moved and updated, as in the paper's baseline; None if all are active.
    moved_gb: traffic by link of the NPU that has most. compiled, differences: see `compile_plan`. collectives and parameters are of
    one rank of each stage; bytes as `CollectiveCalls.nbytes`; slice, computed, shape as `kept`, `computed`, `shape` of `Array`.
    """
    layouts = suggest.fastest_layouts(config, devices)
    planned = laid_out(config, devices, layouts)
    chip, routed, stages = chip_of(planned), planned.model.rre_layers > 0, range(planned.parallel.stages)
    time, default = step_time(planned), ParallelConfig()
    busiest_links = max((link_bytes(planned, stage) for stage in stages), key=lambda links: sum(links.values()))
    others = [layout for layout in layouts if layout.parallel != planned.parallel][:2]
    has_inactive_experts = routed and planned.experts > planned.active_of("own")
    return {
        "name": planned.name,
        "chip": planned.parallel.chip,
        "devices": planned.parallel.ranks,
        "hosts": math.ceil(planned.parallel.ranks / chip.per_host),
        "layout": layout_text(planned.parallel),
        "suggested": None if planned is config else {k: v for k, v in planned.parallel if v != getattr(default, k)},
        "next_best": [{"layout": layout_text(o.parallel), "step_seconds": o.step_seconds} for o in others],
        "least_devices": suggest.least_devices(config),
        "refused": _refusal(planned),
        "fits": suggest.fits(planned),
        "what_fits": suggest.what_fits(planned),
        "compute_dtype": planned.train.compute_dtype,
        "passes": planned.train.accumulation,
        "tokens_of_rank": tokens_of_rank(planned),
        "sent_rows": exchanged_rows(planned) if routed else 0,
        "multiplied_rows": multiplied_rows(planned) if routed else 0,
        "npu_gib": _memory_section(npu_peak(planned), chip.memory),
        "host_gib": _memory_section(host_peak(planned), chip.host_memory),
        "step_seconds": time.step,
        "tokens_per_second": planned.step_tokens / time.step,
        "seconds": asdict(time),
        "all_experts_seconds": step_time_all_experts(planned).step if has_inactive_experts else None,
        "moved_gb": {link: nbytes / 1e9 for link, nbytes in busiest_links.items()},
        "stages": [_stage_section(planned, stage) for stage in stages],
        **_collective_sections(planned),
        "compiled": [],
        "differences": None,
        "parallel": planned.parallel.model_dump(),
        "parameters": [_array_section(a, stage) for stage in stages for a in arrays_of_step(planned, stage)],
    }


def _refusal(config: Config) -> str | None:
    """Return why the Ascend step does not support the configuration; None if it does."""
    try:
        check_ascend(config)
    except ConfigError as error:
        return str(error)
    return None


def _memory_section(items: dict[str, int], limit: int) -> dict[str, float | bool]:
    """Return the items of a memory in GiB, their sum (needed), the limit, and what is left. tight: everything fits, but less than
    TIGHT_FRACTION is free, and the estimate may be wrong by more. items: bytes by name. limit: bytes of the memory."""
    needed, left = sum(items.values()) / GIB, (limit - sum(items.values())) / GIB
    is_tight = 0 <= left < TIGHT_FRACTION * limit / GIB
    totals = {"needed": needed, "limit": limit / GIB, "left": left, "tight": is_tight}
    return {name: nbytes / GIB for name, nbytes in items.items() if nbytes} | totals


def _stage_section(config: Config, stage: int) -> dict[str, Any]:
    layers, routed = layers_of_stage(config, stage), len(rre_layers_of_stage(config, stage))
    first, needed = stage * config.parallel.stage_ranks, sum(npu_items(config, stage).values()) / GIB
    return {"first_rank": first, "layers": [layers[0], layers[-1]], "rre_layers": routed, "npu_memory_gib": needed}


def _collective_sections(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Return the two sections of a plan about collectives: `calls`, a line for each stage, operator and size of group, and
    `collectives`, a line for each phase and purpose as well."""
    line_of_group, collective_lines = dict[tuple[int, str, int], dict[str, Any]](), list[dict[str, Any]]()
    for stage in range(config.parallel.stages):
        for c in collectives(config, stage):
            first_line = {"stage": stage, "op": c.op, "ranks": c.group_size, "calls": 0, "gb": 0.0}
            first_line["phases"] = dict.fromkeys(_PHASES, 0)
            line = line_of_group.setdefault((stage, c.op, c.group_size), first_line)
            line["calls"] += c.count
            line["gb"] += c.nbytes / 1e9
            line["phases"][c.phase] += c.count
            collective_lines.append(asdict(c) | {"axes": list(c.axes), "stage": stage})
    return {"calls": [line_of_group[key] for key in sorted(line_of_group)], "collectives": collective_lines}


def _array_section(array: Array, stage: int) -> dict[str, Any]:
    slices = {"slice": [*array.kept], "computed": [*array.computed], "shape": [*array.shape]}
    return {"name": array.name, "device": array.device, "dtype": array.dtype, "stage": stage} | slices


def format_plan(plan: dict[str, Any]) -> str:
    """Format a plan as text: all of it but FOR_JSON."""
    verdict, chip = "fits" if plan["fits"] else "DOES NOT FIT", CHIP_DATA[plan["chip"]].title
    title = f"{plan['name']} on {plan['devices']:,} NPUs of {chip}, {plan['hosts']:,} hosts: {verdict}"
    trust = "times are estimates, fitted to 910A's 7.5 s and 6.3x of the paper; hosts of other chips are taken to be as fast, "
    trust += "however many NPUs they have: npu/plan/cost.py says what to trust"
    tree = {name: value for name, value in plan.items() if name not in FOR_JSON}
    return "\n".join([title, *format_tree(tree), trust])


def format_tree(tree: dict[str, Any]) -> list[str]:
    """Format a tree of plain values as lines: a table for a dictionary, with a row for each key, and for a list of dictionaries,
    with their keys as its head; one line for any other value. None and empty values are left out."""
    lines = []
    for name, value in tree.items():
        title = name.replace("_", " ")
        if value in (None, [], {}):
            continue
        if isinstance(value, dict):
            rows, alignment = [[key.replace("_", " "), _text(content)] for key, content in value.items()], "<>"
        elif isinstance(value, list) and isinstance(value[0], dict):
            rows, alignment = [[*value[0]], *([_text(cell) for cell in line.values()] for line in value)], ">"
        else:
            lines.append(f"{title}: {_text(value)}")
            continue
        lines += [title, *(f"  {line}" for line in aligned(rows, alignment))]
    return lines


def _text(value: Any) -> str:
    """Format a value of a plan: numbers with three or more digits, yes and no, `key=value` for the items of a dictionary that are
    not zero, at most 20 items of a list."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, dict):
        return " ".join(f"{key}={_text(content)}" for key, content in value.items() if content) or "nothing"
    if isinstance(value, list):
        return "; ".join(map(_text, value[:20]))
    return f"{value:,}" if isinstance(value, int) else str(value)


def layout_text(parallel: ParallelConfig) -> str:
    """Format a layout and whether it recomputes, such as `groups=4 · expert=16 · data=1 · tensor=8 · recompute`."""
    return axes_text(parallel) + " · recompute" * parallel.recompute


SCANNED = tuple(8 << power for power in range(10))
"""Numbers of NPUs for which a scan finds layouts."""


def scan(config: Config) -> dict[str, Any]:
    """Return the fastest layout on each number of NPUs in SCANNED on which the configuration can be laid out, as plain values for
    JSON and `format_tree`. fits: yes, no, or tight if less than a tenth of a memory is left; the time of a layout that does not fit
    is for comparison.

    Raises ConfigError if the configuration cannot be laid out on any of them.
    """
    layouts, chip = [], chip_of(config)
    for devices in SCANNED:
        try:
            planned = suggest.with_parallel(config, **suggest.suggest_layout(config, devices).model_dump())
        except ConfigError as error:
            refusal = error
            continue
        npu_bytes, host_bytes = sum(npu_peak(planned).values()), sum(host_peak(planned).values())
        free = 1 - max(npu_bytes / chip.memory, host_bytes / chip.host_memory)  # fraction of the fuller memory
        step_seconds = step_time(planned).step
        layout = {
            "devices": devices,
            "fits": "no" if free < 0 else "tight" if free < TIGHT_FRACTION else "yes",
            "layout": layout_text(planned.parallel),
            "npu_gib": npu_bytes / GIB,
            "host_gib": host_bytes / GIB,
            "step_seconds": step_seconds,
            "tokens_per_second": planned.step_tokens / step_seconds,
            "tokens_per_npu": planned.step_tokens / step_seconds / devices,
        }
        layouts.append(layout)
    if not layouts:
        raise refusal
    names = {"name": config.name, "chip": config.parallel.chip}
    return names | {"least_devices": suggest.least_devices(config), "scan": layouts}
