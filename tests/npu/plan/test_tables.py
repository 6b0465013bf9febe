"""The text of small plans; that of whole ones is in test_plan.py, of compiled ones in test_differences.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.small_clusters import MODEL_CONFIGS, by_hand

from pangu_sigma.chips import CHIP_DATA
from pangu_sigma.config_file import load_config
from pangu_sigma.npu.plan.cost import MEASURED_UPDATE_BANDWIDTH
from pangu_sigma.npu.plan.plan import make_plan
from pangu_sigma.npu.plan.tables import format_plan


def test_a_single_rank_moves_nothing_between_npus():
    config = by_hand(parallel={"expert": 1, "tensor": 1})
    text = format_plan(make_plan(config, 1))
    assert text.startswith(
        "by_hand on 1 NPU of Ascend 910A, 1 host; all are alike\n  computes in float16, the half type of Ascend 910A\n"
        "  layout, as configured: a single rank\n"
    )
    assert "moved by an NPU in a step, in GB: PCIe to and from its host 0.00\ntime of a step" in text


def test_axes_of_more_than_one_rank_are_named():
    text = format_plan(make_plan(by_hand(), 4))
    assert "by_hand on 4 NPUs of Ascend 910A, 1 host" in text
    assert "as configured: 2 expert x 2 tensor\n" in text
    assert "a rank sees 8 tokens of a step, at most 8 of them for one expert\n" in text
    assert "an RRE layer sends 16 rows of it, and multiplies 16\n" in text


@pytest.mark.parametrize(
    ("chip", "dtype", "reason"),
    [
        ("910a", "float16", "the half type of Ascend 910A"),
        ("910b", "bfloat16", "the half type of Ascend 910B3"),
        ("910b", "float16", "as train.compute_dtype says"),
        ("910_93", "float32", "as train.compute_dtype says"),
    ],
)
def test_the_chip_and_the_reason_of_the_dtype_are_said(chip: str, dtype: str, reason: str):
    text = format_plan(make_plan(by_hand(parallel={"chip": chip}, train={"compute_dtype": dtype}), 4))
    data = CHIP_DATA[chip]
    assert f"\n  computes in {dtype}, {reason}\n" in text
    assert f"memory of an NPU ({data.title}, {data.memory >> 30} GiB)" in text
    assert f"memory of a host ({data.host_memory // 10**9} GB)" in text


def test_what_time_was_fitted_to_stands_where_it_is_printed():
    text = format_plan(make_plan(load_config(MODEL_CONFIGS / "sigma_1t.yaml"), 512))
    assert "fitted to 18 and 29 % of LocMoE's smaller steps" in text
    assert (
        "Adam on the host at 36 GB/s, which was measured on 2 cores (doctor --speed), not at 10: 1.21 s, the step 4.35 s"
        in text
    )
    assert "fitted to the paper's 7.5 s and 6.3x on 512 NPUs of 910A" in text


@pytest.mark.parametrize("chip", ["910b", "910_93"])
def test_what_the_time_hangs_on_most_is_printed_with_half_and_double(chip: str):
    plan = make_plan(load_config(MODEL_CONFIGS / "sigma_1t.yaml", [("parallel.chip", chip)]), 512)
    half, double = plan.hangs_on.seconds_at_half, plan.hangs_on.seconds_at_double
    text = format_plan(plan)
    assert (
        f"\n  hangs most on Adam on a host at 10 GB/s: at half of that {half:.3g} s, at double {double:.3g} s\n" in text
    )
    assert ("one of Ascend 910_93 has 16, on the same 10 GB/s, so NPUs look slower" in text) == (chip == "910_93")
    assert plan.as_dict()["hangs_on"]["constant"] == "host_update_bandwidth"


def test_what_the_host_hides_is_printed_beside_the_papers_step():
    plan = make_plan(load_config(MODEL_CONFIGS / "sigma_1t.yaml"), 512)
    assert plan.overlapped is not None
    left, step = plan.overlapped.left, plan.overlapped.step
    assert f" s: {left:.3g} s are left, the step {step:.3g} s\n  there the host decides: " in format_plan(plan)
    assert plan.as_dict()["overlapped"]["step"] == step < plan.seconds.step


def test_a_host_with_little_to_update_decides_nothing():
    few = load_config(MODEL_CONFIGS / "sigma_1t.yaml", [("model.rre_layers", 1), ("model.dense_layers", 39)])
    plan = make_plan(few, 512)
    assert plan.overlapped is not None and 3 * plan.overlapped.left < plan.overlapped.step
    assert "the host decides" not in format_plan(plan)


def test_a_dense_model_hangs_on_another_constant():
    text = format_plan(make_plan(load_config(MODEL_CONFIGS / "alpha_13b.yaml", [("parallel.chip", "910_93")]), 64))
    assert "hangs most on matrix products at 45.7% of the chip's peak: at half of that" in text
    assert "Adam's rate is a host's" not in text


def test_the_measured_adam_is_that_of_the_table():
    """Its `kernel` row: milliseconds for 48 tensors of 2**20 parameters of 28 bytes."""
    tables = (Path(__file__).parents[3] / "docs/experiments/speed.md").read_text(encoding="utf-8")
    milliseconds = float(re.search(r"memory traffic of Adam alone +([\d.]+)", tables)[1])
    assert pytest.approx(28 * 48 * 2**20 / milliseconds * 1e3, rel=0.01) == MEASURED_UPDATE_BANDWIDTH
