"""Initialise MindSpore's communication for this rank, and create its communication groups."""

from __future__ import annotations

import logging
import os
import sys
import time

import numpy as np
from mindspore import Tensor, communication, nn, ops

from pangu_sigma.process import plain_graphs
from pangu_sigma.ranks.layout import Layout
from pangu_sigma.ranks.ranks import PAUSE, SINGLE_PROCESS, Ranks, check_started_ranks
from pangu_sigma.sections import ParallelConfig


class Groups:
    """Communication groups of one rank, each created when its name is first needed."""

    def __init__(self, layout: Layout, rank: int):
        self._layout, self._rank, self._created = layout, rank, set[str]()

    def name(self, *axes: str) -> str:
        """Return the name of the group of the ranks that differ from this one in `axes` only."""
        ranks = self._layout.peers(self._rank, *axes)
        if len(ranks) == self._layout.ranks:
            return communication.GlobalComm.WORLD_COMM_GROUP
        name = f"{'_'.join(axes)}_{'_'.join(map(str, ranks))}"
        if name not in self._created:
            communication.create_group(name, ranks)
            self._created.add(name)
        return name

    def size(self, *axes: str) -> int:
        """Return the number of ranks that differ from this one in `axes` only, this one included."""
        return len(self._layout.peers(self._rank, *axes))


class ConnectedRanks(Ranks):
    """Ranks of a run with several processes; made by `connect`. group(*axes) returns the name of the communication group of
    the ranks that differ from this one in `axes` only."""

    def __init__(self, parallel: ParallelConfig):
        self.rank, self.world = communication.get_rank(), communication.get_group_size()
        self.group = Groups(Layout(parallel), self.rank).name
        self._sum = _Sum(communication.GlobalComm.WORLD_COMM_GROUP)

    def sum(self, values: np.ndarray) -> np.ndarray:
        with plain_graphs():
            return self._sum(Tensor(values.astype(np.float32).reshape(-1))).asnumpy().reshape(values.shape)

    def leave(self) -> None:
        self.any(False)  # a barrier
        time.sleep(PAUSE)


def connect(parallel: ParallelConfig) -> Ranks:
    """Join the communication that msrun's environment variables describe, and return the ranks; without the variables, a run of
    one process. In msrun's scheduler process this function does not return.

    Call it after `use_cpu` and before any tensor is made.
    Raises ConfigError if the `parallel` section has another number of ranks than the run.
    """
    check_started_ranks(parallel)
    if parallel.ranks > 1 and not communication.GlobalComm.INITED:
        communication.init()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        sys.exit(0)
    if parallel.ranks == 1:
        return SINGLE_PROCESS
    ranks = ConnectedRanks(parallel)
    if not ranks.first:
        logging.getLogger().setLevel(logging.WARNING)  # rank 0 logs what is the same on all ranks
    return ranks


class _Sum(nn.Cell):
    """Sum of a tensor over the ranks of a group."""

    def __init__(self, group: str):
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, group)

    def construct(self, values):
        return self.all_reduce(values)
