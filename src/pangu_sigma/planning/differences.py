"""Comparison of a plan with the step that MindSpore compiles for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pangu_sigma.config import Config
from pangu_sigma.planning.compile import Compiled, compile_step
from pangu_sigma.planning.plan import CompiledPlan, Plan, StagePlan, laid_out, make_plan
from pangu_sigma.planning.traffic import CollectiveCalls


def compile_plan(config: Config, devices: int) -> Plan:
    """The plan of `make_plan`, with the step of the first rank of every stage compiled by MindSpore. Raises what both raise."""
    planned = laid_out(config, devices)
    ranks = range(0, devices, planned.parallel.stage_ranks)
    return add_compiled(make_plan(config, devices), [compile_step(planned, rank) for rank in ranks])


def add_compiled(plan: Plan, steps: list[Compiled]) -> Plan:
    """The plan with the compiled steps of the first rank of each stage, and how they differ from it."""
    pairs = list(enumerate(zip(plan.stages, steps, strict=True)))
    arrays = (text for number, (stage, step) in pairs for text in _other_slices(number, stage, step))
    calls = (
        text
        for number, (stage, step) in pairs
        for text in _other_collectives(number, stage.collectives, step.collectives)
    )
    return replace(plan, compiled=CompiledPlan(steps, [*arrays, *calls]))


def _other_slices(number: int, stage: StagePlan, step: Compiled) -> Iterator[str]:
    found = {parameter.name: parameter for parameter in step.parameters}
    for array in stage.arrays:
        wanted, placed = list(array.kept), found.get(array.name)
        if placed is None:
            yield f"{array.name} is absent on stage {number}, predicted {wanted} on {array.device}"
        elif (placed.slice, placed.device) != (wanted, array.device):
            found_at = f"{placed.slice} on {placed.device}, stage {number}"
            yield f"{array.name} is {found_at}, predicted {wanted} on {array.device}"


def _other_collectives(
    number: int, predicted: Iterable[CollectiveCalls], compiled: Iterable[CollectiveCalls]
) -> Iterator[str]:
    """Sentences about calls and bytes that are not as predicted, for each operator, phase and size of the group of a stage."""
    wanted, found = _summed(predicted), _summed(compiled)
    for key in sorted(wanted.keys() | found.keys()):
        if wanted[key] != found[key]:
            op, phase, size = key
            (calls, nbytes), (should, should_bytes) = found[key], wanted[key]
            where = f"{op} of {size} ranks, {phase}, stage {number}"
            yield f"{where}: {calls} of {nbytes:,} bytes, predicted {should} of {should_bytes:,}"


def _summed(collectives: Iterable[CollectiveCalls]) -> defaultdict[tuple[str, str, int], tuple[int, int]]:
    """Calls and bytes, by operator, phase and size of the group."""
    summed: defaultdict[tuple[str, str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for c in collectives:
        calls, nbytes = summed[c.op, c.phase, c.group_size]
        summed[c.op, c.phase, c.group_size] = calls + c.count, nbytes + c.nbytes
    return summed
