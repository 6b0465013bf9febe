"""The file store of `bench scale` holds more than four billion parameters, each domain as many as another."""

from __future__ import annotations

from experiments.bench import scale, stored_experts


def test_the_bench_stores_more_than_four_billion_parameters():
    assert stored_experts.parameters(scale.IN_FILES) > 4e9
    assert stored_experts.parameters(6) == 6 * stored_experts.parameters(1)


def test_resident_memory_is_less_than_its_peak():
    resident = stored_experts.resident()
    assert 0 < resident["gib"] <= resident["peak_gib"]
