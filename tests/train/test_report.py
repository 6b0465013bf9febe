"""The report is drawn from metrics alone, for few domains and many, and for models without routed layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.losses import held_out
from matplotlib import image

from pangu_sigma.train import report
from pangu_sigma.train.metrics import MetricsLog, StepMetrics


def made_up_run(folder: Path, domains: list[str], layers: int, experts: int, evaluate: bool = True) -> None:
    rng = np.random.default_rng(0)
    with MetricsLog(folder, domains, 6, 2) as log:
        for step in range(1, 7):
            losses = dict.fromkeys(domains[:4], 5.0 / step)
            load_NK = rng.integers(0, 50, (layers, experts * len(domains)))
            log.record(StepMetrics(step, 5.0 / step, losses, 1e-3, 1.0, 1.0, False, 100, load_NK))
        if evaluate:
            log.evaluation(6, held_out(**dict.fromkeys(domains, 1.0)))


@pytest.mark.parametrize(
    ("domains", "layers", "experts"), [(["zh", "en"], 2, 4), ([f"d{i}" for i in range(40)], 3, 16)]
)
def test_pictures_and_a_page_that_holds_them(tmp_path: Path, domains: list[str], layers: int, experts: int):
    made_up_run(tmp_path, domains, layers, experts)
    page = report.write_report(tmp_path)
    for name in ("loss", "expert_load", "tokens_per_second"):
        height, width = image.imread(tmp_path / "report" / f"{name}.png").shape[:2]
        assert min(height, width) > 200
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3
    assert "<td>zh</td><td>0.917</td><td>1.000</td><td>2.718</td>" in text or domains[0] != "zh"
    assert "http" not in text


def test_what_was_not_measured_is_left_out(tmp_path: Path):
    made_up_run(tmp_path, ["zh"], 0, 1, evaluate=False)
    text = report.write_report(tmp_path).read_text()
    assert not (tmp_path / "report" / "expert_load.png").exists()
    assert "<td>zh</td><td>0.917</td><td>–</td><td>–</td>" in text


def test_load_is_relative_to_the_fair_share_of_its_domain():
    total_NK = np.array([[10, 30, 5, 5, 0, 0]])
    relative = report._relative(total_NK, domains=3)
    assert np.array_equal(relative, [[0.5, 1.5, 1.0, 1.0, np.nan, np.nan]], equal_nan=True)


def test_a_run_without_steps_says_what_to_do(tmp_path: Path):
    with MetricsLog(tmp_path, ["zh"], 5, 5):
        pass
    with pytest.raises(ValueError, match=r"no logged step.*log_interval"):
        report.write_report(tmp_path)
