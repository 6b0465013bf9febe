"""The one place that tells MindSpore where and how to run."""

from __future__ import annotations

import mindspore as ms


def use_cpu(seed: int = 0) -> None:
    """Graph mode on the CPU; PyNative is some thirty times slower there (design decision 2). seed: initialisers and dropout."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    ms.set_seed(seed)
