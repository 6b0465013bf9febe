"""Every moment counts to one phase, and all of them add up."""

from __future__ import annotations

import time
from itertools import count

import pytest

from pangu_sigma.finetune.seconds import Seconds


def test_each_moment_counts_to_the_innermost_phase_also_after_an_error(monkeypatch):
    ticks = count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    seconds = Seconds()
    with seconds.of("training"):
        with pytest.raises(ValueError, match="stop"), seconds.of("compile"):
            raise ValueError("stop")
        with seconds.of("compile"):
            pass
    assert seconds.figures() == {"start": 2.0, "training": 3.0, "compile": 2.0}
