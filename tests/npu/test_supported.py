"""What the Ascend step refuses, in one sentence that names the key and the fix.

That the rest compiles is in tests/npu/plan/test_compile.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.small_clusters import by_hand

from pangu_sigma.config import ConfigError
from pangu_sigma.npu import supported
from pangu_sigma.npu.plan.plan import format_plan, laid_out, make_plan
from pangu_sigma.npu.supported import check_ascend, check_machine
from pangu_sigma.results import failed

ROWS = [{"order": 2, "rows": 9, "width": 8}]

COMPARED: list[tuple[dict[str, Any], str]] = [
    ({"model": {"dropout": 0.1}}, r"^model\.dropout=0\.1: .*; set model\.dropout=0$"),
    ({"ecss": {"enabled": False}}, r"^ecss\.enabled=false: .*; set ecss\.enabled=true$"),
    (
        {"train": {"spikes": {"skip": True}}},
        r"^train\.spikes\.skip=true: .*; set train\.spikes\.skip=false, which logs",
    ),
    ({"ecss": {"store": "file"}}, r"^ecss\.store=file: .*; set ecss\.store=host$"),
    (
        {"ecss": {"store": "file"}, "model": {"rre_layers": 0, "rows": ROWS}},
        r"^ecss\.store=file: .* rows in the host's memory",
    ),
    ({"parallel": {"gather": "cann"}}, r"^parallel\.gather=cann: .*; leave parallel\.gather out, or use another chip"),
]
"""Planned all the same."""

REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"train": {"batch_size": 6}, "parallel": {"expert": 1, "data": 3, "tensor": 2}},
        r"is 6; MindSpore takes 1, 2, 4 or",
    ),
    ({"model": {"seq_length": 3}, "train": {"batch_size": 2}}, r"^parallel\.tensor=2 does not divide the 3 tokens"),
]


@pytest.mark.parametrize(("sections", "message"), COMPARED + REFUSED)
def test_what_the_step_does_not_do_is_one_sentence(sections: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        check_ascend(by_hand(**sections))


@pytest.mark.parametrize(("sections", "message"), REFUSED)
def test_what_cannot_run_on_any_terms_is_not_planned(sections: dict[str, Any], message: str):
    config = by_hand(**sections)
    with pytest.raises(ConfigError, match=message):
        laid_out(config, config.parallel.ranks)


@pytest.mark.parametrize(("sections", "message"), COMPARED)
def test_a_plan_for_comparison_says_that_it_does_not_run(sections: dict[str, Any], message: str):
    plan = make_plan(by_hand(**sections), 4)
    assert f"refused: {plan['refused']}\n" in format_plan(plan)
    assert make_plan(by_hand(), 4)["refused"] is None


def test_experts_that_a_dense_model_does_not_have_are_no_hindrance():
    check_ascend(by_hand(model={"rre_layers": 0}, ecss={"enabled": False}))


def test_a_machine_without_npus_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.delenv("MS_SIMULATION_LEVEL", raising=False)
    monkeypatch.setattr(supported, "missing_for_ascend", lambda host: failed("no NPU", "install the driver"))
    message = r"^device ascend: no NPU; install the driver, or train on the CPU\. `pangu-sigma doctor --device"
    with pytest.raises(ConfigError, match=message):
        check_machine(by_hand())
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "0")
    check_machine(by_hand())


def test_a_chip_of_another_family_is_refused(monkeypatch):
    monkeypatch.delenv("MS_SIMULATION_LEVEL", raising=False)
    monkeypatch.setattr(supported, "missing_for_ascend", lambda host: None)
    monkeypatch.setattr(supported, "Host", lambda: SimpleNamespace(chip="910b", npus=["davinci0"]))
    check_machine(by_hand(parallel={"chip": "910b4"}))
    with pytest.raises(ConfigError, match=r"^1 NPUs of the family 910b; parallel\.chip says 910a; set it to 910b, or"):
        check_machine(by_hand(parallel={"chip": "910a"}))
