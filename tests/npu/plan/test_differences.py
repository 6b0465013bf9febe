"""What MindSpore made otherwise is said, parameter by parameter and collective by collective."""

from __future__ import annotations

from dataclasses import replace

from helpers.small_clusters import by_hand

from pangu_sigma.npu.cuts import arrays_of_step
from pangu_sigma.npu.plan.compile import Compiled, PlacedParameter
from pangu_sigma.npu.plan.differences import compiled_sections
from pangu_sigma.npu.plan.plan import format_plan, make_plan
from pangu_sigma.npu.plan.traffic import CollectiveCalls, collectives


def as_predicted() -> Compiled:
    """A step of the only stage that is just as the plan has it."""
    calls = [CollectiveCalls(c.op, c.phase, c.group_size, c.count, c.nbytes) for c in collectives(by_hand())]
    placed = [PlacedParameter(a.name, list(a.kept), a.dtype, a.device) for a in arrays_of_step(by_hand(), 0)]
    stored = [array for array in placed if array.name.startswith("experts.")]
    used = [array for array in placed if array not in stored]
    handed = sorted(array.slice for array in used if array.name.startswith("active."))
    return Compiled(0, 12.0, 1.5, calls, used, stored, {"FetchStored": 1}, {}, {}, handed, [])


def differences(step: Compiled) -> list[str]:
    return compiled_sections(by_hand(), [step])["differences"]


def test_a_step_as_predicted_has_no_difference():
    assert differences(as_predicted()) == []


def test_parameters_and_arrays_that_are_otherwise_are_named():
    """Absent, cut otherwise or elsewhere; arrays of the store in the graph; gradients of experts that are lost on the way, as
    when MindSpore returned 0.0 for sums over micro-batches that no other rank shares; writes in front of the network."""
    step = as_predicted()
    table, positions, query, *others = step.parameters
    _, *handed = step.handed
    for changes, expected in (
        (
            {"parameters": [replace(table, slice=[1, 2]), replace(positions, device="CPU"), *others]},
            [
                f"embedding is [1, 2] on Ascend, stage 0, predicted {table.slice} on Ascend",
                f"positions is {positions.slice} on CPU, stage 0, predicted {positions.slice} on Ascend",
                f"{query.name} is absent on stage 0, predicted {query.slice} on Ascend",
            ],
        ),
        (
            {"parameters": [*step.parameters, step.stored[0]]},
            [f"{step.stored[0].name} is in the graph of stage 0, whose NPUs would have a copy"],
        ),
        (
            {"handed": [[], *handed]},
            [f"the gradients of experts on stage 0 have the shapes {[[], *handed]}, predicted {step.handed}"],
        ),
        (
            {"early_writes": ["active.0.w1"]},
            ["active.0.w1 is written in front of the network of stage 0, which may read it before"],
        ),
    ):
        assert differences(replace(step, **changes)) == expected


def test_calls_and_bytes_are_compared_by_operator_phase_and_group():
    step = as_predicted()
    norm = next(c for c in step.collectives if c.phase == "norm")
    more = CollectiveCalls("AllGather", "norm", 2, 1, 1000)
    changed = replace(step, collectives=[c for c in step.collectives if c is not norm] + [more])
    assert differences(changed) == [
        "AllGather of 2 ranks, norm, stage 0: 1 of 1,000 bytes, predicted 0 of 0",
        "AllReduce of 4 ranks, norm, stage 0: 0 of 0 bytes, predicted 2 of 8",
    ]


def test_tree_and_text_of_a_compiled_plan_hold_the_differences():
    step = as_predicted()
    first, *others = step.collectives
    sections = compiled_sections(by_hand(), [replace(step, collectives=[replace(first, nbytes=10**9), *others])])
    assert sections["compiled"] == [{"rank": 0, "seconds": 12.0, "peak_gib": 1.5, "on_the_host": {"FetchStored": 1}}]
    text = format_plan(make_plan(by_hand(), 4) | sections)
    assert "FetchStored=1" in text
    assert f"differences: {sections['differences'][0]}" in text
