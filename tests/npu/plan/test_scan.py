"""Scans: the fastest layouts on more and more NPUs, as text and as JSON."""

from __future__ import annotations

import json

import pytest
from helpers.small_clusters import MODEL_CONFIGS

from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import load_config
from pangu_sigma.npu.plan.plan import SCANNED, layout_text, make_plan, scan
from pangu_sigma.npu.plan.suggest import suggest_layout, with_parallel

TINY, DENSE = MODEL_CONFIGS / "sigma_tiny.yaml", MODEL_CONFIGS / "alpha_13b.yaml"


def test_rows_are_the_plans_of_suggested_layouts_on_8_to_4096():
    config = load_config(DENSE)
    rows = scan(config)["scan"]
    assert [row["devices"] for row in rows] == list(SCANNED) == [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    for row in rows[:3]:
        suggested = suggest_layout(config, row["devices"])
        tree = make_plan(with_parallel(config, **suggested.model_dump()), row["devices"])
        assert row["layout"] == layout_text(suggested)
        assert (row["fits"] != "no") == tree["fits"]
        assert (row["fits"] == "tight") == (tree["fits"] and (tree["npu_gib"]["tight"] or tree["host_gib"]["tight"]))
        assert (row["npu_gib"], row["host_gib"]) == (tree["npu_gib"]["needed"], tree["host_gib"]["needed"])
        assert (row["step_seconds"], row["tokens_per_second"]) == (tree["step_seconds"], tree["tokens_per_second"])
        assert row["tokens_per_npu"] == row["tokens_per_second"] / row["devices"]


def test_the_command_writes_json_and_text(capsys):
    assert main(["plan", str(TINY), "--set", "parallel.chip=910b", "--scan", "--json", "-"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["name"], tree["chip"], tree["least_devices"]) == ("sigma_tiny", "910b", 1)
    assert [row["devices"] for row in tree["scan"]] == [8, 16], "it cannot be laid out on others"
    assert main(["plan", str(TINY), "--devices", "8", "--scan"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("sigma_tiny on 8 NPUs of Ascend 910A") and "\nscan\n" in text
    assert main(["plan", str(TINY), "--scan", "--set", "model.slot_rows=16_000_000"]) == 1
    assert " no  " in capsys.readouterr().out, "it fits nowhere"


def test_what_cannot_be_laid_out_is_refused():
    keys = ["train.batch_size=4", "model.heads=1", "data.domain_sets=1", "model.experts_per_domain=3"]
    with pytest.raises(ConfigError, match="cannot be laid out"):
        scan(load_config(TINY, keys))


def test_segments_are_scanned_and_take_longer():
    one, two = (
        scan(load_config(MODEL_CONFIGS / f"{name}.yaml"))["scan"] for name in ("sigma_paper_tiny", "sigma_tiny")
    )
    assert all(a["step_seconds"] < b["step_seconds"] for a, b in zip(one[1:], two[1:], strict=True))
