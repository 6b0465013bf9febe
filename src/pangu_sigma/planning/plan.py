"""The plan of a configuration on a number of NPUs: memory, traffic and step time. Pure Python; no network is built."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pangu_sigma.ascend.supported import check_ascend
from pangu_sigma.chips import CHIP_DATA, GIB, ChipData
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.npu.communicators import check_layout
from pangu_sigma.npu.rows import exchanged_rows, multiplied_rows, room_of, tokens_of_rank
from pangu_sigma.parallel.layout import layers_of_stage, rre_layers_of_stage
from pangu_sigma.parallel.parameters import Array, accumulator_arrays, active_buffers, all_arrays
from pangu_sigma.planning.compile import Compiled
from pangu_sigma.planning.cost import (
    MEASURED_UPDATE_BANDWIDTH,
    OverlappedStep,
    Rates,
    Sensitivity,
    StepTime,
    most_sensitive,
    overlapped_step,
    rates_of,
    step_time,
    step_time_all_experts,
    tokens_per_second,
)
from pangu_sigma.planning.machine import TIGHT_FRACTION, chip_of
from pangu_sigma.planning.memory import (
    MemoryItem,
    host_peak,
    npu_items,
    npu_peak,
    total,
)
from pangu_sigma.planning.segments import SegmentComparison, compare_segments
from pangu_sigma.planning.storage import StorageReads, storage_reads
from pangu_sigma.planning.suggest import (
    AlmostFits,
    TimedLayout,
    changes_that_fit_npus,
    fastest_layouts,
    fits,
    least_devices,
    suggest_layout,
    what_fits,
    with_parallel,
)
from pangu_sigma.planning.traffic import CollectiveCalls, LinkBytes, PredictedCollective, collectives, link_bytes
from pangu_sigma.sections import ParallelConfig


@dataclass(frozen=True)
class MemoryTable:
    """Memory that an NPU or a host needs, item by item. limit: the memory that it has, in bytes."""

    items: list[MemoryItem]
    limit: int

    @property
    def needed_gib(self) -> float:
        """Memory of all items together, in GiB."""
        return total(self.items) / GIB

    @property
    def limit_gib(self) -> float:
        """Memory that the NPU or the host has, in GiB."""
        return self.limit / GIB

    @property
    def left_gib(self) -> float:
        """Memory that stays free, in GiB; negative if the memory is too small."""
        return self.limit_gib - self.needed_gib

    @property
    def is_tight(self) -> bool:
        """True if everything fits, but the free memory is smaller than the error of the estimate may be."""
        return 0 <= self.left_gib < TIGHT_FRACTION * self.limit_gib


@dataclass(frozen=True)
class StagePlan:
    """Pipeline stage of a plan, with the arrays and the collectives of one of its ranks."""

    first_rank: int
    layers: list[int]
    """First and last layer."""
    rre_layers: int
    npu_memory_gib: float
    collectives: list[PredictedCollective]
    arrays: list[Array]
    """Weights, Adam state, gradient accumulators, and the buffers of the active experts."""


@dataclass(frozen=True)
class Variant:
    """Memory in GiB that an NPU needs if one setting of a plan is changed, and the part of it that exceeds the NPU's memory."""

    npu_memory_gib: float
    over_limit_gib: float


@dataclass(frozen=True)
class AllExperts:
    """Estimated step time and speed if all experts are moved and updated, as in the paper's baseline."""

    step_seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class MeasuredAdam:
    """Estimated seconds of Adam on the host, and of the step, at the memory bandwidth that this project measured on a CPU."""

    bytes_per_second: float
    host_update: float
    step_seconds: float


@dataclass(frozen=True)
class CompiledPlan:
    """Training steps that MindSpore compiled for a plan."""

    steps: list[Compiled]
    """Compiled step of the first rank of each stage."""
    differences: list[str]
    """Parameters and collectives that differ from the prediction. Do not trust a plan with differences."""


@dataclass(frozen=True)
class Plan:
    """Plan of a configuration on a number of NPUs: layout, memory, traffic and step time."""

    name: str
    devices: int
    parallel: ParallelConfig
    compute_dtype: str
    suggested: bool
    """True if the parallel section is our suggestion, because the configured one has another number of ranks."""
    next_best: list[TimedLayout]
    """The two fastest other layouts that fit on as many NPUs."""
    least_devices: int | None
    """Smallest number of NPUs on which a layout fits; None if 4,096 are not enough."""
    refused: str | None
    """Reason why the Ascend step does not support this plan, which is for comparison only then; None if it is supported."""
    passes: int
    """Number of micro-batches of a step."""
    tokens_of_rank: int
    capacity: int
    """Maximum number of rows that a rank sends to one expert; 0 without experts or without a limit."""
    sent_rows: int
    """Number of rows that a rank sends to experts' ranks, and receives, in a pass of a segment; 0 without experts."""
    multiplied_rows: int
    """Number of rows that the experts of a rank multiply in a pass of a segment; 0 without experts."""
    fits: bool
    npu: MemoryTable
    """Memory of the NPU that needs the most memory."""
    host: MemoryTable
    """Memory of the host that needs the most memory."""
    stages: list[StagePlan]
    what_fits: dict[str, int | bool | str] | None
    """Keys and values with which the plan fits NPUs and hosts; None if it fits already, or if no values suffice."""
    almost_fits: AlmostFits | None
    """Keys with which the plan fits the NPUs but not a host; None if `what_fits` or the plan itself fits, or if no keys help."""
    variants: dict[str, Variant]
    """Memory of an NPU with one setting changed, by the name of the change."""
    all_experts: AllExperts | None
    """Step time if all experts are moved and updated; None without ECSS, and if all experts are active."""
    seconds: StepTime
    """Step time of the slowest stage."""
    constants: Rates
    """Constants of the estimated times."""
    hangs_on: Sensitivity
    """Constant on which the step time depends most."""
    measured_adam: MeasuredAdam | None
    """Step time with Adam as fast as measured; None if no experts are on the host."""
    overlapped: OverlappedStep | None
    """Step time with Adam on the host behind the dense layers; None with `ecss.update=step`, and without experts on the host."""
    segments: SegmentComparison | None
    """Costs of the segments of RRE layers, and of one in their place; None if there is only one."""
    tokens_per_second: float
    traffic_bytes: LinkBytes
    """Bytes that the NPU with most traffic moves in a step, by link."""
    storage_bytes_per_second: StorageReads
    """Bytes of the prepared text that the whole job reads in a second."""
    compiled: CompiledPlan | None = None

    @property
    def chip(self) -> ChipData:
        """Data of the NPUs' chip and of its server."""
        return CHIP_DATA[self.parallel.chip]

    @property
    def hosts(self) -> int:
        """Number of hosts for the NPUs."""
        return math.ceil(self.devices / self.chip.per_host)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, for JSON: its fields, and those of its properties and tables.

        tight: list of npu and host, each if less than a tenth of its memory is left.
        differences: parameters and collectives of the compiled step that were not predicted, null if nothing was compiled.
        collectives, parameters: of one rank of each stage, as MindSpore placed them if the plan is compiled, else as predicted;
        bytes as `CollectiveCalls.nbytes`; slice, computed, shape as `kept`, `computed`, `shape` of `Array`.
        """
        tree: dict[str, Any] = dataclasses.asdict(dataclasses.replace(self, stages=[], compiled=None)) | {
            "hosts": self.hosts,
            "chip": self.parallel.chip,
            "parallel": self.parallel.model_dump(),
            "next_best": [dataclasses.asdict(n) | {"parallel": n.parallel.model_dump()} for n in self.next_best],
            "npu_memory_gib": self.npu.needed_gib,
            "npu_limit_gib": self.npu.limit_gib,
            "host_memory_gib": self.host.needed_gib,
            "host_limit_gib": self.host.limit_gib,
            "npu": _items_tree(self.npu),
            "host": _items_tree(self.host),
            "stages": [_stage_tree(stage) for stage in self.stages],
            "tight": [name for name, table in (("npu", self.npu), ("host", self.host)) if table.is_tight],
            "step_seconds": self.seconds.step,
            "compiled": self.compiled is not None,
            "differences": None,
            "collectives": [
                _collective_tree(c, n) | {"axes": list(c.axes)}
                for n, stage in enumerate(self.stages)
                for c in stage.collectives
            ],
            "parameters": [_array_tree(a, n) for n, stage in enumerate(self.stages) for a in stage.arrays],
        }
        return tree if self.compiled is None else tree | _compiled_tree(self.compiled, tree["collectives"])


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
    chip, time, stages = chip_of(planned), step_time(planned), range(planned.parallel.stages)
    room = fits(planned)
    changes = None if room else what_fits(planned)
    routed = bool(planned.model.rre_layers)
    return Plan(
        name=planned.name,
        devices=devices,
        parallel=planned.parallel,
        compute_dtype=planned.train.compute_dtype,
        suggested=planned is not config,
        next_best=[other for other in layouts if other.parallel != planned.parallel][:2],
        least_devices=least_devices(config),
        refused=_refused(planned),
        passes=planned.train.accumulation,
        tokens_of_rank=tokens_of_rank(planned),
        capacity=(room_of(planned)["own"].sent or 0) if routed else 0,
        sent_rows=exchanged_rows(planned) if routed else 0,
        multiplied_rows=multiplied_rows(planned) if routed else 0,
        fits=room,
        npu=_memory_table(npu_peak(planned), chip.memory),
        host=_memory_table(host_peak(planned), chip.host_memory),
        stages=[_stage(planned, stage) for stage in stages],
        what_fits=changes,
        almost_fits=None if room or changes else changes_that_fit_npus(planned),
        variants=_variants(planned),
        all_experts=_all_experts(planned),
        seconds=time,
        constants=rates_of(planned),
        hangs_on=most_sensitive(planned),
        measured_adam=_measured_adam(planned) if time.host_update else None,
        overlapped=overlapped_step(planned),
        segments=compare_segments(planned),
        tokens_per_second=tokens_per_second(planned, time),
        traffic_bytes=max(
            (link_bytes(planned, s) for s in stages), key=lambda link: link.pcie + link.hccs + link.network
        ),
        storage_bytes_per_second=storage_reads(planned, math.ceil(devices / chip.per_host), time.step),
    )


def _memory_table(items: list[MemoryItem], limit: int) -> MemoryTable:
    return MemoryTable([item for item in items if item.nbytes], limit)


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


def _variants(config: Config) -> dict[str, Variant]:
    """Return the memory without ECSS, and without and with recompute."""
    variants = {
        "without recompute": with_parallel(config, recompute=False),
        "with recompute": with_parallel(config, recompute=True),
    }
    if config.model.rre_layers:
        off = config.ecss.model_copy(update={"enabled": False, "store": "host"})
        variants["without ECSS"] = config.model_copy(update={"ecss": off})
    memory = {}
    for name, variant in variants.items():
        needed = total(npu_peak(variant))
        memory[name] = Variant(needed / GIB, max(0, needed - chip_of(variant).memory) / GIB)
    return memory


def _all_experts(config: Config) -> AllExperts | None:
    if not (config.ecss.enabled and config.model.rre_layers) or config.experts <= config.active_experts:
        return None
    time = step_time_all_experts(config)
    return AllExperts(time.step, tokens_per_second(config, time))


def _measured_adam(config: Config) -> MeasuredAdam:
    rates = dataclasses.replace(rates_of(config), host_update_bandwidth=MEASURED_UPDATE_BANDWIDTH)
    time = step_time(config, rates=rates)
    return MeasuredAdam(MEASURED_UPDATE_BANDWIDTH, time.host_update, time.step)


def _items_tree(table: MemoryTable) -> list[dict[str, Any]]:
    return [{"item": item.name, "gib": item.nbytes / GIB, "how": item.how} for item in table.items]


def _stage_tree(stage: StagePlan) -> dict[str, Any]:
    return {key: getattr(stage, key) for key in ("first_rank", "layers", "rre_layers", "npu_memory_gib")}


def _collective_tree(calls: CollectiveCalls, stage: int) -> dict[str, Any]:
    tree = dataclasses.asdict(calls)
    return tree | {"bytes": tree.pop("nbytes"), "stage": stage}


def _array_tree(array: Array, stage: int) -> dict[str, Any]:
    return {
        "name": array.name,
        "slice": list(array.kept),
        "device": array.device,
        "computed": list(array.computed),
        "shape": list(array.shape),
        "dtype": array.dtype,
        "stage": stage,
    }


def _compiled_tree(compiled: CompiledPlan, predicted: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the keys that a compiled plan adds to the tree or replaces in it. predicted: the tree of the predicted collectives."""
    return {
        "compile": [{"rank": c.rank, "seconds": c.seconds, "peak_gib": c.peak_gib} for c in compiled.steps],
        "collectives": [
            _collective_tree(c, stage) for stage, step in enumerate(compiled.steps) for c in step.collectives
        ],
        "predicted_collectives": predicted,
        "parameters": [
            dataclasses.asdict(parameter) | {"stage": stage}
            for stage, step in enumerate(compiled.steps)
            for parameter in step.parameters
        ],
        "host_operators": [step.host_operators for step in compiled.steps],
        "operators": [step.operators for step in compiled.steps],
        "differences": compiled.differences,
    }
