"""The host sides of the Ascend C operators, unchanged, against an arithmetic of ours: definitions, tiling, inference, refusals."""

from __future__ import annotations

from helpers.host_cases import check_host, check_tiling, random_tilings

from ascend_ops.emulation.op_host import shipped_host


def test_shipped_host_passes_what_mutants_must_fail():
    check_host(shipped_host())


def test_random_tilings():
    for case in random_tilings(3000):
        check_tiling(shipped_host(), *case)
