"""What segments cost, by hand."""

from __future__ import annotations

import pytest
from helpers.small_clusters import by_hand

from pangu_sigma.config import Config
from pangu_sigma.npu.plan.plan import make_plan
from pangu_sigma.npu.plan.segments import compare_segments
from pangu_sigma.npu.plan.tables import format_plan


def common(**parallel: int) -> Config:
    """A rank multiplies 16 rows of 8 columns in each segment, by one own expert and by two common ones, of 4 units each."""
    groups = parallel.get("groups", 1)
    return by_hand(
        model={"segments": ["own", "common"], "common_experts": 4},
        data={"domain_sets": groups, "domains_per_step": groups},
        train={"batch_size": 4 * groups},
        parallel=parallel,
    )


def test_twice_the_exchanges_and_products_of_half_the_width():
    found = compare_segments(common())
    assert found is not None
    two, one = found.planned, found.single
    assert (two.segments, one.segments) == (["own", "common"], ["own"])
    assert (two.exchanges, one.exchanges) == (8, 4), "there and back, forward and backward"
    assert two.exchange_bytes == 2 * one.exchange_bytes > 0
    assert two.exchange_seconds == pytest.approx(2 * one.exchange_seconds)
    assert (two.products, one.products) == (12, 6)
    assert (two.width, one.width) == (4, 8)
    assert two.product_bytes == 6 * 2 * ((16 * (8 + 4) + 8 * 4) + (16 * (8 + 4) + 2 * 8 * 4))
    assert one.product_bytes == 6 * 2 * (16 * (8 + 8) + 8 * 8)
    for each in (two, one):
        assert each.flops_per_byte * each.product_bytes == pytest.approx(6 * 2 * 16 * 8 * 8), "the same products"
    assert (two.common_bytes, one.common_bytes) == (0, 0), "there is one group"


def test_gradients_of_common_experts_are_summed_over_groups():
    found = compare_segments(common(groups=2))
    assert found is not None
    assert found.planned.common_bytes == 2 * 2 * (2 * 4 * 8 + 4), "of two experts: w1, w2 and b1, float16"
    assert found.single.common_bytes == 0


def test_one_segment_and_dense_layers_are_not_compared():
    assert compare_segments(by_hand()) is None
    assert compare_segments(by_hand(model={"rre_layers": 0, "segments": ["own", "own"]})) is None


def test_the_plan_prints_both_columns():
    config = common()
    text = format_plan(make_plan(config, config.parallel.ranks))
    assert "each segment of an RRE layer sends 16 rows of it, and multiplies 16" in text
    lines = [line.split() for line in text[text.index("segments: costs") :].splitlines()]
    assert lines[0][-4:] == ["own", "+", "common", "own"]
    assert [line[-2:] for line in lines if line[:2] == ["inner", "units"]] == [["4", "8"]]
    assert "segments: costs" not in format_plan(make_plan(by_hand(), 4))
