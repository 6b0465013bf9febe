"""A plan as text for people."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import yaml

from pangu_sigma.config import ParallelConfig
from pangu_sigma.parallel.layout import AXES
from pangu_sigma.planning.machine import HOST_MEMORY


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
