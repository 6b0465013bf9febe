"""Division of a process's cores between the device's threads and the worker that updates experts (`ecss.update_cores`).

Two threads of one physical core, or a thread far from its memory, slow each other down. So the worker gets whole physical cores of
one NUMA node, the last ones, and the threads that feed the device keep all others (our choice; measured on no machine with more
than two cores).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

_CPUS = Path("/sys/devices/system/cpu")


class Core(NamedTuple):
    """A core as Linux numbers it: one thread of a physical core."""

    number: int
    node: int
    """Number of its NUMA node."""
    physical: tuple[int, int]
    """Package and core, the same for all threads of a physical core."""


def split_cores(cores: Sequence[Core], count: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the cores of the device's threads, and of the worker's, at most `count`.

    The worker gets whole physical cores, the last ones of the node with most of them (of several, the last), and leaves at least
    one to the device. If that leaves none for the worker, it gets none, and its threads are not bound.
    """
    of_node: dict[int, dict[tuple[int, int], list[int]]] = {}
    for core in cores:
        of_node.setdefault(core.node, {}).setdefault(core.physical, []).append(core.number)
    physical = sum(map(len, of_node.values()))
    taken: list[int] = []
    node = max(reversed(of_node.values()), key=len)
    for left, threads in enumerate(reversed(node.values())):
        if len(taken) + len(threads) > count or left + 1 == physical:
            break
        taken = [*threads, *taken]
    return [core.number for core in cores if core.number not in taken], taken


def cores_here(besides: Sequence[int] = ()) -> list[Core]:
    """Return the cores that this thread may run on, and those besides, ascending. Where Linux does not say more, each is a core of
    node 0."""
    numbers = sorted({*os.sched_getaffinity(0), *besides})
    return [Core(number, _node(number), _physical(number)) for number in numbers]


class CoreDivision:
    """Division of this process's cores, made before MindSpore is imported: OpenMP counts the cores when it is loaded."""

    def __init__(self) -> None:
        self.of_worker: list[int] = []
        """Cores of the worker; empty: its threads are not bound."""

    def divide(self, count: int) -> None:
        """Give `count` cores to the worker, and bind this thread, and so those that it starts, to the others. 0: change nothing."""
        if not count:
            return
        cores = cores_here(self.of_worker)
        device, self.of_worker = split_cores(cores, count)
        if len(self.of_worker) < count:
            logger.warning(
                "ecss.update_cores=%d: of the cores %s only %d can be spared, whole physical ones of one NUMA node",
                count,
                [core.number for core in cores],
                len(self.of_worker),
            )
        os.sched_setaffinity(0, device)


DIVISION = CoreDivision()
"""The division of this process's cores."""


def _node(number: int) -> int:
    found = [int(path.name.removeprefix("node")) for path in (_CPUS / f"cpu{number}").glob("node[0-9]*")]
    return found[0] if found else 0


def _physical(number: int) -> tuple[int, int]:
    topology = _CPUS / f"cpu{number}" / "topology"
    try:
        package, core = (int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
    except OSError:
        return 0, number
    return package, core
