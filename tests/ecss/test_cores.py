"""Cores of the worker and of the device's threads, on machines that were never here."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.ecss.cores import Core, CoreDivision, cores_here, split_cores


def machine(nodes: int, per_node: int, threads: int) -> list[Core]:
    """As Linux numbers them: the first threads of all physical cores, then the second ones."""
    physical = [(node, core) for node in range(nodes) for core in range(per_node)]
    return [
        Core(thread * len(physical) + i, node, (node, core))
        for thread in range(threads)
        for i, (node, core) in enumerate(physical)
    ]


@pytest.mark.parametrize(
    ("cores", "count", "taken"),
    [
        (machine(1, 2, 1), 1, [1]),
        (machine(1, 2, 1), 2, [1]),
        (machine(1, 1, 2), 1, []),
        (machine(2, 4, 1), 3, [5, 6, 7]),
        (machine(2, 4, 2), 3, [7, 15]),
        (machine(2, 4, 2)[2:9], 4, [4, 5, 6, 7]),
        (machine(4, 24, 1), 24, list(range(72, 96))),
    ],
    ids=[
        "two cores",
        "one is left",
        "two threads of one core",
        "of one node",
        "whole cores",
        "a share",
        "a whole node",
    ],
)
def test_the_worker_gets_whole_physical_cores_of_one_node(cores: list[Core], count: int, taken: list[int]):
    device, worker = split_cores(cores, count)
    assert sorted(worker) == taken
    assert sorted(device + worker) == sorted(core.number for core in cores)


@given(
    nodes=st.integers(1, 4),
    per_node=st.integers(1, 8),
    threads=st.integers(1, 2),
    count=st.integers(0, 40),
    data=st.data(),
)
def test_no_core_is_in_both_shares_no_physical_one_is_cut_and_the_device_keeps_one(
    nodes: int, per_node: int, threads: int, count: int, data: st.DataObject
):
    every = machine(nodes, per_node, threads)
    cores = sorted(data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True)))
    device, worker = split_cores(cores, count)
    assert sorted(device + worker) == [core.number for core in cores] and device
    assert len(worker) <= count
    of = {core.number: core for core in cores}
    assert not {of[n].physical for n in device} & {of[n].physical for n in worker}
    assert len({of[n].node for n in worker}) <= 1


def test_this_process_is_divided_and_again_from_all_cores(caplog: pytest.LogCaptureFixture):
    before = os.sched_getaffinity(0)
    if len({core.physical for core in cores_here()}) < 2:
        pytest.skip("one physical core")
    division = CoreDivision()
    try:
        division.divide(0)
        assert os.sched_getaffinity(0) == before and not division.of_worker
        for _ in range(2):
            division.divide(1 if len(before) < 4 else 2)
            assert division.of_worker and os.sched_getaffinity(0) == before - set(division.of_worker)
        division.divide(10_000)
        assert "ecss.update_cores=10000: of the cores" in caplog.text
    finally:
        os.sched_setaffinity(0, before)
