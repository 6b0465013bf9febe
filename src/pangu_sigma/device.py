"""The one place that tells MindSpore where and how to run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms

one_thread = threading.RLock()
"""Held while graphs are built, compiled or run: MindSpore works in any thread, but in two at once it crashes."""


def use_cpu(seed: int = 0) -> None:
    """Graph mode on the CPU; PyNative is some thirty times slower there (design decision 2). seed: initialisers and dropout."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    ms.set_seed(seed)


@contextmanager
def plain_graphs() -> Iterator[None]:
    """Within, graphs are compiled as they are: those that are not the step, whose inputs and stages auto-parallel expects."""
    before = {name: ms.get_auto_parallel_context(name) for name in ("parallel_mode", "pipeline_stages")}
    ms.set_auto_parallel_context(parallel_mode="stand_alone", pipeline_stages=1)
    try:
        yield
    finally:
        ms.set_auto_parallel_context(**before)
