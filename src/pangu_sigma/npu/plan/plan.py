"""The plan of a configuration on a number of NPUs: memory, traffic and step time, as a tree and as text; and a scan over 8, 16, …
4,096 NPUs. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pangu_sigma.chips import GIB, ChipData
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.npu.communicators import check_layout
from pangu_sigma.npu.cuts import Array, accumulator_arrays, active_buffers, all_arrays
from pangu_sigma.npu.plan.compile import Compiled
from pangu_sigma.npu.plan.cost import StepTime, step_time, step_time_all_experts, tokens_per_second
from pangu_sigma.npu.plan.memory import TIGHT_FRACTION, MemoryItem, chip_of, host_peak, npu_items, npu_peak, total
from pangu_sigma.npu.plan.suggest import (
    TimedLayout,
    fastest_layouts,
    fits,
    least_devices,
    suggest_layout,
    what_fits,
    with_parallel,
)
from pangu_sigma.npu.plan.traffic import CollectiveCalls, LinkBytes, PredictedCollective, collectives, link_bytes
from pangu_sigma.npu.rows import exchanged_rows, multiplied_rows, tokens_of_rank
from pangu_sigma.npu.supported import check_ascend
from pangu_sigma.ranks.layout import AXES, layers_of_stage, rre_layers_of_stage
from pangu_sigma.results import aligned
from pangu_sigma.sections import ParallelConfig

FOR_JSON = ("parallel", "collectives", "parameters")
"""Sections of a plan that are for JSON alone: too long to print."""

_PHASES = ("forward", "recompute", "backward", "weight", "gradient", "norm")


@dataclass(frozen=True)
class Memory:
    """Memory that an NPU or a host needs, item by item. limit: the memory that it has, in bytes."""

    items: list[MemoryItem]
    limit: int

    @property
    def needed_gib(self) -> float:
        """Memory of all items together, in GiB."""
        return total(self.items) / GIB

    @property
    def left_gib(self) -> float:
        """Memory that stays free, in GiB; negative if the memory is too small."""
        return self.limit / GIB - self.needed_gib

    def as_dict(self) -> dict[str, float | bool]:
        """Return the items in GiB, their sum, the limit, and what is left. tight: everything fits, but the free memory is smaller
        than the error of the estimate may be."""
        tight = 0 <= self.left_gib < TIGHT_FRACTION * self.limit / GIB
        whole = {"needed": self.needed_gib, "limit": self.limit / GIB, "left": self.left_gib, "tight": tight}
        return {item.name: item.nbytes / GIB for item in self.items} | whole


@dataclass(frozen=True)
class StagePlan:
    """Pipeline stage of a plan: its first and last layer, and the memory, arrays and collectives of one of its ranks."""

    first_rank: int
    layers: list[int]
    rre_layers: int
    npu_memory_gib: float
    collectives: list[PredictedCollective]
    arrays: list[Array]
    """Weights, Adam state, gradient accumulators, and the buffers of the active experts."""


@dataclass(frozen=True)
class Plan:
    """Plan of a configuration on a number of NPUs.

    config: the planned configuration. suggested: True if its parallel section is our suggestion, because the configured one has
        another number of ranks.
    next_best: the two fastest other layouts that fit on as many NPUs. least_devices: smallest number of NPUs on which a layout
        fits; None if 4,096 are not enough.
    refused: reason why the Ascend step does not support the plan, which is for comparison only then.
    fits: True if every NPU and every host has enough memory. what_fits: keys and values with which the plan fits; None if it fits
        already, or if no values suffice.
    npu, host: memory of the NPU and of the host that need most.
    seconds: step time of the slowest stage. all_experts: seconds of a step that moves and updates all experts, as in the paper's
        baseline; None if all are active. links: bytes that the NPU with most traffic moves in a step.
    compiled: steps that MindSpore compiled, one for each stage. differences: what differs in them from the prediction; do not trust
        a plan with differences. None if nothing was compiled.
    """

    config: Config
    suggested: bool
    next_best: list[TimedLayout]
    least_devices: int | None
    refused: str | None
    fits: bool
    what_fits: dict[str, int | bool | str] | None
    npu: Memory
    host: Memory
    seconds: StepTime
    all_experts: float | None
    links: LinkBytes
    stages: list[StagePlan]
    compiled: Sequence[Compiled] = ()
    differences: list[str] | None = None

    @property
    def chip(self) -> ChipData:
        """Data of the NPUs' chip and of its server."""
        return chip_of(self.config)

    @property
    def devices(self) -> int:
        """Number of NPUs."""
        return self.config.parallel.ranks

    @property
    def hosts(self) -> int:
        """Number of hosts for the NPUs."""
        return math.ceil(self.devices / self.chip.per_host)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as sections of plain values, for JSON; `format_plan` prints all but FOR_JSON.

        rows of one pass of a segment of an RRE layer; tight: less than a tenth of a memory is left. collectives and parameters are
        of one rank of each stage, as MindSpore placed them if the plan is compiled, else as predicted; bytes as
        `CollectiveCalls.nbytes`; slice, computed, shape as `kept`, `computed`, `shape` of `Array`.
        """
        c, routed = self.config, bool(self.config.model.rre_layers)
        of_stages: list[Sequence[CollectiveCalls]] = [stage.collectives for stage in self.stages]
        of_stages = [step.collectives for step in self.compiled] or of_stages
        calls = [(n, call) for n, of_stage in enumerate(of_stages) for call in of_stage]
        return {
            "name": c.name,
            "chip": c.parallel.chip,
            "devices": self.devices,
            "hosts": self.hosts,
            "layout": layout_text(c.parallel),
            "suggested": {k: v for k, v in c.parallel if v != getattr(ParallelConfig(), k)} if self.suggested else None,
            "next_best": [{"layout": layout_text(n.parallel), "step_seconds": n.step_seconds} for n in self.next_best],
            "least_devices": self.least_devices,
            "refused": self.refused,
            "fits": self.fits,
            "what_fits": self.what_fits,
            "compute_dtype": c.train.compute_dtype,
            "passes": c.train.accumulation,
            "tokens_of_rank": tokens_of_rank(c),
            "sent_rows": exchanged_rows(c) if routed else 0,
            "multiplied_rows": multiplied_rows(c) if routed else 0,
            "npu_gib": self.npu.as_dict(),
            "host_gib": self.host.as_dict(),
            "step_seconds": self.seconds.step,
            "tokens_per_second": tokens_per_second(c, self.seconds),
            "seconds": asdict(self.seconds),
            "all_experts_seconds": self.all_experts,
            "moved_gb": {link: nbytes / 1e9 for link, nbytes in asdict(self.links).items()},
            "stages": [
                {key: getattr(stage, key) for key in ("first_rank", "layers", "rre_layers", "npu_memory_gib")}
                for stage in self.stages
            ],
            "calls": _summed(calls),
            "compiled": [
                {"rank": s.rank, "seconds": s.seconds, "peak_gib": s.peak_gib, "on_the_host": s.host_operators}
                for s in self.compiled
            ],
            "differences": self.differences,
            "parallel": c.parallel.model_dump(),
            "collectives": [_call_tree(call, n) for n, call in calls],
            "parameters": [asdict(p) | {"stage": n} for n, step in enumerate(self.compiled) for p in step.parameters]
            or [_array_tree(a, n) for n, stage in enumerate(self.stages) for a in stage.arrays],
        }


def laid_out(config: Config, devices: int, layouts: list[TimedLayout] | None = None) -> Config:
    """Return the configuration for `devices` ranks: unchanged if its parallel section has that number, else with a suggested
    section. layouts: as in `suggest_layout`. Raises ConfigError if there is no layout, or the configuration cannot be planned."""
    if config.parallel.ranks == devices:
        check_layout(config)
        return config
    return with_parallel(config, **suggest_layout(config, devices, layouts).model_dump())


def make_plan(config: Config, devices: int) -> Plan:
    """Return the predicted plan of `config` on `devices` NPUs. Raises ConfigError if it cannot be laid out on them."""
    layouts = fastest_layouts(config, devices)
    planned = laid_out(config, devices, layouts)
    chip, stages = chip_of(planned), range(planned.parallel.stages)
    idle = planned.model.rre_layers > 0 and planned.experts > planned.active_of("own")
    return Plan(
        config=planned,
        suggested=planned is not config,
        next_best=[other for other in layouts if other.parallel != planned.parallel][:2],
        least_devices=least_devices(config),
        refused=_refused(planned),
        fits=fits(planned),
        what_fits=what_fits(planned),
        npu=Memory([item for item in npu_peak(planned) if item.nbytes], chip.memory),
        host=Memory([item for item in host_peak(planned) if item.nbytes], chip.host_memory),
        seconds=step_time(planned),
        all_experts=step_time_all_experts(planned).step if idle else None,
        links=max((link_bytes(planned, s) for s in stages), key=lambda link: link.pcie + link.hccs + link.network),
        stages=[_stage(planned, stage) for stage in stages],
    )


def _stage(config: Config, stage: int) -> StagePlan:
    layers = layers_of_stage(config, stage)
    return StagePlan(
        first_rank=stage * config.parallel.stage_ranks,
        layers=[layers[0], layers[-1]],
        rre_layers=len(rre_layers_of_stage(config, stage)),
        npu_memory_gib=total(npu_items(config, stage)) / GIB,
        collectives=collectives(config, stage),
        arrays=[*all_arrays(config, stage), *active_buffers(config, stage), *accumulator_arrays(config, stage)],
    )


def _refused(config: Config) -> str | None:
    try:
        check_ascend(config)
    except ConfigError as error:
        return str(error)
    return None


def _summed(calls: Iterable[tuple[int, CollectiveCalls]]) -> list[dict[str, Any]]:
    """Return a row for each stage, operator and size of group."""
    rows: dict[tuple[int, str, int], dict[str, Any]] = {}
    for stage, c in calls:
        new = {
            "stage": stage,
            "op": c.op,
            "ranks": c.group_size,
            "calls": 0,
            "gb": 0.0,
            "phases": dict.fromkeys(_PHASES, 0),
        }
        row = rows.setdefault((stage, c.op, c.group_size), new)
        row["calls"] += c.count
        row["gb"] += c.nbytes / 1e9
        row["phases"][c.phase] += c.count
    return [rows[key] for key in sorted(rows)]


def _array_tree(array: Array, stage: int) -> dict[str, Any]:
    shapes = {"slice": array.kept, "computed": array.computed, "shape": array.shape}
    of = {"name": array.name, "device": array.device, "dtype": array.dtype, "stage": stage}
    return of | {name: list(shape) for name, shape in shapes.items()}


def _call_tree(call: CollectiveCalls, stage: int) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(call).items()} | {"stage": stage}


def format_plan(plan: Plan) -> str:
    """Format the plan as text: all of `Plan.as_dict` but FOR_JSON."""
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    title = f"{plan.config.name} on {plan.devices:,} NPUs of {plan.chip.title}, {plan.hosts:,} hosts: {verdict}"
    trust = "times are estimates, fitted to 910A's 7.5 s and 6.3x of the paper; hosts of other chips are taken to be as fast, "
    trust += "however many NPUs they have: npu/plan/cost.py says what to trust"
    tree = {name: value for name, value in plan.as_dict().items() if name not in FOR_JSON}
    return "\n".join([title, *format_tree(tree), trust])


def format_tree(tree: dict[str, Any]) -> list[str]:
    """Format a line for each value, and a table for each list of rows and for each group of values; nothing for None."""
    lines = []
    for name, value in tree.items():
        title = name.replace("_", " ")
        if value in (None, [], {}):
            continue
        if isinstance(value, dict):
            rows, sides = [[key.replace("_", " "), _text(of)] for key, of in value.items()], "<>"
        elif isinstance(value, list) and isinstance(value[0], dict):
            rows, sides = [[*value[0]], *([_text(cell) for cell in row.values()] for row in value)], ">"
        else:
            lines.append(f"{title}: {_text(value)}")
            continue
        lines += [title, *(f"  {line}" for line in aligned(rows, sides))]
    return lines


def _text(value: Any) -> str:
    """Format a value of a plan: numbers with three or more digits, words for True and False, what is not zero of a group."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, dict):
        return " ".join(f"{key}={_text(of)}" for key, of in value.items() if of) or "nothing"
    if isinstance(value, list):
        return "; ".join(map(_text, value[:20]))
    return f"{value:,}" if isinstance(value, int) else str(value)


def layout_text(parallel: ParallelConfig) -> str:
    """Format a layout in words: its axes of several ranks, and recompute, such as `4 groups x 16 expert x 8 tensor, recompute`."""
    sizes = ((getattr(parallel, name), name) for name in AXES)
    axes = " x ".join(f"{size} {name}" for size, name in sizes if size > 1) or "a single rank"
    return axes + (", recompute" if parallel.recompute else "")


SCANNED = tuple(8 << power for power in range(10))
"""Numbers of NPUs for which a scan finds layouts."""


def scan(config: Config) -> dict[str, Any]:
    """Return the fastest layout on each number of NPUs in SCANNED on which the configuration can be laid out, as plain values for
    JSON and `format_tree`. fits: yes, no, or tight if less than a tenth of a memory is left; the time of a layout that does not fit
    is for comparison.

    Raises ConfigError if the configuration cannot be laid out on any of them.
    """
    rows, chip = [], chip_of(config)
    for devices in SCANNED:
        try:
            planned = with_parallel(config, **suggest_layout(config, devices).model_dump())
        except ConfigError as error:
            refusal = error
            continue
        time, npu, host = step_time(planned), total(npu_peak(planned)), total(host_peak(planned))
        left, speed = 1 - max(npu / chip.memory, host / chip.host_memory), tokens_per_second(planned, time)
        rows.append(
            {
                "devices": devices,
                "fits": "no" if left < 0 else "tight" if left < TIGHT_FRACTION else "yes",
                "layout": layout_text(planned.parallel),
                "npu_gib": npu / GIB,
                "host_gib": host / GIB,
                "step_seconds": time.step,
                "tokens_per_second": speed,
                "tokens_per_npu": speed / devices,
            }
        )
    if not rows:
        raise refusal
    return {"name": config.name, "chip": config.parallel.chip, "least_devices": least_devices(config), "scan": rows}
