"""Compare a plan with the step that MindSpore compiles for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from pangu_sigma.config import Config
from pangu_sigma.npu.cuts import Array, arrays_of_step
from pangu_sigma.npu.plan.compile import Compiled, compile_step
from pangu_sigma.npu.plan.plan import calls_of, laid_out, make_plan
from pangu_sigma.npu.plan.traffic import CollectiveCalls, collectives


def compile_plan(config: Config, devices: int) -> dict[str, Any]:
    """Return the plan of `make_plan`, with the step of each stage's first rank compiled, and the differences between plan and step;
    do not trust a plan with differences. Raises the errors of `make_plan` and `compile_step`."""
    planned = laid_out(config, devices)
    ranks = range(0, devices, planned.parallel.stage_ranks)
    return add_compiled(make_plan(config, devices), planned, [compile_step(planned, rank) for rank in ranks])


def add_compiled(plan: dict[str, Any], config: Config, steps: list[Compiled]) -> dict[str, Any]:
    """Return the plan with what MindSpore compiled in place of what was predicted. config: the planned configuration. steps: the
    step of the first rank of each stage."""
    return plan | {
        **calls_of([step.collectives for step in steps]),
        "compiled": [
            {"rank": s.rank, "seconds": s.seconds, "peak_gib": s.peak_gib, "on_the_host": s.host_operators}
            for s in steps
        ],
        "differences": [text for stage, step in enumerate(steps) for text in differences(config, stage, step)],
        "parameters": [asdict(p) | {"stage": n} for n, step in enumerate(steps) for p in step.parameters],
    }


def differences(config: Config, stage: int, step: Compiled) -> Iterator[str]:
    """Yield a sentence for each difference of a compiled step of a stage from the prediction."""
    arrays = arrays_of_step(config, stage)
    yield from _other_slices(stage, arrays, step)
    expected = sorted(list(a.kept) for a in arrays if a.name.startswith("active.") and a.kind == "weight")
    if step.handed != expected:
        yield f"the gradients of experts on stage {stage} have the shapes {step.handed}, predicted {expected}"
    yield from _other_collectives(stage, collectives(config, stage), step.collectives)
    used = {parameter.name for parameter in step.parameters}
    for array in step.stored:
        if array.name in used:
            yield f"{array.name} is in the graph of stage {stage}, whose NPUs would have a copy"
    for name in step.early_writes:
        yield f"{name} is written in front of the network of stage {stage}, which may read it before"


def _other_slices(number: int, arrays: list[Array], step: Compiled) -> Iterator[str]:
    placements = {parameter.name: parameter for parameter in (*step.stored, *step.parameters)}
    for array in arrays:
        expected, placed = list(array.kept), placements.get(array.name)
        if placed is None:
            yield f"{array.name} is absent on stage {number}, predicted {expected} on {array.device}"
        elif (placed.slice, placed.device) != (expected, array.device):
            actual = f"{placed.slice} on {placed.device}, stage {number}"
            yield f"{array.name} is {actual}, predicted {expected} on {array.device}"


def _other_collectives(
    number: int, predicted: Iterable[CollectiveCalls], compiled: Iterable[CollectiveCalls]
) -> Iterator[str]:
    """Yield a sentence for each operator, phase and group size of a stage whose calls or bytes differ from the prediction."""
    (should, should_bytes), (calls, nbytes) = _summed(predicted), _summed(compiled)
    for op, phase, size in sorted(
        key for key in should | calls if (should[key], should_bytes[key]) != (calls[key], nbytes[key])
    ):
        key = op, phase, size
        where = f"{op} of {size} ranks, {phase}, stage {number}"
        yield f"{where}: {calls[key]} of {nbytes[key]:,} bytes, predicted {should[key]} of {should_bytes[key]:,}"


def _summed(
    collectives: Iterable[CollectiveCalls],
) -> tuple[Counter[tuple[str, str, int]], Counter[tuple[str, str, int]]]:
    """Return total calls and bytes by operator, phase and group size."""
    calls, nbytes = Counter[tuple[str, str, int]](), Counter[tuple[str, str, int]]()
    for c in collectives:
        calls[c.op, c.phase, c.group_size] += c.count
        nbytes[c.op, c.phase, c.group_size] += c.nbytes
    return calls, nbytes
