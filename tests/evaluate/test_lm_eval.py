"""The harness's own command knows this project's model and tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.benchmark_files import json_lines

from pangu_sigma.evaluate.benchmarks import TASKS, BenchmarkRequest, run_benchmarks
from pangu_sigma.evaluate.lm_eval import with_tasks


def test_our_tasks_are_added_unless_another_folder_or_help_is_asked_for():
    assert with_tasks(["run", "--tasks", "ocnli"]) == ["run", "--tasks", "ocnli", "--include_path", str(TASKS)]
    for arguments in ([], ["run", "--help"], ["ls", "tasks", "--include_path=x"], ["run", "--include_path", "x"]):
        assert with_tasks(arguments) == arguments


@pytest.mark.slow  # the harness reads its thousands of tasks first
def test_the_command_gives_the_numbers_of_evaluate(tiny_run, tmp_path):
    words = ["今天", "天气", "不错", "我们", "去", "公园", "看", "花"]
    rows = [
        {"sentence1": "".join(words[n : n + 3]), "sentence2": words[-n - 1], "label": label}
        for n, label in enumerate(["entailment", "neutral", "contradiction", "neutral"])
    ]
    (tmp_path / "data" / "ocnli").mkdir(parents=True)
    (tmp_path / "data" / "ocnli" / "dev.json").write_text(json_lines(*rows), encoding="utf-8")
    (expected,) = run_benchmarks(tiny_run, BenchmarkRequest(("ocnli",), str(tmp_path / "data"), "zh")).values()
    command = [sys.executable, "-m", "pangu_sigma.evaluate.lm_eval", "run", "--model", "pangu-sigma"]
    command += ["--tasks", "ocnli", "--model_args", f"path={tiny_run},domain=zh"]
    command += ["--metadata", json.dumps({"data": str(tmp_path / "data")})]
    subprocess.run([*command, "--output_path", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    (file,) = Path(tmp_path / "out").rglob("results*.json")
    found = json.loads(file.read_text(encoding="utf-8"))["results"]["ocnli"]
    assert {"acc": found["acc,none"], "acc_norm": found["acc_norm,none"]}.items() <= expected.items()
