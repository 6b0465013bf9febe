"""Compare a plan with the step that MindSpore compiles for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from pangu_sigma.config import Config
from pangu_sigma.npu.cuts import Array, arrays_of_step
from pangu_sigma.npu.plan.compile import Compiled, compile_step
from pangu_sigma.npu.plan.plan import make_plan
from pangu_sigma.npu.plan.suggest import with_parallel
from pangu_sigma.npu.plan.traffic import CollectiveCalls, collectives


def compile_plan(config: Config, devices: int) -> dict[str, Any]:
    """Return the plan of `make_plan`, with the step of each stage's first rank compiled, and the differences between plan and step;
    do not trust a plan with differences. Raises the errors of `make_plan` and `compile_step`."""
    plan = make_plan(config, devices)
    planned = with_parallel(config, **plan["parallel"])
    ranks = range(0, devices, planned.parallel.stage_ranks)
    return plan | compiled_sections(planned, [compile_step(planned, rank) for rank in ranks])


def compiled_sections(config: Config, steps: list[Compiled]) -> dict[str, Any]:
    """Return the sections `compiled` and `differences` of a plan. config: the planned configuration. steps: the step of the first
    rank of each stage."""
    return {
        "compiled": [
            {"rank": step.rank, "seconds": step.seconds, "peak_gib": step.peak_gib, "on_the_host": step.host_operators}
            for step in steps
        ],
        "differences": [text for stage, step in enumerate(steps) for text in differences(config, stage, step)],
    }


def differences(config: Config, stage: int, step: Compiled) -> Iterator[str]:
    """Yield a sentence for each difference of a compiled step of a stage from the prediction."""
    arrays = arrays_of_step(config, stage)
    yield from _slice_differences(stage, arrays, step)
    expected = sorted(list(a.kept) for a in arrays if a.name.startswith("active.") and a.kind == "weight")
    if step.handed != expected:
        yield f"the gradients of experts on stage {stage} have the shapes {step.handed}, predicted {expected}"
    yield from _collective_differences(stage, collectives(config, stage), step.collectives)
    used = {parameter.name for parameter in step.parameters}
    for array in step.stored:
        if array.name in used:
            yield f"{array.name} is in the graph of stage {stage}, whose NPUs would have a copy"
    for name in step.early_writes:
        yield f"{name} is written in front of the network of stage {stage}, which may read it before"


def _slice_differences(stage: int, arrays: list[Array], step: Compiled) -> Iterator[str]:
    """Yield a sentence for each array whose slice or device in a compiled step of the stage differs from the prediction."""
    placements = {parameter.name: parameter for parameter in (*step.stored, *step.parameters)}
    for array in arrays:
        expected, placed = list(array.kept), placements.get(array.name)
        if placed is None:
            yield f"{array.name} is absent on stage {stage}, predicted {expected} on {array.device}"
        elif (placed.slice, placed.device) != (expected, array.device):
            actual = f"{placed.slice} on {placed.device}, stage {stage}"
            yield f"{array.name} is {actual}, predicted {expected} on {array.device}"


def _collective_differences(
    stage: int, predicted: Iterable[CollectiveCalls], compiled: Iterable[CollectiveCalls]
) -> Iterator[str]:
    """Yield a sentence for each operator, phase and group size of a stage whose calls or bytes differ from the prediction."""
    predicted_totals, compiled_totals = _totals(predicted), _totals(compiled)
    for key in sorted(predicted_totals.keys() | compiled_totals.keys()):
        (expected, expected_bytes), (calls, nbytes) = predicted_totals[key], compiled_totals[key]
        if (expected, expected_bytes) != (calls, nbytes):
            op, phase, size = key
            calls_text = f"{calls} of {nbytes:,} bytes, predicted {expected} of {expected_bytes:,}"
            yield f"{op} of {size} ranks, {phase}, stage {stage}: {calls_text}"


def _totals(collectives: Iterable[CollectiveCalls]) -> defaultdict[tuple[str, str, int], tuple[int, int]]:
    """Return (number of calls, their bytes) for each (operator, phase, group size); (0, 0) for a key without calls."""
    totals = defaultdict[tuple[str, str, int], tuple[int, int]](lambda: (0, 0))
    for c in collectives:
        calls, nbytes = totals[c.op, c.phase, c.group_size]
        totals[c.op, c.phase, c.group_size] = calls + c.count, nbytes + c.nbytes
    return totals
