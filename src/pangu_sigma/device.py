"""Setup of MindSpore's device and mode. This module loads without MindSpore, because a mistake is told before that is imported."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pangu_sigma.errors import UserError

mindspore_lock = threading.RLock()
"""Lock to hold while graphs are built, compiled or run: MindSpore works in any thread, but crashes in two at once."""


def use_cpu(seed: int = 0) -> None:
    """Set MindSpore to the CPU and graph mode; PyNative is some thirty times slower. seed: seed of initialisers and dropout."""
    import mindspore as ms

    refuse_compile_cache()
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    ms.set_seed(seed)


def refuse_compile_cache() -> None:
    """Raise UserError if MindSpore's compile cache is on.

    MindSpore 2.9 finds a cached graph by its place in the order in which a process compiles, and compares the text of the entry
    script alone: a resumed run takes the graph of the evaluation for its step, and a changed key, such as
    `train.optimizer.clip_norm`, keeps its old value without a word.
    """
    import mindspore as ms

    if os.environ.get("MS_COMPILER_CACHE_ENABLE") == "1" or ms.get_context("enable_compile_cache"):
        raise UserError(
            "MindSpore's compile cache is on, by MS_COMPILER_CACHE_ENABLE=1 or set_context(enable_compile_cache=True): it takes "
            "graphs by the order in which a process compiles them, whatever the configuration, so that a run would compute with "
            "another graph than its own; switch it off"
        )


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
