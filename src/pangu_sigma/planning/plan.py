"""`pangu-sigma plan`: what a configuration needs on a number of NPUs, and how long a step takes. Pure Python; nothing is built.

The numbers come from `parameters.py`, `memory.py`, `traffic.py` and `cost.py`, which state their rules, and `machine.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import yaml

from pangu_sigma.config import Config, ConfigError, ParallelConfig
from pangu_sigma.parallel.layout import AXES, capacity, layers_of_stage, rre_layers_of_stage, tokens_of_rank
from pangu_sigma.parallel.supported import check_ascend, check_layout
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
from pangu_sigma.planning.memory import (
    Item,
    exchanged_rows,
    fullest_host,
    fullest_stage,
    host_items,
    npu_items,
    total,
)
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


def format_plan(plan: dict[str, Any]) -> str:
    """`make_plan`'s result for people."""
    npu, host = f"an NPU (Ascend 910, {plan['npu_limit_gib']:.0f} GiB)", f"a host ({HOST_MEMORY / 1e9:.0f} GB)"
    alike = "all are alike" if len(plan["stages"]) == 1 else "in what follows, of the fullest or slowest stage"
    return "\n".join(
        [
            f"{plan['name']} on {_count(plan['devices'], 'NPU')}, {_count(plan['hosts'], 'host')}; {alike}",
            *_format_layout(plan),
            *_format_stages(plan),
            *_format_memory(npu, plan["npu"], plan["npu_memory_gib"], plan["npu_limit_gib"]),
            *_format_variants(plan),
            *_format_memory(host, plan["host"], plan["host_memory_gib"], plan["host_limit_gib"]),
            *_format_traffic(plan),
            *_format_time(plan),
            *(_format_compiled(plan) if plan["compiled"] else []),
        ]
    )


def _format_layout(plan: dict[str, Any]) -> list[str]:
    parallel = plan["parallel"]
    if plan["suggested"]:
        other = {key: value for key, value in parallel.items() if value != getattr(ParallelConfig(), key)}
        section = yaml.safe_dump({"parallel": other}, sort_keys=False).rstrip().splitlines()
        rows = ["  layout, suggested; copy it into the configuration:", *(f"    {line}" for line in section)]
    else:
        axes = " x ".join(f"{parallel[name]} {name}" for name in AXES if parallel[name] > 1) or "a single rank"
        switches = "".join(f", {key}: {str(parallel[key]).lower()}" for key in ("optimizer", "recompute"))
        rows = [f"  layout, as configured: {axes}{switches}"]
    if plan["refused"]:
        rows.append(f"  DOES NOT RUN as it is. {plan['refused']}")
    capacity = f", at most {plan['capacity']:,} of them for one expert" if plan["capacity"] else ""
    passes = f" in each of {plan['passes']} micro-batches" if plan["passes"] > 1 else " of a step"
    return [*rows, f"  a rank sees {plan['tokens_of_rank']:,} tokens{passes}{capacity}"]


def _format_stages(plan: dict[str, Any]) -> list[str]:
    return [
        f"  stage {number}: ranks from {stage['first_rank']}, layers {stage['layers'][0]} to {stage['layers'][1]}, "
        f"{stage['rre_layers']} of them RRE, {stage['npu_memory_gib']:.2f} GiB an NPU"
        for number, stage in enumerate(plan["stages"])
        if len(plan["stages"]) > 1
    ]


def _format_memory(of: str, items: list[dict[str, Any]], needed: float, limit: float) -> list[str]:
    width = max(len(item["item"]) for item in items)
    verdict = f"fits, {limit - needed:.2f} left" if needed <= limit else f"DOES NOT FIT, {needed - limit:.2f} too much"
    return [
        f"memory of {of}, in GiB",
        *(f"  {item['item']:<{width}} {item['gib']:8.2f}  {item['how']}" for item in items),
        f"  {'total':<{width}} {needed:8.2f}  of {limit:.2f}: {verdict}",
    ]


def _format_variants(plan: dict[str, Any]) -> list[str]:
    rows = []
    for name, variant in plan["variants"].items():
        if "over_limit_gib" in variant and variant["npu_memory_gib"] != plan["npu_memory_gib"]:
            over = variant["over_limit_gib"]
            rows.append(f"  {name}: {variant['npu_memory_gib']:.2f}, {f'{over:.2f} too much' if over else 'fits'}")
    if plan["npu_memory_gib"] > plan["npu_limit_gib"]:
        keys = plan["what_fits"] or {}
        settings = " ".join(f"--set {key}={str(value).lower()}" for key, value in keys.items())
        same = " (the same update in more passes)" if "train.batch_size" in keys else ""
        rows.append(f"  to make it fit: {settings or 'more NPUs'}{same}")
    return rows


def _format_traffic(plan: dict[str, Any]) -> list[str]:
    """One row for each operator and size of group of a stage; the tree has them one by one."""
    traffic, several = plan["traffic_bytes"], len(plan["stages"]) > 1
    groups: defaultdict[tuple[int, str, int], list[dict[str, Any]]] = defaultdict(list)
    for c in plan["collectives"]:
        groups[c["stage"], c["op"], c["group_size"]].append(c)
    rows = []
    for (stage, op, size), calls in sorted(groups.items()):
        phases = {phase: sum(c["count"] for c in calls if c["phase"] == phase) for phase in _PHASES}
        count, nbytes = sum(phases.values()), sum(c["bytes"] for c in calls)
        when = ", ".join(f"{phase} {number}" for phase, number in phases.items() if number)
        when += f" on stage {stage}" if several else ""
        rows.append(f"  {op:<13} {size:>6} {count:>6} {nbytes / 1e9:>9.2f}  {when}")
    if rows:
        origin = "as MindSpore placed them" if plan["compiled"] else "predicted; what each is for: --json"
        rows.insert(0, f"  {'collective':<13} {'ranks':>6} {'calls':>6} {'tensors':>9}  {origin}")
    links = (f"{name} {traffic[key] / 1e9:.2f}" for name, key in _LINKS if traffic[key])
    return ["moved by an NPU in a step, in GB: " + (", ".join(links) or "nothing"), *rows]


_PHASES = ("forward", "recompute", "backward", "weight", "gradient", "norm")

_LINKS = (("PCIe to and from its host", "pcie"), ("HCCS inside the host", "hccs"), ("network", "network"))

_PARTS = {
    "compute": "computing",
    "hccs": "HCCS",
    "network": "network",
    "bubble": "waiting for other stages",
    "npu_update": "Adam on the NPU",
    "fetch": "experts to the NPU",
    "gradients_back": "gradients to the host",
    "host_update": "Adam on the host",
}


def _format_time(plan: dict[str, Any]) -> list[str]:
    seconds, step = plan["seconds"], plan["step_seconds"]
    parts = ", ".join(f"{name} {seconds[key]:.3g}" for key, name in _PARTS.items() if seconds[key] > step / 1000)
    rows = [f"time of a step, estimated: {step:.3g} s, {plan['tokens_per_second']:,.0f} tokens/s", f"  {parts}"]
    if seconds["all_to_all"]:
        rows.append(f"  all-to-all of tokens, part of HCCS and network: {seconds['all_to_all'] / step:.1%}")
    baseline = plan["variants"].get("all experts moved and updated")
    if baseline:
        ratio = baseline["step_seconds"] / step
        rows.append(
            f"  moving and updating all experts, not only the active: {baseline['step_seconds']:.3g} s, {ratio:.1f}x"
        )
    return [*rows, "  fitted to the paper's 7.5 s and 6.3x on 512 NPUs; what to trust: planning/cost.py"]


def _format_compiled(plan: dict[str, Any]) -> list[str]:
    return [
        *(
            f"compiled for Ascend as rank {c['rank']} of {plan['devices']}: {c['seconds']:.0f} s, {c['peak_gib']:.1f} GiB; on the "
            "host: " + (", ".join(f"{name} {count}" for name, count in hosted.items()) or "nothing")
            for c, hosted in zip(plan["compile"], plan["host_operators"], strict=True)
        ),
        f"  {_count(len(plan['parameters']), 'parameter')}; {len(plan['differences'])} differences from the prediction",
        *(f"    {line}" for line in plan["differences"][:20]),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
