"""`pangu-sigma plan`: the tree, its text and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.small_clusters import MODEL_CONFIGS

from pangu_sigma.cli import main
from pangu_sigma.config_file import load_config
from pangu_sigma.npu.plan import plan as plan_module
from pangu_sigma.npu.plan.plan import format_plan, make_plan
from pangu_sigma.npu.plan.suggest import fastest_layouts

TRILLION, TINY = MODEL_CONFIGS / "sigma_1t.yaml", MODEL_CONFIGS / "sigma_tiny.yaml"


@pytest.fixture(scope="module")
def trillion() -> dict[str, Any]:
    return make_plan(load_config(TRILLION), 512)


def command(*arguments: object) -> int:
    return main(["plan", *map(str, arguments)])


def test_the_trillion_fits_and_without_ecss_it_does_not(trillion: dict[str, Any]):
    assert trillion["fits"]
    assert trillion["npu_gib"]["needed"] * 2**30 <= 32e9
    assert trillion["host_gib"]["needed"] * 2**30 <= 750e9
    assert (trillion["devices"], trillion["hosts"], trillion["suggested"]) == (512, 64, None)
    off = make_plan(load_config(TRILLION, ["ecss.enabled=false"]), 512)
    assert not off["fits"]
    assert off["npu_gib"]["needed"] > 32
    assert format_plan(trillion).splitlines()[0] == "sigma_1t on 512 NPUs of Ascend 910A, 64 hosts: fits"
    assert format_plan(off).splitlines()[0].endswith(": DOES NOT FIT")


def test_the_papers_step_is_planned(trillion: dict[str, Any]):
    tree = trillion
    assert (tree["step_seconds"], tree["tokens_per_second"]) == pytest.approx((7.5, 69_905), rel=2e-3)
    assert tree["all_experts_seconds"] / tree["step_seconds"] == pytest.approx(6.3, rel=2e-3)
    assert (tree["chip"], tree["compute_dtype"], tree["tokens_of_rank"]) == ("910a", "float16", 8_192)
    assert tree["sent_rows"] == 1.5 * 8_192
    assert tree["multiplied_rows"] == 9_176, "1.12 times the tokens"
    assert (tree["differences"], tree["least_devices"]) == (None, 256)
    first, second = tree["next_best"]
    assert tree["step_seconds"] < first["step_seconds"] < second["step_seconds"]
    config = load_config(TRILLION)
    other = next(layout.parallel for layout in fastest_layouts(config, 512) if layout.parallel != config.parallel)
    again = make_plan(load_config(TRILLION, [("parallel", other.model_dump())]), 512)
    assert again["step_seconds"] == first["step_seconds"]
    assert again["next_best"][0] == {"layout": tree["layout"], "step_seconds": tree["step_seconds"]}


def test_json_holds_what_a_compiled_plan_is_compared_with(trillion: dict[str, Any]):
    tree = trillion
    assert json.loads(json.dumps(tree)) == tree
    assert all({"op", "count", "group_size", "nbytes"} <= row.keys() for row in tree["collectives"])
    slices = {row["name"]: (row["slice"], row["device"]) for row in tree["parameters"]}
    assert slices["experts.0.w1"] == ([10, 2560, 5120], "CPU")
    assert slices["layers.0.ffn.w2"] == ([40, 5120], "Ascend")


def test_another_chip_changes_limits_speed_and_what_fits(trillion: dict[str, Any]):
    plan = make_plan(load_config(TRILLION, ["parallel.chip=910b"]), 512)
    tree, before = plan, trillion
    assert (tree["chip"], tree["compute_dtype"], tree["hosts"]) == ("910b", "bfloat16", 64)
    assert tree["npu_gib"]["needed"] == before["npu_gib"]["needed"]
    assert (tree["npu_gib"]["limit"], before["npu_gib"]["limit"]) == (64, 32)
    assert tree["host_gib"]["limit"] == pytest.approx(2 * before["host_gib"]["limit"])
    assert tree["step_seconds"] < before["step_seconds"]
    assert "recompute" not in plan["next_best"][0]["layout"], "there is room to keep all, which is faster"
    wide = make_plan(load_config(TRILLION, [("parallel.chip", "910_93")]), 512)
    assert wide["hosts"] == 32
    assert "hosts of other chips are taken to be as fast, however many NPUs they have" in format_plan(wide)


def test_text_shows_every_item_and_the_section_to_copy():
    plan = make_plan(load_config(TINY), 8)
    text = format_plan(plan)
    section = plan["suggested"]
    assert section
    assert all(re.search(rf"^  {key} +{value}$", text, re.MULTILINE) for key, value in section.items())
    again = load_config(TINY, [f"parallel={json.dumps(section)}"])
    assert make_plan(again, 8) == plan | {"suggested": None}
    for item in plan["npu_gib"] | plan["host_gib"]:
        assert item in text


def test_a_plan_that_does_not_fit_says_what_would():
    plan = make_plan(load_config(TRILLION, ["parallel.recompute=false"]), 512)
    assert plan["what_fits"] == {"parallel.recompute": True}
    assert "\nwhat fits\n  parallel.recompute  yes\n" in format_plan(plan)


def test_stages_are_planned_one_by_one():
    """Half of the layers on half of the ranks: the last one has the experts, the first one keeps more micro-batches."""
    keys = [
        "parallel.stages=2",
        "parallel.groups=2",
        "data.domain_sets=4",
        "train.accumulation=4",
        "train.batch_size=128",
    ]
    plan = make_plan(load_config(TRILLION, keys), 512)
    text = format_plan(plan)
    assert plan["refused"] is None
    assert [(s["first_rank"], s["layers"], s["rre_layers"]) for s in plan["stages"]] == [
        (0, [0, 19], 0),
        (256, [20, 39], 8),
    ]
    needed = [stage["npu_memory_gib"] for stage in plan["stages"]]
    assert plan["npu_gib"]["needed"] == max(needed)
    assert plan["seconds"]["bubble"] > 0
    names = [{p["name"] for p in plan["parameters"] if p["stage"] == stage} for stage in (0, 1)]
    assert "embedding" in names[0] - names[1]
    assert "query_positions" in names[1] - names[0]
    assert "embedding.accumulated" in names[0] & names[1]
    assert not any(name.startswith("experts") for name in names[0])
    assert re.search(rf"256 +20; 39 +8 +{needed[1]:.2f}", text)
    assert re.search(r" 0 +Send +2 +5 .*forward=5", text), "four hidden states and the word table"


def test_a_dense_model_has_no_experts_to_move():
    plan = make_plan(load_config(MODEL_CONFIGS / "alpha_13b.yaml"), 64)
    assert plan["moved_gb"]["pcie"] == plan["seconds"]["host_update"] == 0
    assert "expert" not in format_plan(plan)[format_plan(plan).index("npu gib") :]
    keys = [("model.rre_layers", 0), ("data.domain_sets", 1), ("data.domains_per_step", 1)]
    for dense in (plan, make_plan(load_config(TINY, keys), 1)):
        assert dense["all_experts_seconds"] is None


def test_the_command_prints_or_writes(capsys, tmp_path: Path, trillion: dict[str, Any]):
    assert command(TRILLION, "--devices", 512) == 0
    assert capsys.readouterr().out == format_plan(trillion) + "\n"
    assert command(TRILLION, "--devices", 512, "--json", tmp_path / "plan.json") == 0
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8")) == trillion
    assert capsys.readouterr().out == format_plan(trillion) + "\n"
    assert command(TINY, "--devices", 4, "--set", "train.batch_size=16", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["tokens_of_rank"] == 4 * 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TINY,), "plan needs --devices N, for a plan on N NPUs; or --scan"),
        ((TINY, "--scan", "--compile"), "plan needs --devices N"),
        ((TINY, "--devices", 7), "The nearest numbers that can be are 4 or 8"),
        ((TINY, "--devices", 0), "--devices=0 is not allowed: it must be greater than or equal to 1"),
        (
            (TINY, "--devices", 12, "--set", "train.batch_size=12"),
            "MindSpore takes 1, 2, 4 or a multiple of 8",
        ),
        ((TINY, "--devices", 8, "--set", "parallel.stages=2"), "needs train.accumulation >= 2, not 1"),
        ((TINY, "--devices", 8, "--compile", "--set", "model.dropout=0.1"), "set model.dropout=0"),
        ((TINY, "--devices", 8, "--set", "parallel.tensor=5"), "is not divisible by parallel.tensor (5)"),
    ],
)
def test_what_the_user_can_fix_ends_with_status_2(capsys, arguments: tuple, message: str):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_planning_loads_no_mindspore():
    """In a process of its own, as a user runs it."""
    code = (
        "import sys; from pangu_sigma.cli import main; status = main(sys.argv[1:]);"
        "print([m for m in sys.modules if m.split('.')[0] == 'mindspore'], file=sys.stderr); sys.exit(status)"
    )
    arguments = ["plan", str(TRILLION), "--devices", "512"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


def test_a_plan_that_does_not_fit_ends_with_status_1_and_the_least_number_is_named(capsys):
    """sigma_38b on 64 NPUs of 910A; 910B has room for it. No keys make the trillion fit on 64."""
    arguments = (MODEL_CONFIGS / "sigma_38b.yaml", "--devices", 64)
    assert command(*arguments) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert command(*arguments, "--set", "parallel.chip=910b") == 0
    assert "DOES NOT FIT" not in capsys.readouterr().out
    plan = make_plan(load_config(TRILLION), 64)
    assert (plan["fits"], plan["what_fits"], plan["least_devices"]) == (False, None, 256)
    assert "\nleast devices: 256\nfits: no\n" in format_plan(plan)


def test_a_plan_that_leaves_little_is_tight(trillion: dict[str, Any]):
    assert not trillion["npu_gib"]["tight"]
    npu = plan_module._memory_section({"all of it": int(31.94 * 2**30)}, 32 << 30)
    assert npu["tight"]
    tight = trillion | {"npu_gib": npu}
    assert re.search(r"^  tight +yes$", format_plan(tight), re.MULTILINE)
