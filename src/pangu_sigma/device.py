"""Setup of MindSpore's device and mode. This module loads without MindSpore, because a mistake is told before that is imported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

mindspore_lock = threading.RLock()
"""Lock to hold while graphs are built, compiled or run: MindSpore works in any thread, but crashes in two at once."""


def use_cpu(seed: int = 0) -> None:
    """Set MindSpore to the CPU and graph mode; PyNative is some thirty times slower. seed: seed of initialisers and dropout."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    ms.set_seed(seed)


@contextmanager
def plain_graphs() -> Iterator[None]:
    """Compile graphs in a `with` statement without MindSpore's auto-parallel, which expects a training step's inputs and stages."""
    import mindspore as ms

    before = {name: ms.get_auto_parallel_context(name) for name in ("parallel_mode", "pipeline_stages")}
    ms.set_auto_parallel_context(parallel_mode="stand_alone", pipeline_stages=1)
    try:
        yield
    finally:
        ms.set_auto_parallel_context(**before)
