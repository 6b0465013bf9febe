"""A plan as text for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import yaml

from pangu_sigma.chips import GIB
from pangu_sigma.parallel.layout import AXES
from pangu_sigma.planning.cost import HOST_UPDATE_BANDWIDTH, host_rate_note
from pangu_sigma.planning.machine import TIGHT_FRACTION
from pangu_sigma.planning.plan import CompiledPlan, MemoryTable, Plan
from pangu_sigma.planning.segments import SegmentComparison
from pangu_sigma.planning.traffic import CollectiveCalls
from pangu_sigma.sections import ParallelConfig

_PHASES_IN_ORDER = ("forward", "recompute", "backward", "weight", "gradient", "norm")

_LINKS = (("PCIe to and from its host", "pcie"), ("HCCS inside the host", "hccs"), ("network", "network"))

_PARTS_OF_A_STEP = {
    "compute": "computing",
    "hccs": "HCCS",
    "network": "network",
    "bubble": "waiting for other stages",
    "npu_update": "Adam on the NPU",
    "fetch": "experts to the NPU",
    "gradients_back": "gradients to the host",
    "host_update": "Adam on the host",
}

_CONSTANTS = {
    "matmul_efficiency": ("matrix products at {:.1f}% of the chip's peak", 100),
    "message_seconds": ("{:.2g} ms for a message of an AlltoAll to another host", 1e3),
    "host_update_bandwidth": ("Adam on a host at {:.3g} GB/s", 1e-9),
    "peak_flops": ("the chip's peak of {:.3g} TFLOPS", 1e-12),
    "hbm_bandwidth": ("the NPU's memory at {:.3g} GB/s", 1e-9),
    "pcie_bandwidth": ("PCIe at {:.3g} GB/s", 1e-9),
    "hccs_bandwidth": ("HCCS at {:.3g} GB/s", 1e-9),
    "network_bandwidth": ("the network at {:.3g} GB/s", 1e-9),
}
"""Text and factor of the unit in it, for each field of `Rates`."""

_SEGMENT_COSTS = {
    "exchanges": ("exchanges of rows with other ranks", "{:,}", 1),
    "exchange_bytes": ("their tensors, GB", "{:.3g}", 1e-9),
    "exchange_seconds": ("their time, estimated seconds", "{:.3g}", 1),
    "products": ("products of rows and experts", "{:,}", 1),
    "width": ("inner units of an expert", "{:,}", 1),
    "product_bytes": ("read and written by products, GB", "{:.4g}", 1e-9),
    "flops_per_byte": ("operations of products a byte", "{:,.0f}", 1),
    "common_bytes": ("common gradients summed over groups, GB", "{:.3g}", 1e-9),
    "host_update_bytes": ("Adam on the host, GB", "{:.3g}", 1e-9),
    "step_seconds": ("step, estimated seconds", "{:.3g}", 1),
}
"""Name, format and factor of the unit, for fields of `SegmentCosts`."""


def format_plan(plan: Plan) -> str:
    """Format the whole plan as lines of text."""
    chip = plan.chip
    npu, host = f"an NPU ({chip.title}, {plan.npu.limit_gib:.0f} GiB)", f"a host ({chip.host_memory / 1e9:.0f} GB)"
    alike = "all are alike" if len(plan.stages) == 1 else "in what follows, of the fullest or slowest stage"
    reason = f"the half type of {chip.title}" if plan.compute_dtype == chip.half else "as train.compute_dtype says"
    return "\n".join(
        [
            f"{plan.name} on {counted(plan.devices, 'NPU')} of {chip.title}, {counted(plan.hosts, 'host')}; {alike}",
            f"  computes in {plan.compute_dtype}, {reason}",
            *_format_layout(plan),
            *_format_stages(plan),
            *_format_memory(npu, plan.npu),
            *_format_variants(plan),
            *_format_memory(host, plan.host),
            *_format_changes(plan),
            *_format_traffic(plan),
            *_format_time(plan),
            *_format_storage(plan),
            *(_format_segments(plan.segments) if plan.segments else []),
            *(_format_compiled(plan.devices, plan.compiled) if plan.compiled else []),
        ]
    )


def layout_text(parallel: ParallelConfig) -> str:
    """Format a layout in words: its axes of several ranks, and recompute, such as `4 groups x 16 expert x 8 tensor, recompute`."""
    sizes = ((getattr(parallel, name), name) for name in AXES)
    axes = " x ".join(f"{size} {name}" for size, name in sizes if size > 1) or "a single rank"
    return axes + (", recompute" if parallel.recompute else "")


def _format_layout(plan: Plan) -> list[str]:
    parallel = plan.parallel.model_dump()
    if plan.suggested:
        other = {key: value for key, value in parallel.items() if value != getattr(ParallelConfig(), key)}
        section = yaml.safe_dump({"parallel": other}, sort_keys=False).rstrip().splitlines()
        rows = ["  layout, suggested; copy it into the configuration:", *(f"    {line}" for line in section)]
    else:
        optimizer = "" if plan.parallel.optimizer else ", without optimizer parallelism"
        rows = [f"  layout, as configured: {layout_text(plan.parallel)}{optimizer}"]
    if plan.refused:
        rows.append(f"  DOES NOT RUN as it is. {plan.refused}")
    others = "; ".join(f"{layout_text(other.parallel)}: {other.step_seconds:.3g} s" for other in plan.next_best)
    rows += [f"  fastest other layouts that fit: {others}"] if others else []
    if plan.least_devices:
        rows.append(f"  it needs at least {counted(plan.least_devices, 'NPU')} of this chip")
    capacity = f", at most {plan.capacity:,} of them for one expert" if plan.capacity else ""
    passes = f" in each of {plan.passes} micro-batches" if plan.passes > 1 else " of a step"
    rows.append(f"  a rank sees {plan.tokens_of_rank:,} tokens{passes}{capacity}")
    if plan.sent_rows:
        what = "each segment of an RRE layer" if plan.segments else "an RRE layer"
        rows.append(f"  {what} sends {plan.sent_rows:,} rows of it, and multiplies {plan.multiplied_rows:,}")
    return rows


def _format_stages(plan: Plan) -> list[str]:
    return [
        f"  stage {number}: ranks from {stage.first_rank}, layers {stage.layers[0]} to {stage.layers[1]}, "
        f"{stage.rre_layers} of them RRE, {stage.npu_memory_gib:.2f} GiB an NPU"
        for number, stage in enumerate(plan.stages)
        if len(plan.stages) > 1
    ]


def _format_memory(of: str, memory: MemoryTable) -> list[str]:
    width = max(len(item.name) for item in memory.items)
    needed, limit, left = memory.needed_gib, memory.limit_gib, memory.left_gib
    verdict = f"fits, {left:.2f} left" if left >= 0 else f"DOES NOT FIT, {-left:.2f} too much"
    rows = [
        f"memory of {of}, in GiB",
        *(f"  {item.name:<{width}} {item.nbytes / GIB:8.2f}  {item.how}" for item in memory.items),
        f"  {'total':<{width}} {needed:8.2f}  of {limit:.2f}: {verdict}",
    ]
    if memory.is_tight:
        rows.append(
            f"  WARNING: only {left:.2f} GiB, {left / limit:.1%} of it, are left; what is assumed may be wrong by more, so leave "
            f"{TIGHT_FRACTION:.0%}: {TIGHT_FRACTION * limit:.2f}"
        )
    return rows


def _format_variants(plan: Plan) -> list[str]:
    rows = []
    for name, variant in plan.variants.items():
        if variant.npu_memory_gib != plan.npu.needed_gib:
            over = f"{variant.over_limit_gib:.2f} too much" if variant.over_limit_gib else "fits"
            rows.append(f"  {name}: {variant.npu_memory_gib:.2f}, {over}")
    return rows


def _format_changes(plan: Plan) -> list[str]:
    """Format the changes with which a plan that does not fit would fit."""
    if plan.fits:
        return []
    if plan.what_fits:
        return [f"to make it fit: {_settings(plan.what_fits)}"]
    least = plan.least_devices
    more = f"{least} NPUs do{'' if least > plan.devices else ', in another layout'}" if least else "4,096 do not either"
    if plan.almost_fits is None:
        return [f"to make it fit: more NPUs, no other keys are enough; {more}"]
    keys = f"with {_settings(plan.almost_fits.keys)} " if plan.almost_fits.keys else ""
    return [
        f"to make it fit: more NPUs, and so hosts; {more}",
        f"  {keys}NPUs fit, but a host then needs {plan.almost_fits.host_gib:,.2f} of {plan.host.limit_gib:.2f} GiB",
    ]


def _settings(keys: dict[str, int | bool | str]) -> str:
    settings = " ".join(f"--set {key}={str(value).lower()}" for key, value in keys.items())
    return settings + (" (the same update in more passes)" if "train.batch_size" in keys else "")


def _format_traffic(plan: Plan) -> list[str]:
    """Format the traffic, a row for each operator and group size of a stage; the plan's tree has every collective."""
    of_stages: list[Sequence[CollectiveCalls]] = [stage.collectives for stage in plan.stages]
    if plan.compiled:
        of_stages = [step.collectives for step in plan.compiled.steps]
    groups: defaultdict[tuple[int, str, int], list[CollectiveCalls]] = defaultdict(list)
    for stage, collectives in enumerate(of_stages):
        for c in collectives:
            groups[stage, c.op, c.group_size].append(c)
    rows = []
    for (stage, op, size), calls in sorted(groups.items()):
        phases = {phase: sum(c.count for c in calls if c.phase == phase) for phase in _PHASES_IN_ORDER}
        count, nbytes = sum(phases.values()), sum(c.nbytes for c in calls)
        when = ", ".join(f"{phase} {number}" for phase, number in phases.items() if number)
        when += f" on stage {stage}" if len(plan.stages) > 1 else ""
        rows.append(f"  {op:<13} {size:>6} {count:>6} {nbytes / 1e9:>9.2f}  {when}")
    if rows:
        origin = "as MindSpore placed them" if plan.compiled else "predicted; what each is for: --json"
        rows.insert(0, f"  {'collective':<13} {'ranks':>6} {'calls':>6} {'tensors':>9}  {origin}")
    moved = ((name, getattr(plan.traffic_bytes, field)) for name, field in _LINKS)
    links = ", ".join(f"{name} {nbytes / 1e9:.2f}" for name, nbytes in moved if nbytes)
    return ["moved by an NPU in a step, in GB: " + (links or "nothing"), *rows]


def _format_time(plan: Plan) -> list[str]:
    step = plan.seconds.step
    seconds = ((name, getattr(plan.seconds, field)) for field, name in _PARTS_OF_A_STEP.items())
    parts = ", ".join(f"{name} {each:.3g}" for name, each in seconds if each > step / 1000)
    rows = [f"time of a step, estimated: {step:.3g} s, {plan.tokens_per_second:,.0f} tokens/s", f"  {parts}"]
    if plan.seconds.all_to_all:
        share = f"{plan.seconds.all_to_all / step:.1%}"
        rows.append(
            f"  all-to-all of tokens, part of HCCS and network: {share}; fitted to 18 and 29 % of LocMoE's smaller steps"
        )
    if plan.measured_adam:
        adam = plan.measured_adam
        rows.append(
            f"  Adam on the host at {adam.bytes_per_second / 1e9:.0f} GB/s, which was measured on 2 cores (doctor --speed), not at "
            f"{HOST_UPDATE_BANDWIDTH / 1e9:.0f}: {adam.host_update:.3g} s, the step {adam.step_seconds:.3g} s"
        )
    if plan.overlapped:
        behind = plan.overlapped
        rows.append(
            f"  with ecss.update=worker Adam on the host runs behind the dense parameters' Adam, {behind.npu_update:.3g}, and the "
            f"dense layers' forward pass, {behind.forward:.3g} s: {behind.left:.3g} s are left, the step {behind.step:.3g} s"
        )
        if 3 * behind.left > behind.step:
            rows.append(
                "  there the host decides: faster host memory, ecss.moments=bfloat16 or fewer active experts help, and more NPUs "
                "only if they divide the experts further"
            )
    hangs_on, (text, unit) = plan.hangs_on, _CONSTANTS[plan.hangs_on.constant]
    times = f"at half of that {hangs_on.seconds_at_half:.3g} s, at double {hangs_on.seconds_at_double:.3g} s"
    rows.append(f"  hangs most on {text.format(hangs_on.value * unit)}: {times}")
    if plan.seconds.host_update and (note := host_rate_note(plan.parallel.chip)):
        rows.append(f"  {note}")
    if plan.all_experts:
        slow = plan.all_experts.step_seconds
        rows.append(f"  moving and updating all experts, not only the active: {slow:.3g} s, {slow / step:.1f}x")
    return [*rows, "  fitted to the paper's 7.5 s and 6.3x on 512 NPUs of 910A; what to trust: planning/cost.py"]


def _format_storage(plan: Plan) -> list[str]:
    read, hosts = plan.storage_bytes_per_second, counted(plan.hosts, "host")
    return [
        f"read of the text in a second, in GB: {read.storage / 1e9:.3g} by {hosts} from shared storage, "
        f"{read.ranks / 1e9:.3g} by the NPUs of all",
        f"  at first up to {read.first_steps / 1e9:.3g}: a sample's chunk is read whole and verified, all of the text once on each "
        "host",
    ]


def _format_segments(compared: SegmentComparison) -> list[str]:
    """Format the costs of segments as a table: a column for the plan's, and one for a single segment in their place."""
    both = compared.planned, compared.single
    rows = [("segments: costs of an NPU in a step", *(" + ".join(costs.segments) for costs in both))]
    for field, (name, form, unit) in _SEGMENT_COSTS.items():
        rows.append((f"  {name}", *(form.format(getattr(costs, field) * unit) for costs in both)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        *(f"{name:<{widths[0]}}  {planned:>{widths[1]}}  {single:>{widths[2]}}" for name, planned, single in rows),
        "  the estimate takes products of every width to be equally fast; with less than "
        f"{compared.chip_flops_per_byte:,.0f} operations a byte they wait for the NPU's memory",
    ]


def _format_compiled(devices: int, compiled: CompiledPlan) -> list[str]:
    parameters = sum(len(step.parameters) for step in compiled.steps)
    return [
        *(
            f"compiled for Ascend as rank {step.rank} of {devices}: {step.seconds:.0f} s, {step.peak_gib:.1f} GiB; on the host: "
            + (", ".join(f"{name} {count}" for name, count in step.host_operators.items()) or "nothing")
            for step in compiled.steps
        ),
        f"  {counted(parameters, 'parameter')}; {len(compiled.differences)} differences from the prediction",
        *(f"    {line}" for line in compiled.differences[:20]),
    ]


def counted(number: int, noun: str) -> str:
    """Format a number with its noun in the plural if needed: 2 and NPU give `2 NPUs`."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
