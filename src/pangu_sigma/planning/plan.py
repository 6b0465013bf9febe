"""`pangu-sigma plan`: what a configuration needs on a number of NPUs, and how long a step takes. Pure Python; nothing is built.

The numbers come from `parameters.py`, `memory.py`, `traffic.py` and `cost.py`, which state their rules, and `machine.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from pangu_sigma.ascend.supported import check_ascend, check_layout
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.parallel.layout import capacity, layers_of_stage, rre_layers_of_stage, tokens_of_rank
from pangu_sigma.planning import machine
from pangu_sigma.planning.compile import Compiled, compile_step
from pangu_sigma.planning.cost import (
    HOST_UPDATE_BANDWIDTH,
    MATMUL_EFFICIENCY,
    step_time,
    step_time_all_experts,
    tokens_per_second,
)
from pangu_sigma.planning.machine import GIB, HOST_MEMORY, NPU_MEMORY, NPUS_PER_HOST
from pangu_sigma.planning.memory import Item, exchanged_rows, fullest_host, fullest_stage, host_items, npu_items, total
from pangu_sigma.planning.parameters import accumulators, active_buffers, all_arrays
from pangu_sigma.planning.suggest import fits, suggest_layout, what_fits, with_parallel
from pangu_sigma.planning.traffic import collectives, link_bytes


def laid_out(config: Config, devices: int) -> Config:
    """`config` for `devices` ranks: as it is when its parallel section has so many, else with a suggested section. Raises
    ConfigError when there is none, or for what cannot be planned."""
    if config.parallel.ranks == devices:
        check_layout(config)
        return config
    return with_parallel(config, **suggest_layout(config, devices).model_dump())


def make_plan(config: Config, devices: int) -> dict[str, Any]:
    """The plan as a plain tree. Raises ConfigError when `devices` cannot be laid out.

    refused: why the Ascend step does not run this plan, which is for comparison then; else None.
    npu, host: memory items of the NPU and of the host that need most. stages: layers of each and what its NPUs need. what_fits:
    keys that would make an NPU fit, None when it does or nothing would. variants: the same with one setting changed.
    seconds: of the slowest stage. traffic_bytes: of the NPU that moves most in a step. collectives: of one rank of each stage in
    one step; bytes are of all `count` calls, of the larger side (what is summed, gathered or exchanged on the rank). parameters: of
    one rank of each stage; slice is what it keeps between steps, computed what it computes with, shape that of the whole model.
    """
    planned = laid_out(config, devices)
    time, stages = step_time(planned), range(planned.parallel.stages)
    links = max((link_bytes(planned, stage) for stage in stages), key=lambda link: link.pcie + link.hccs + link.network)
    npu, host = npu_items(planned, fullest_stage(planned)), host_items(planned, fullest_host(planned))
    return {
        "name": planned.name,
        "devices": devices,
        "hosts": math.ceil(devices / NPUS_PER_HOST),
        "parallel": planned.parallel.model_dump(),
        "suggested": planned is not config,
        "refused": _refused(planned),
        "passes": planned.train.accumulation,
        "tokens_of_rank": tokens_of_rank(planned),
        "capacity": capacity(planned) if planned.model.rre_layers else 0,
        "exchanged_rows": exchanged_rows(planned) if planned.model.rre_layers else 0,
        "npu_memory_gib": total(npu) / GIB,
        "npu_limit_gib": NPU_MEMORY / GIB,
        "host_memory_gib": total(host) / GIB,
        "host_limit_gib": HOST_MEMORY / GIB,
        "fits": fits(planned),
        "npu": _tree(npu),
        "host": _tree(host),
        "stages": [_stage(planned, stage) for stage in stages],
        "what_fits": what_fits(planned),
        "variants": _variants(planned),
        "tokens_per_second": tokens_per_second(planned, time),
        "step_seconds": time.step,
        "seconds": dataclasses.asdict(time),
        "constants": _constants(),
        "traffic_bytes": dataclasses.asdict(links),
        "compiled": False,
        "collectives": [
            {
                "op": c.op,
                "count": c.count,
                "group_size": c.group_size,
                "bytes": c.nbytes,
                "axes": list(c.axes),
                "purpose": c.purpose,
                "phase": c.phase,
                "stage": stage,
            }
            for stage in stages
            for c in collectives(planned, stage)
        ],
        "parameters": [
            {
                "name": a.name,
                "slice": list(a.kept),
                "device": a.device,
                "computed": list(a.computed),
                "shape": list(a.shape),
                "dtype": a.dtype,
                "stage": stage,
            }
            for stage in stages
            for a in (*all_arrays(planned, stage), *active_buffers(planned, stage), *accumulators(planned, stage))
        ],
    }


def _stage(config: Config, stage: int) -> dict[str, Any]:
    """What is different from stage to stage. layers: the first one and the last."""
    layers = layers_of_stage(config, stage)
    return {
        "first_rank": stage * config.parallel.stage_ranks,
        "layers": [layers[0], layers[-1]],
        "rre_layers": len(rre_layers_of_stage(config, stage)),
        "npu_memory_gib": total(npu_items(config, stage)) / GIB,
    }


def _refused(config: Config) -> str | None:
    try:
        check_ascend(config)
    except ConfigError as error:
        return str(error)
    return None


def compile_plan(config: Config, devices: int) -> dict[str, Any]:
    """`make_plan`, and the step of the first rank of every stage compiled by MindSpore. Raises as `compile_step`, too."""
    planned = laid_out(config, devices)
    ranks = range(0, devices, planned.parallel.stage_ranks)
    return add_compiled(make_plan(config, devices), [compile_step(planned, rank) for rank in ranks])


def add_compiled(plan: dict[str, Any], compiled: list[Compiled]) -> dict[str, Any]:
    """The plan with what MindSpore made of it: its collectives, slices and host operators in place of the predicted ones.

    compiled: of one rank of each stage. differences: parameters and collectives that MindSpore made otherwise; a plan with any is
    not to be trusted.
    """
    collectives = [
        dataclasses.asdict(c) | {"stage": s} for s, of_rank in enumerate(compiled) for c in of_rank.collectives
    ]
    parameters = [
        dataclasses.asdict(p) | {"stage": s} for s, of_rank in enumerate(compiled) for p in of_rank.parameters
    ]
    return plan | {
        "compiled": True,
        "compile": [{"rank": c.rank, "seconds": c.seconds, "peak_gib": c.peak_gib} for c in compiled],
        "collectives": collectives,
        "predicted_collectives": plan["collectives"],
        "parameters": parameters,
        "host_operators": [c.host_operators for c in compiled],
        "differences": [
            *_other_slices(plan["parameters"], parameters),
            *_other_collectives(plan["collectives"], collectives),
        ],
    }


def _other_slices(predicted: list[dict[str, Any]], compiled: list[dict[str, Any]]) -> Iterator[str]:
    found = {(parameter["stage"], parameter["name"]): parameter for parameter in compiled}
    for wanted in predicted:
        placed = found.get((wanted["stage"], wanted["name"]))
        if placed is None:
            yield f"{wanted['name']} is absent on stage {wanted['stage']}, predicted {wanted['slice']} on {wanted['device']}"
        elif (placed["slice"], placed["device"]) != (wanted["slice"], wanted["device"]):
            where = f"{wanted['slice']} on {wanted['device']}"
            found_at = f"{placed['slice']} on {placed['device']}, stage {wanted['stage']}"
            yield f"{wanted['name']} is {found_at}, predicted {where}"


def _other_collectives(predicted: list[dict[str, Any]], compiled: list[dict[str, Any]]) -> Iterator[str]:
    """Calls and bytes of each operator in each phase of each stage, by size of the group."""
    wanted, found = _summed(predicted), _summed(compiled)
    for key in sorted(wanted.keys() | found.keys()):
        if wanted[key] != found[key]:
            stage, op, phase, size = key
            (calls, nbytes), (should, should_bytes) = found[key], wanted[key]
            where = f"{op} of {size} ranks, {phase}, stage {stage}"
            yield f"{where}: {calls} of {nbytes:,} bytes, predicted {should} of {should_bytes:,}"


def _summed(collectives: list[dict[str, Any]]) -> defaultdict[tuple[int, str, str, int], tuple[int, int]]:
    summed: defaultdict[tuple[int, str, str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for c in collectives:
        key = (c["stage"], c["op"], c["phase"], c["group_size"])
        calls, nbytes = summed[key]
        summed[key] = calls + c["count"], nbytes + c["bytes"]
    return summed


def _variants(config: Config) -> dict[str, Any]:
    """Memory without ECSS, without and with recompute; time of the paper's baseline."""
    variants = {
        "without recompute": with_parallel(config, recompute=False),
        "with recompute": with_parallel(config, recompute=True),
    }
    if config.model.rre_layers:
        off = config.ecss.model_copy(update={"enabled": False, "store": "host"})
        variants["without ECSS"] = config.model_copy(update={"ecss": off})
    found: dict[str, Any] = {}
    for name, variant in variants.items():
        needed = total(npu_items(variant, fullest_stage(variant)))
        found[name] = {"npu_memory_gib": needed / GIB, "over_limit_gib": max(0, needed - NPU_MEMORY) / GIB}
    if config.ecss.enabled and config.experts > config.active_experts:
        all_experts = step_time_all_experts(config)
        found["all experts moved and updated"] = {
            "step_seconds": all_experts.step,
            "tokens_per_second": tokens_per_second(config, all_experts),
        }
    return found


def _constants() -> dict[str, float]:
    names = ("PEAK_FLOPS", "HBM_BANDWIDTH", "PCIE_BANDWIDTH", "HCCS_BANDWIDTH", "NETWORK_BANDWIDTH")
    return {
        **{name.lower(): getattr(machine, name) for name in names},
        "matmul_efficiency": MATMUL_EFFICIENCY,
        "host_update_bandwidth": HOST_UPDATE_BANDWIDTH,
    }


def _tree(items: list[Item]) -> list[dict[str, Any]]:
    return [{"item": item.name, "gib": item.nbytes / GIB, "how": item.how} for item in items if item.nbytes]
