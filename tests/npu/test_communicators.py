"""Communication groups that MindSpore takes on a chip, by its own rule spelled out here as its source has it."""

from __future__ import annotations

import itertools
import math

import pytest
from helpers.small_clusters import by_hand

from pangu_sigma.config import ConfigError
from pangu_sigma.npu.communicators import COPIES, GROUPS, _refused_group, check_layout, stages_of_host
from pangu_sigma.ranks.layout import AXES, Layout
from pangu_sigma.sections import ParallelConfig


def is_feasible(ranks: list[int]) -> bool:
    """MindSpore's IsFeasibleDeiveList, in its order: the same places on each host, and then one host's list of them."""
    hosts: dict[int, list[int]] = {}
    for rank in ranks:
        hosts.setdefault(rank // 8, []).append(rank % 8)
    first, *others = hosts.values()
    if any(other != first for other in others):
        return False
    size = len(first)
    if size in (1, 8):
        return True
    if size == 4 and first[3] - first[0] == 3 and (first[0] == 0 or first[3] == 7):
        return True
    if size == 4 and first[3] % 4 == first[1] % 4 and first[2] % 4 == first[0] % 4:
        return True
    return size == 2 and (
        first[1] - first[0] == 4 or (first[0] < 4 and first[1] < 4) or (first[0] >= 4 and first[1] >= 4)
    )


def every_layout(most: int) -> list[ParallelConfig]:
    """Layouts of numbers of ranks that MindSpore takes, with all axes from 1 to 6, and 8 or 12."""
    sizes = (1, 2, 3, 4, 6, 8, 12)
    axes = [each for each in itertools.product((1, 2, 3), *[sizes] * 4) if math.prod(each) <= most]
    layouts = (ParallelConfig(**dict(zip(AXES, each, strict=True))) for each in axes)
    return [p for p in layouts if p.ranks in (1, 2, 4) or p.ranks % 8 == 0]


def test_the_rule_is_mindspores_for_every_group_of_every_layout():
    verdicts = set()
    for parallel in every_layout(96):
        layout = Layout(parallel)
        taken = {
            axes: all(map(is_feasible, {tuple(layout.peers(rank, *axes)) for rank in range(parallel.ranks)}))
            for axes in GROUPS
        }
        for copies in (False, True):
            of_all = all(fine for axes, fine in taken.items() if copies or axes != COPIES)
            assert (_refused_group(parallel, copies) is None) == of_all, parallel
            verdicts.add((copies, of_all))
        assert _refused_group(parallel.model_copy(update={"chip": "910b"}), True) is None, (
            "only 910A's hosts have halves"
        )
    assert len(verdicts) == 4


@pytest.mark.parametrize("chip", ["910a", "910b"])
def test_a_group_of_three_is_refused_on_910a_alone(chip: str):
    """24 NPUs as data 3 and tensor 2: MindSpore refuses the group of ranks 0, 2 and 4."""
    sections = {"data": {"domain_sets": 4, "domains_per_step": 4}, "train": {"batch_size": 48}}
    domains = [{"name": name} for name in "abcd"]
    config = by_hand(
        **sections, domains=domains, parallel={"chip": chip, "groups": 4, "expert": 1, "data": 3, "tensor": 2}
    )
    if chip == "910b":
        check_layout(config)
        return
    with pytest.raises(
        ConfigError, match=r"group of ranks 0, 2, 4; on Ascend 910A MindSpore takes 1, 2, 4 or 8 NPUs of a host"
    ):
        check_layout(config)


def test_small_stages_share_a_host():
    parallel = ParallelConfig(stages=4, data=2)
    assert stages_of_host(parallel, 0, 8) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert stages_of_host(ParallelConfig(stages=2, data=8), 1, 8) == [1] * 8
