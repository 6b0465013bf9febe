"""Scans: the fastest layouts on more and more NPUs, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.small_clusters import MODEL_CONFIGS

from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import load_config
from pangu_sigma.npu.plan.plan import make_plan
from pangu_sigma.npu.plan.scan import SCANNED, Scan, format_scan, scan
from pangu_sigma.npu.plan.suggest import with_parallel

TINY, DENSE = MODEL_CONFIGS / "sigma_tiny.yaml", MODEL_CONFIGS / "alpha_13b.yaml"


@pytest.fixture(scope="module")
def dense() -> Scan:
    return scan(load_config(DENSE))


def test_a_scan_goes_from_8_to_4096():
    assert SCANNED == (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def test_rows_are_the_plans_of_suggested_layouts(dense: Scan):
    config = load_config(DENSE)
    assert [row.devices for row in dense.rows] == list(SCANNED)
    for row in dense.rows[:3]:
        plan = make_plan(with_parallel(config, **row.parallel.model_dump()), row.devices)
        assert (row.fits, row.npu_gib, row.host_gib) == (plan.fits, plan.npu.needed_gib, plan.host.needed_gib)
        assert (row.step_seconds, row.tokens_per_second) == (plan.seconds.step, plan.tokens_per_second)
        assert row.left * 32 == pytest.approx(plan.npu.left_gib), "the host has almost all left"
        assert row.tokens_per_npu == plan.tokens_per_second / row.devices


def test_bars_tell_what_fits_and_the_longest_is_the_fastest_npu(dense: Scan):
    lines, least = format_scan(dense).splitlines(), dense.least_devices
    assert lines[0] == f"alpha_13b on NPUs of Ascend 910A, the fastest layout that fits; it needs at least {least} NPUs"
    table, tight = lines[2:-2], min((row for row in dense.rows if row.fits), key=lambda row: row.left)
    verdicts = ["tight" if row is tight else "yes" if row.fits else "NO" for row in dense.rows]
    assert 0 <= tight.left < 0.1
    assert [line.split()[1] for line in table] == verdicts
    assert [line.endswith("█") for line in table] == [row.fits for row in dense.rows]
    best = max((row for row in dense.rows if row.fits), key=lambda row: row.tokens_per_npu)
    assert max(table, key=lambda line: line.count("█")).split()[0] == f"{best.devices:,}"


def test_the_command_writes_json_and_a_picture(capsys, tmp_path: Path):
    picture = tmp_path / "tiny.svg"
    assert main(["plan", str(TINY), "--chip", "910b", "--scan", str(picture), "--json", "-"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["name"], tree["chip"], tree["least_devices"]) == ("sigma_tiny", "910b", 1)
    assert [row["devices"] for row in tree["scan"]] == [8, 16], "it cannot be laid out on others"
    assert all(row["fits"] and row["parallel"]["chip"] == "910b" for row in tree["scan"])
    assert "<svg" in picture.read_text(encoding="utf-8")


def test_a_plan_and_a_scan_come_together(capsys):
    assert main(["plan", str(TINY), "--devices", "8", "--scan"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("sigma_tiny on 8 NPUs of Ascend 910A")
    assert "\nsigma_tiny on NPUs of Ascend 910A, the fastest layout that fits; it needs at least 1 NPU\n" in text


def test_what_fits_nowhere_ends_with_status_1(capsys):
    arguments = ["plan", str(TINY), "--scan", "--set", "model.slot_rows=16_000_000"]
    assert main(arguments) == 1
    assert "up to 4,096 have no room" in capsys.readouterr().out


def test_what_cannot_be_laid_out_is_refused():
    with pytest.raises(ConfigError, match="cannot be laid out"):
        scan(
            load_config(
                TINY, ["train.batch_size=4", "model.heads=1", "data.domain_sets=1", "model.experts_per_domain=3"]
            )
        )


def test_segments_are_scanned_and_take_longer():
    one, two = (scan(load_config(MODEL_CONFIGS / f"{name}.yaml")).rows for name in ("sigma_paper_tiny", "sigma_tiny"))
    assert all(a.step_seconds < b.step_seconds for a, b in zip(one[1:], two[1:], strict=True))
