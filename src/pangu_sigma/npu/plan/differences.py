"""Compare a plan with the step that MindSpore compiles for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pangu_sigma.config import Config
from pangu_sigma.npu.plan.compile import Compiled, compile_step
from pangu_sigma.npu.plan.plan import Plan, StagePlan, laid_out, make_plan
from pangu_sigma.npu.plan.traffic import CollectiveCalls


def compile_plan(config: Config, devices: int) -> Plan:
    """Return the plan of `make_plan`, with each stage's step compiled. Raises the errors of `make_plan` and `compile_step`."""
    planned = laid_out(config, devices)
    ranks = range(0, devices, planned.parallel.stage_ranks)
    return add_compiled(make_plan(config, devices), [compile_step(planned, rank) for rank in ranks])


def add_compiled(plan: Plan, steps: list[Compiled]) -> Plan:
    """Return the plan with the compiled step of each stage's first rank, and the differences between plan and step."""
    differences: list[str] = []
    for number, (stage, step) in enumerate(zip(plan.stages, steps, strict=True)):
        differences += _other_slices(number, stage, step)
        differences += _other_gradients(number, stage, step)
        differences += _other_collectives(number, stage.collectives, step.collectives)
        used = {parameter.name for parameter in step.parameters}
        differences += [
            f"{array.name} is in the graph of stage {number}, whose NPUs would have a copy"
            for array in step.stored
            if array.name in used
        ]
        differences += [
            f"{name} is written in front of the network of stage {number}, which may read it before"
            for name in step.early_writes
        ]
    return replace(plan, compiled=steps, differences=differences)


def _other_slices(number: int, stage: StagePlan, step: Compiled) -> Iterator[str]:
    placements = {parameter.name: parameter for parameter in (*step.stored, *step.parameters)}
    for array in stage.arrays:
        expected, placed = list(array.kept), placements.get(array.name)
        if placed is None:
            yield f"{array.name} is absent on stage {number}, predicted {expected} on {array.device}"
        elif (placed.slice, placed.device) != (expected, array.device):
            actual = f"{placed.slice} on {placed.device}, stage {number}"
            yield f"{array.name} is {actual}, predicted {expected} on {array.device}"


def _other_gradients(number: int, stage: StagePlan, step: Compiled) -> Iterator[str]:
    """Yield a sentence if the gradients that a stage hands to the host are not those of all active experts."""
    expected = sorted(
        list(array.kept) for array in stage.arrays if array.name.startswith("active.") and array.kind == "weight"
    )
    if step.handed != expected:
        yield f"the gradients of experts on stage {number} have the shapes {step.handed}, predicted {expected}"


def _other_collectives(
    number: int, predicted: Iterable[CollectiveCalls], compiled: Iterable[CollectiveCalls]
) -> Iterator[str]:
    """Yield a sentence for each operator, phase and group size of a stage whose calls or bytes differ from the prediction."""
    expected, actual = _summed(predicted), _summed(compiled)
    for key in sorted(expected.keys() | actual.keys()):
        if expected[key] != actual[key]:
            op, phase, size = key
            (calls, nbytes), (should, should_bytes) = actual[key], expected[key]
            where = f"{op} of {size} ranks, {phase}, stage {number}"
            yield f"{where}: {calls} of {nbytes:,} bytes, predicted {should} of {should_bytes:,}"


def _summed(collectives: Iterable[CollectiveCalls]) -> defaultdict[tuple[str, str, int], tuple[int, int]]:
    """Return total calls and bytes by operator, phase and group size."""
    summed: defaultdict[tuple[str, str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for c in collectives:
        calls, nbytes = summed[c.op, c.phase, c.group_size]
        summed[c.op, c.phase, c.group_size] = calls + c.count, nbytes + c.nbytes
    return summed
