"""Fixtures of all tests. Nothing here imports MindSpore until a test asks for it, so that pure tests stay fast."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def graph_mode() -> None:
    """MindSpore in graph mode on the CPU, as the project uses it."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
