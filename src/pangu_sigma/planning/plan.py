"""The plan of a configuration on a number of NPUs: its needs, and the time of a step. Pure Python; nothing is built.

The numbers come from `parameters.py`, `memory.py`, `traffic.py` and `cost.py`, which state their rules, and `machine.py`. `text.py`
writes a plan for people; `differences.py` adds the step that MindSpore compiles for the same configuration.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pangu_sigma.ascend.supported import check_ascend, check_layout
from pangu_sigma.chips import GIB
from pangu_sigma.config import Config, ConfigError, ParallelConfig
from pangu_sigma.parallel.layout import capacity, layers_of_stage, rre_layers_of_stage, tokens_of_rank
from pangu_sigma.parallel.parameters import Array, accumulator_arrays, active_buffers, all_arrays
from pangu_sigma.planning import machine
from pangu_sigma.planning.compile import Compiled
from pangu_sigma.planning.cost import (
    HOST_UPDATE_BANDWIDTH,
    MATMUL_EFFICIENCY,
    StepTime,
    step_time,
    step_time_all_experts,
    tokens_per_second,
)
from pangu_sigma.planning.machine import HOST_MEMORY, LITTLE_LEFT, NPU_MEMORY, NPUS_PER_HOST
from pangu_sigma.planning.memory import (
    MemoryItem,
    exchanged_rows,
    fullest_host,
    fullest_stage,
    host_items,
    npu_items,
    total,
)
from pangu_sigma.planning.suggest import (
    devices_that_fit,
    fits,
    suggest_layout,
    what_fits,
    what_fits_an_npu,
    with_parallel,
)
from pangu_sigma.planning.traffic import LinkBytes, PredictedCollective, collectives, link_bytes


@dataclass(frozen=True)
class MemoryTable:
    """The memory that an NPU or a host needs, item by item, and all that it has, in bytes."""

    items: list[MemoryItem]
    limit: int

    @property
    def needed_gib(self) -> float:
        """GiB of all items together."""
        return total(self.items) / GIB

    @property
    def limit_gib(self) -> float:
        """GiB that are there."""
        return self.limit / GIB

    @property
    def left_gib(self) -> float:
        """GiB that are left; negative if there is not enough."""
        return self.limit_gib - self.needed_gib

    @property
    def is_tight(self) -> bool:
        """True if everything fits, and less is left than assumptions may be wrong by."""
        return 0 <= self.left_gib < LITTLE_LEFT * self.limit_gib


@dataclass(frozen=True)
class StagePlan:
    """One stage of a plan; the arrays and the collectives are those of one rank of the stage."""

    first_rank: int
    first_layer: int
    last_layer: int
    rre_layers: int
    npu_gib: float
    """GiB that one of its NPUs needs."""
    collectives: list[PredictedCollective]
    """The collectives of one step."""
    arrays: list[Array]
    """Everything that lasts from step to step, and the buffers of the active experts."""


@dataclass(frozen=True)
class Variant:
    """The memory of an NPU when one setting is changed, and how much of it the NPU does not have, in GiB."""

    needed_gib: float
    over_gib: float


@dataclass(frozen=True)
class AlmostFits:
    """Keys, with their values, that would make NPUs fit, and the GiB that a host would then need: more than it has."""

    keys: dict[str, int | bool | str]
    host_gib: float


@dataclass(frozen=True)
class AllExperts:
    """The time of a step when all experts are moved and updated, as in the paper's baseline."""

    step_seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class CompiledPlan:
    """The steps that MindSpore compiled for a plan."""

    steps: list[Compiled]
    """The step of the first rank of each stage."""
    differences: list[str]
    """Parameters and collectives that are not as predicted; a plan with any is not to be trusted."""


@dataclass(frozen=True)
class Plan:
    """A configuration on a number of NPUs."""

    name: str
    devices: int
    parallel: ParallelConfig
    suggested: bool
    """True if the parallel section is our suggestion, because the configured one is for another number of ranks."""
    refused: str | None
    """The reason why the Ascend step does not run this plan, which is then for comparison only; None if it does."""
    passes: int
    """Number of micro-batches of a step."""
    tokens_of_rank: int
    capacity: int
    """Most tokens of a rank that one expert takes; 0 without experts."""
    exchanged_rows: int
    """Number of rows that a rank sends to the ranks of experts, and receives, in an RRE layer; 0 without experts."""
    fits: bool
    npu: MemoryTable
    """The memory of the NPU that needs most."""
    host: MemoryTable
    """The memory of the host that needs most."""
    stages: list[StagePlan]
    what_fits: dict[str, int | bool | str] | None
    """Keys, with their values, that would make NPUs and hosts fit; None if they fit as they are, or if no values would."""
    almost: AlmostFits | None
    """The keys that would make the NPUs fit and not the hosts, if none make both fit; None if both do, or if no values would."""
    enough_devices: int | None
    """The least of 2, 4, 8, … times as many NPUs that would fit; None if this plan fits or can be made to, or if none would."""
    variants: dict[str, Variant]
    """The memory with one setting changed, by the name of the change."""
    all_experts: AllExperts | None
    """The time of a step that moves all experts; None without ECSS, and if all experts are active."""
    time: StepTime
    """The time of the slowest stage."""
    tokens_per_second: float
    links: LinkBytes
    """Bytes that the NPU that moves most moves in a step, by link."""
    compiled: CompiledPlan | None = None

    @property
    def hosts(self) -> int:
        """Number of hosts that the NPUs are in."""
        return math.ceil(self.devices / NPUS_PER_HOST)

    def as_dict(self) -> dict[str, Any]:
        """The plan as a plain tree, for JSON.

        almost_fits: keys that would make NPUs fit, where the host would then need host_gib, more than it has.
        enough_devices: a number of NPUs that would fit.
        tight: those of npu and host that have less than a tenth of their memory left.
        collectives, parameters: those of one rank of each stage, as MindSpore placed them if the plan is compiled, else as
            predicted. The bytes of a collective are those of all its `count` calls, each of the input or the output of the call,
            whichever is larger.
        slice: shape that the rank keeps of a parameter between steps.
        computed: shape that it computes with.
        shape: shape in the whole model.
        """
        tree: dict[str, Any] = {
            "name": self.name,
            "devices": self.devices,
            "hosts": self.hosts,
            "parallel": self.parallel.model_dump(),
            "suggested": self.suggested,
            "refused": self.refused,
            "passes": self.passes,
            "tokens_of_rank": self.tokens_of_rank,
            "capacity": self.capacity,
            "exchanged_rows": self.exchanged_rows,
            "npu_memory_gib": self.npu.needed_gib,
            "npu_limit_gib": self.npu.limit_gib,
            "host_memory_gib": self.host.needed_gib,
            "host_limit_gib": self.host.limit_gib,
            "fits": self.fits,
            "npu": _items_tree(self.npu),
            "host": _items_tree(self.host),
            "stages": [_stage_tree(stage) for stage in self.stages],
            "what_fits": self.what_fits,
            "almost_fits": None if self.almost is None else dataclasses.asdict(self.almost),
            "enough_devices": self.enough_devices,
            "tight": [name for name, table in (("npu", self.npu), ("host", self.host)) if table.is_tight],
            "variants": _variants_tree(self),
            "tokens_per_second": self.tokens_per_second,
            "step_seconds": self.time.step,
            "seconds": dataclasses.asdict(self.time),
            "constants": _constants(),
            "traffic_bytes": dataclasses.asdict(self.links),
            "compiled": self.compiled is not None,
            "collectives": [_collective_tree(c, n) for n, stage in enumerate(self.stages) for c in stage.collectives],
            "parameters": [_array_tree(a, n) for n, stage in enumerate(self.stages) for a in stage.arrays],
        }
        return tree if self.compiled is None else tree | _compiled_tree(self.compiled, tree["collectives"])


def laid_out(config: Config, devices: int) -> Config:
    """The configuration for `devices` ranks: as it is if its parallel section has so many, else with a suggested section. Raises
    ConfigError if there is no such section, or for what cannot be planned."""
    if config.parallel.ranks == devices:
        check_layout(config)
        return config
    return with_parallel(config, **suggest_layout(config, devices).model_dump())


def make_plan(config: Config, devices: int) -> Plan:
    """The plan of `config` on `devices` NPUs, as predicted. Raises ConfigError when they cannot be laid out."""
    planned = laid_out(config, devices)
    time, stages = step_time(planned), range(planned.parallel.stages)
    room = fits(planned)
    changes = None if room else what_fits(planned)
    routed = bool(planned.model.rre_layers)
    return Plan(
        name=planned.name,
        devices=devices,
        parallel=planned.parallel,
        suggested=planned is not config,
        refused=_refused(planned),
        passes=planned.train.accumulation,
        tokens_of_rank=tokens_of_rank(planned),
        capacity=capacity(planned) if routed else 0,
        exchanged_rows=exchanged_rows(planned) if routed else 0,
        fits=room,
        npu=_memory_table(npu_items(planned, fullest_stage(planned)), NPU_MEMORY),
        host=_memory_table(host_items(planned, fullest_host(planned)), HOST_MEMORY),
        stages=[_stage(planned, stage) for stage in stages],
        what_fits=changes,
        almost=None if room or changes else _almost(planned),
        enough_devices=None if room or changes else devices_that_fit(planned),
        variants=_variants(planned),
        all_experts=_all_experts(planned),
        time=time,
        tokens_per_second=tokens_per_second(planned, time),
        links=max((link_bytes(planned, s) for s in stages), key=lambda link: link.pcie + link.hccs + link.network),
    )


def _memory_table(items: list[MemoryItem], limit: int) -> MemoryTable:
    return MemoryTable([item for item in items if item.nbytes], limit)


def _stage(config: Config, stage: int) -> StagePlan:
    layers = layers_of_stage(config, stage)
    return StagePlan(
        first_rank=stage * config.parallel.stage_ranks,
        first_layer=layers[0],
        last_layer=layers[-1],
        rre_layers=len(rre_layers_of_stage(config, stage)),
        npu_gib=total(npu_items(config, stage)) / GIB,
        collectives=collectives(config, stage),
        arrays=[
            *all_arrays(config, stage),
            *active_buffers(config, stage),
            *accumulator_arrays(config, stage),
        ],
    )


def _refused(config: Config) -> str | None:
    try:
        check_ascend(config)
    except ConfigError as error:
        return str(error)
    return None


def _almost(config: Config) -> AlmostFits | None:
    found = what_fits_an_npu(config)
    return None if found is None else AlmostFits(found[0], found[1] / GIB)


def _variants(config: Config) -> dict[str, Variant]:
    """The memory without ECSS, and without and with recompute."""
    variants = {
        "without recompute": with_parallel(config, recompute=False),
        "with recompute": with_parallel(config, recompute=True),
    }
    if config.model.rre_layers:
        off = config.ecss.model_copy(update={"enabled": False, "store": "host"})
        variants["without ECSS"] = config.model_copy(update={"ecss": off})
    found = {}
    for name, variant in variants.items():
        needed = total(npu_items(variant, fullest_stage(variant)))
        found[name] = Variant(needed / GIB, max(0, needed - NPU_MEMORY) / GIB)
    return found


def _all_experts(config: Config) -> AllExperts | None:
    if not config.ecss.enabled or config.experts <= config.active_experts:
        return None
    time = step_time_all_experts(config)
    return AllExperts(time.step, tokens_per_second(config, time))


def _items_tree(table: MemoryTable) -> list[dict[str, Any]]:
    return [{"item": item.name, "gib": item.nbytes / GIB, "how": item.how} for item in table.items]


def _stage_tree(stage: StagePlan) -> dict[str, Any]:
    return {
        "first_rank": stage.first_rank,
        "layers": [stage.first_layer, stage.last_layer],
        "rre_layers": stage.rre_layers,
        "npu_memory_gib": stage.npu_gib,
    }


def _variants_tree(plan: Plan) -> dict[str, Any]:
    tree: dict[str, Any] = {
        name: {"npu_memory_gib": variant.needed_gib, "over_limit_gib": variant.over_gib}
        for name, variant in plan.variants.items()
    }
    if plan.all_experts is not None:
        tree["all experts moved and updated"] = dataclasses.asdict(plan.all_experts)
    return tree


def _collective_tree(collective: PredictedCollective, stage: int) -> dict[str, Any]:
    return {
        "op": collective.op,
        "count": collective.count,
        "group_size": collective.group_size,
        "bytes": collective.nbytes,
        "axes": list(collective.axes),
        "purpose": collective.purpose,
        "phase": collective.phase,
        "stage": stage,
    }


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
    """The keys that a compiled plan adds to the tree, or replaces in it. predicted: the tree of the predicted collectives."""
    return {
        "compile": [{"rank": c.rank, "seconds": c.seconds, "peak_gib": c.peak_gib} for c in compiled.steps],
        "collectives": [
            {
                "op": c.op,
                "phase": c.phase,
                "count": c.count,
                "group_size": c.group_size,
                "ranks": c.ranks,
                "bytes": c.nbytes,
                "stage": stage,
            }
            for stage, step in enumerate(compiled.steps)
            for c in step.collectives
        ],
        "predicted_collectives": predicted,
        "parameters": [
            dataclasses.asdict(parameter) | {"stage": stage}
            for stage, step in enumerate(compiled.steps)
            for parameter in step.parameters
        ],
        "host_operators": [step.host_operators for step in compiled.steps],
        "products": [step.products for step in compiled.steps],
        "differences": compiled.differences,
    }


def _constants() -> dict[str, float]:
    names = ("PEAK_FLOPS", "HBM_BANDWIDTH", "PCIE_BANDWIDTH", "HCCS_BANDWIDTH", "NETWORK_BANDWIDTH")
    return {
        **{name.lower(): getattr(machine, name) for name in names},
        "matmul_efficiency": MATMUL_EFFICIENCY,
        "host_update_bandwidth": HOST_UPDATE_BANDWIDTH,
    }
