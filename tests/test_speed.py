"""The speed of this machine, of sizes that take no time."""

from __future__ import annotations

import pytest

from ascend_ops.adam import every_row
from pangu_sigma import speed
from pangu_sigma.doctor import format_checks


@pytest.fixture(autouse=True)
def small(graph_mode: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"_COPIED": 1 << 20, "_EXPERT_SIZE": 1 << 12, "_SIDE": 64, "_TOKENS": 64, "_HIDDEN": 32, "_FFN": 64}
    for name, value in sizes.items():
        monkeypatch.setattr(speed, name, value)


def test_memory_adam_and_products_are_each_a_line_of_the_doctor():
    lines = format_checks(speed.speed_checks()).splitlines()
    assert [line[5:11] for line in lines[:3]] == ["memory", "Adam s", "produc"]
    for line, unit in zip(lines, ("GB/s of a copy", "GB/s over rows of experts", "GFLOP/s in float32"), strict=False):
        assert line.startswith("ok ")
        assert unit in line
    assert all(name in lines[2] for name in ("NumPy", "MindSpore", "grouped FFN"))


def test_adam_updates_every_row():
    update = speed._Adam()
    update(*every_row(4)).asnumpy()
    assert update.step.asnumpy().tolist() == [1, 1, 1, 1]
    assert (update.w[0].asnumpy() < 0.02).all()
