"""The text of small plans; that of whole ones is in test_plan.py, of compiled ones in test_differences.py."""

from __future__ import annotations

from helpers.small_clusters import by_hand

from pangu_sigma.planning.plan import make_plan
from pangu_sigma.planning.text import format_plan


def test_a_single_rank_moves_nothing_between_npus():
    config = by_hand(parallel={"expert": 1, "tensor": 1})
    text = format_plan(make_plan(config, 1))
    assert text.startswith(
        "by_hand on 1 NPU, 1 host; all are alike\n  layout, as configured: a single rank, optimizer: true"
    )
    assert "moved by an NPU in a step, in GB: PCIe to and from its host 0.00\ntime of a step" in text


def test_axes_of_more_than_one_rank_are_named():
    text = format_plan(make_plan(by_hand(), 4))
    assert "by_hand on 4 NPUs, 1 host" in text
    assert "2 expert x 2 tensor" in text
    assert "a rank sees 8 tokens of a step, at most " in text
