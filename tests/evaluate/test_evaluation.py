"""Benchmarks in a file, and in the run's report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.benchmark_files import json_lines

from experiments.tiny import STEPS
from pangu_sigma.evaluate.benchmarks.benchmarks import BenchmarkRequest, format_tasks
from pangu_sigma.evaluate.evaluation import benchmark_model
from pangu_sigma.training.log.report import BENCHMARKS

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> BenchmarkRequest:
    folder = tmp_path_factory.mktemp("data")
    (folder / "ocnli").mkdir()
    rows = [{"sentence1": "今天天气", "sentence2": text, "label": "neutral"} for text in ("不错", "公园")]
    (folder / "ocnli" / "dev.json").write_text(json_lines(*rows, {"label": "-"}), encoding="utf-8")
    return BenchmarkRequest(("ocnli",), str(folder))


def test_a_run_keeps_benchmarks_for_its_report(tiny_run, asked, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / BENCHMARKS).write_text('{"older": {"acc": 0.5, "n": 9, "step": 3}}', encoding="utf-8")
    found = benchmark_model(run, asked, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == found
    figures = found["ocnli"]
    assert {key: figures[key] for key in ("n", "skipped", "truncated")} == {"n": 2, "skipped": 1, "truncated": 0}
    noted = json.loads((run / BENCHMARKS).read_text(encoding="utf-8"))
    assert noted["ocnli"] == figures | {"domain": "zh", "step": STEPS} and noted["older"]["n"] == 9
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    heads = ("task", "acc", "acc_norm", "domain", "n", "skipped", "step", "truncated")
    rows = (
        ("ocnli", *(f"{figures[key]:.5g}" for key in ("acc", "acc_norm")), "zh", "2", "1", f"{STEPS}", "0"),
        ("older", "0.5", "–", "–", "9", "–", "3", "–"),
    )
    assert f"<tr><th>{'</th><th>'.join(heads)}</th></tr>" in page
    for row in rows:
        assert f"<tr><td>{'</td><td>'.join(row)}</td></tr>" in page
    text = format_tasks(found)
    assert text.startswith("| task |") and f"| ocnli | acc | {figures['acc']:.4f} | 2 | 1 | 0 |" in text
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_an_export_has_the_benchmarks_of_its_run(tiny_run, tiny_export, asked, tmp_path):
    before = {str(file): file.read_bytes() for file in Path(tiny_export).rglob("*") if file.is_file()}
    run = shutil.copytree(tiny_run, tmp_path / "run")
    found = benchmark_model(tiny_export, asked, tmp_path / "out.json")
    assert found == benchmark_model(run, asked)
    assert {str(file): file.read_bytes() for file in Path(tiny_export).rglob("*") if file.is_file()} == before
