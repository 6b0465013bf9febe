"""Communication groups of the ranks of NPUs, and MindSpore's limits on them. Pure Python, without MindSpore or a device.

MindSpore 2.9 refuses a layout for two reasons, both before CANN is asked:

* on every chip the number of all ranks must be 1, 2, 4 or a multiple of 8 (`CheckDeviceConfig`);
* on 910A a group of ranks must have the same NPUs of each of its hosts of 8: 1, 2, 4 or all 8 of them, in one half of the host
  (0 to 3, 4 to 7) or the same ones in both (`IsFeasibleDeiveList`). On later chips any group will do.

Axes of powers of two always satisfy the second; other axes do if those that vary faster multiply to a multiple of 8.
"""

from __future__ import annotations

import numpy as np

from pangu_sigma.chips import CHIP_DATA, family
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.npu.row_counts import tokens_of_rank
from pangu_sigma.ranks.layout import AXES, Layout, axes_text
from pangu_sigma.sections import ParallelConfig

TENSOR, EXPERT, DATA, HOLDERS, COPIES, REPLICAS, STAGE, ALL = GROUPS = (
    ("tensor",),
    ("expert",),
    ("data",),
    ("data", "tensor"),
    ("groups",),
    ("groups", "expert", "data"),
    ("groups", "expert", "data", "tensor"),
    AXES,
)
"""Communication groups, each as the axes along which its ranks differ; COPIES are there with common experts only."""

OF_COPIES = "of_copies"
"""Attribute of the operators that sum gradients over the copies of common experts, by which a compiled graph shows them."""

_HOST = 8
"""Number of NPUs that MindSpore takes for a host of 910A."""


def stages_of_host(parallel: ParallelConfig, host: int, size: int) -> list[int]:
    """Return the pipeline stage of each rank of host number `host`, which has `size` devices."""
    ranks = range(host * size, min((host + 1) * size, parallel.ranks))
    return [rank // parallel.stage_ranks for rank in ranks]


def check_layout(config: Config) -> None:
    """Raise ConfigError if MindSpore cannot run `parallel`: its number of ranks, its communication groups on the chip, or the
    tokens of a block over its tensor ranks."""
    parallel, tensor = config.parallel, config.parallel.tensor
    if parallel.ranks not in (1, 2, 4) and parallel.ranks % 8:
        size = f"parallel: {axes_text(parallel)} is {parallel.ranks}"
        raise ConfigError(f"{size}; MindSpore takes 1, 2, 4 or a multiple of 8 NPUs")
    if (group := _refused_group(parallel, copies=bool(config.model.common_experts))) is not None:
        ranks = ", ".join(map(str, group[:6])) + (", …" if len(group) > 6 else "")
        raise ConfigError(
            f"parallel: {axes_text(parallel)} makes a communication group of ranks {ranks}; on {CHIP_DATA[parallel.chip].title} "
            "MindSpore takes 1, 2, 4 or 8 NPUs of a host, and the same ones of each host: let the axes after one that is no power "
            "of two multiply to a multiple of 8, such as data=3 · tensor=8"
        )
    tokens = tokens_of_rank(config) // (config.data.domains_per_step // parallel.groups)
    if tokens % tensor:
        raise ConfigError(
            f"parallel.tensor={tensor} does not divide the {tokens} tokens that a rank has of a block, whose logits the ranks of a "
            "tensor group share equally; change parallel.tensor, model.seq_length or train.batch_size"
        )


def _refused_group(parallel: ParallelConfig, copies: bool) -> list[int] | None:
    """Return the ranks of the first communication group that MindSpore refuses on the chip; None if it accepts all groups. copies:
    True if the model has common experts, whose copies communicate, too."""
    are_powers_of_two = all(getattr(parallel, axis).bit_count() == 1 for axis in AXES)
    if family(parallel.chip) != "910a" or are_powers_of_two:
        return None  # MindSpore accepts all groups then
    for axes in GROUPS if copies else [axes for axes in GROUPS if axes != COPIES]:
        groups = Layout(parallel).groups(*axes)
        # groups whose first ranks have the same place in a host are alike: one of them is enough
        _, indices = np.unique(groups[:, 0] % _HOST, return_index=True)
        for group in groups[indices]:
            if not _is_feasible(group):
                return group.tolist()
    return None


def _is_feasible(ranks: np.ndarray) -> bool:
    """Return True if MindSpore accepts a group of ranks on 910A: the group has the same NPUs of each of its hosts, and they are 1,
    2, 4 or 8, in one half of the host or at the same places of both halves."""
    is_member = np.zeros((ranks.max() // _HOST + 1, _HOST), bool)  # host, NPU of the host
    is_member[np.divmod(ranks, _HOST)] = True
    patterns = np.unique(is_member[is_member.any(axis=1)], axis=0)  # the different rows among the hosts of the group
    if len(patterns) > 1 or patterns.sum() not in (1, 2, 4, 8):
        return False
    lower, upper = patterns.reshape(2, -1)  # the halves of a host
    return bool((lower == upper).all() or not lower.any() or not upper.any())
