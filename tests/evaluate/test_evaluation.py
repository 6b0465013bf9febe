"""Losses and benchmarks together, in one result, and in the run's report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.benchmark_files import json_lines
from helpers.edited import edit_config
from helpers.tiny import STEPS

from pangu_sigma.evaluate.benchmarks import BenchmarkRequest
from pangu_sigma.evaluate.evaluation import evaluate_with_tasks, format_evaluation
from pangu_sigma.evaluate.run import evaluate_run
from pangu_sigma.stored.open import open_model
from pangu_sigma.train.report import BENCHMARKS

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
    found = evaluate_with_tasks(run, asked, file=tmp_path / "out.json")
    assert found["domains"] == evaluate_run(tiny_run)
    figures = found["tasks"]["ocnli"]
    assert {key: figures[key] for key in ("n", "skipped", "truncated")} == {"n": 2, "skipped": 1, "truncated": 0}
    noted = json.loads((run / BENCHMARKS).read_text(encoding="utf-8"))
    assert noted["ocnli"] == figures | {"domain": "zh", "step": STEPS} and noted["older"]["n"] == 9
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert (
        f"<tr><td>ocnli</td><td>acc</td><td>{figures['acc']:.3f}</td><td>2</td><td>1</td><td>0</td><td>zh</td>" in page
    )
    assert "<tr><td>older</td><td>acc</td><td>0.500</td><td>9</td><td>–</td>" in page
    text = format_evaluation(found)
    assert "perplexity" in text.splitlines()[0] and f"| ocnli | acc | {figures['acc']:.4f} | 2 | 1 | 0 |" in text
    assert not list(tmp_path.glob("*.partial"))


def test_where_the_text_of_a_run_is_gone_there_are_benchmarks_alone(tiny_run, asked, tmp_path, caplog):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    edit_config(run, {str(open_model(run, "run").config.data.path): str(tmp_path / "gone")})
    found = evaluate_with_tasks(run, asked)
    assert found["domains"] == {} and found["tasks"]["ocnli"]["n"] == 2
    assert any(message.startswith("no held-out losses: ") and "gone" in message for message in caplog.messages)
    assert format_evaluation(found).startswith("| task |")


@pytest.mark.slow
def test_an_export_has_the_benchmarks_of_its_run(tiny_run, tiny_export, asked, tmp_path):
    before = {str(file): file.read_bytes() for file in Path(tiny_export).rglob("*") if file.is_file()}
    run = shutil.copytree(tiny_run, tmp_path / "run")
    found = evaluate_with_tasks(tiny_export, asked, file=tmp_path / "out.json")
    assert found["tasks"] == evaluate_with_tasks(run, asked)["tasks"]
    assert {str(file): file.read_bytes() for file in Path(tiny_export).rglob("*") if file.is_file()} == before
