"""Benchmarks by name: their metrics, what was skipped and cut, what is refused, and how one goes on after a kill."""

from __future__ import annotations

import inspect
import json
import math
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from helpers.benchmark_files import json_lines
from lm_eval.api.instance import Instance

from experiments.tiny import TINY_WORDS
from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks import benchmarks
from pangu_sigma.evaluate.benchmarks.benchmarks import (
    OWN_TASKS,
    TASKS,
    BenchmarkRequest,
    OwnTask,
    format_tasks,
    kept_beside,
    run_benchmarks,
)
from pangu_sigma.evaluate.benchmarks.harness import HarnessModel
from pangu_sigma.evaluate.benchmarks.pass_at_k import CodeOptions
from pangu_sigma.evaluate.benchmarks.result_cache import ResultCache
from pangu_sigma.evaluate.benchmarks.task_result import TaskResult
from pangu_sigma.generate.engine import Engine

LABELS = ["entailment", "neutral", "contradiction", "neutral", "-"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Sentences of words that the tiny model was trained on, one without a label, and one that is longer than the model."""
    folder, words = tmp_path_factory.mktemp("data"), TINY_WORDS["zh"]
    rows = [
        {"sentence1": "".join(words[n : n + 3]), "sentence2": words[-n - 1], "label": label}
        for n, label in enumerate(LABELS)
    ]
    rows.append({"sentence1": "".join(words) * 2, "sentence2": words[0], "label": "neutral"})
    for task in ("ocnli", "cmnli"):
        (folder / task).mkdir()
        (folder / task / "dev.json").write_text(json_lines(*rows), encoding="utf-8")
    (folder / "cmrc2017").mkdir()
    queries = "".join(
        f"1 ||| 今天 天气 不错 。\n<qid_{n}> ||| 我们 {word} XXXXX 。\n" for n, word in enumerate(["去", "看"])
    )
    (folder / "cmrc2017" / "cloze.test.doc_query").write_text(queries, encoding="utf-8")
    (folder / "cmrc2017" / "cloze.test.answer").write_text("<qid_0> ||| 公园\n<qid_1> ||| 花\n", encoding="utf-8")
    return folder


def asked(data: Path, *tasks: str, **options: Any) -> BenchmarkRequest:
    return BenchmarkRequest(tasks, str(data), "zh", **options)


def test_a_result_is_what_the_log_probabilities_say(tiny_run, data):
    """Of the filled templates: the label of the most likely one, and of the most likely one for each of its characters."""
    found = run_benchmarks(tiny_run, asked(data, "ocnli"))["ocnli"]
    model, right = HarnessModel(str(tiny_run), "zh"), {"acc": 0, "acc_norm": 0}
    lines = map(json.loads, (data / "ocnli" / "dev.json").read_text(encoding="utf-8").splitlines())
    rows = [row for row in lines if row["label"] != "-"]
    for row in rows:
        texts = [f"{row['sentence1']}?{word}，{row['sentence2']}" for word in ("对", "或许", "错")]
        scores = [
            score
            for score, _ in model.loglikelihood([Instance("loglikelihood", {}, ("", text), 0) for text in texts], True)
        ]
        gold = ["entailment", "neutral", "contradiction"].index(row["label"])
        right["acc"] += max(range(3), key=lambda n: scores[n]) == gold
        right["acc_norm"] += max(range(3), key=lambda n: scores[n] / len(texts[n])) == gold
    assert found == TaskResult({key: count / len(rows) for key, count in right.items()}, n=5, skipped=1, truncated=1)


def test_a_limit_takes_the_first_items_and_examples_stand_before_each(tiny_run, data, monkeypatch):
    texts: list[str] = []
    monkeypatch.setattr(
        HarnessModel,
        "loglikelihood",
        lambda self, requests: texts.extend(r.args[0] for r in requests) or [(-1.0, False)] * 6,
    )
    found = run_benchmarks(tiny_run, asked(data, "ocnli", limit=2, num_fewshot=1))["ocnli"]
    assert (found.n, found.skipped) == (2, 1)
    assert all(text.endswith("\n") and text.count("?") == 1 for text in texts)
    with pytest.raises(ConfigError, match="num_fewshot 5 is not possible: ocnli has 5 items"):
        run_benchmarks(tiny_run, asked(data, "ocnli", num_fewshot=5))


def test_a_group_counts_the_items_of_its_tasks(tiny_run, data, tmp_path, monkeypatch):
    tasks = shutil.copytree(TASKS, tmp_path / "tasks")
    group = "group: both\ntask: [ocnli, cmnli]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (tasks / "both.yaml").write_text(group, encoding="utf-8")
    monkeypatch.setattr(benchmarks, "TASKS", tasks)
    found = run_benchmarks(tiny_run, asked(data, "both"))
    assert found.keys() == {"both", "ocnli", "cmnli"}
    assert found["ocnli"] == found["cmnli"]
    assert found["both"] == TaskResult({"acc": found["ocnli"].metrics["acc"]}, n=10, skipped=2, truncated=2)


def test_what_the_harness_does_not_run_is_called_by_its_own_name(tiny_run, data, tmp_path, monkeypatch):
    calls: list[tuple[Any, ...]] = []

    def run(engine: Engine, domain: str, folder: Path, **options: Any) -> TaskResult:
        calls.append((type(engine), domain, folder, options))
        return TaskResult({"bleu": 12.5}, n=3, skipped=0, truncated=0)

    monkeypatch.setitem(OWN_TASKS, "mine", OwnTask(run, "code", ("samples_file", "jsonl"), runs_programs=True))
    request = BenchmarkRequest(("mine",), str(data), limit=7, temperature=0.5, samples_per_problem=3)
    result = {"mine": TaskResult({"bleu": 12.5}, 3, 0, 0)}
    assert run_benchmarks(tiny_run, request, beside=tmp_path / "all.json") == result
    options = {"limit": 7, "temperature": 0.5, "samples": 3, "unsafe": False}
    options["samples_file"] = tmp_path / "all.mine.jsonl"
    assert calls == [(Engine, "code", data / "mine", options)], "the first domain of its format"
    assert run_benchmarks(tiny_run, asked(data, "mine")) == result
    assert calls[1:] == [(Engine, "zh", data / "mine", {"limit": None, "samples": 1, "unsafe": False})]
    with pytest.raises(ConfigError, match="mine reads files; say with files in which folder its folder mine is"):
        run_benchmarks(tiny_run, BenchmarkRequest(("mine",), None))
    monkeypatch.setitem(OWN_TASKS, "mine", OwnTask(run, "bilingual", ("translations", "txt")))
    with pytest.raises(
        ConfigError, match="mine asks a domain of format bilingual, and the model has none; say with domain"
    ):
        run_benchmarks(tiny_run, BenchmarkRequest(("mine",), str(data)))


@pytest.mark.parametrize(
    ("tasks", "option", "said"),
    [
        (
            ["ocnli"],
            {"samples_per_problem": 2},
            "samples_per_problem has no effect: it is for humaneval and mbpp, .* ocnli",
        ),
        (
            ["translation_zh_en"],
            {"allow_code_execution": True},
            "allow_code_execution has no effect: it is for humaneval .*",
        ),
        (["ocnli", "c3"], {"temperature": 0.5}, "temperature has no effect: it is for humaneval, .* not for ocnli, c3"),
        (
            ["mbpp"],
            {"num_fewshot": 2},
            "num_fewshot has no effect: it is for tasks other than humaneval, .* not for mbpp",
        ),
    ],
)
def test_options_that_do_nothing_are_warned_of(tmp_path, caplog, tasks, option, said):
    """Before the model is looked at, which is none here."""
    with pytest.raises(ConfigError):
        run_benchmarks(tmp_path, BenchmarkRequest(tuple(tasks), None, **option))
    assert re.fullmatch(said, caplog.messages[0])


def test_a_task_of_ones_own_runs_by_its_name(tiny_run, tmp_path):
    (tmp_path / "items.jsonl").write_text(
        json_lines(*({"words": word} for word in TINY_WORDS["zh"][:3])), encoding="utf-8"
    )
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": [TINY_WORDS["zh"][0], "x"],
        "doc_to_target": 0,
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(task))
    (result,) = run_benchmarks(tiny_run, BenchmarkRequest(("mine",), None, "zh", include_path=str(tmp_path))).values()
    assert (result.n, set(result.metrics)) == (3, {"acc", "acc_norm"})
    with pytest.raises(ConfigError, match="include_path nix is not a folder"):
        run_benchmarks(tiny_run, BenchmarkRequest(("mine",), None, "zh", include_path="nix"))


def test_a_model_without_the_usual_domain_is_told_how_to_name_another(tiny_run, data, monkeypatch):
    monkeypatch.setattr(benchmarks, "CHINESE", "han")
    with pytest.raises(
        ConfigError,
        match="ocnli asks a domain called han, and the model has none; say with domain which answers: zh, en, code",
    ):
        run_benchmarks(tiny_run, BenchmarkRequest(("ocnli",), str(data)))


def test_git_is_not_asked_where_there_is_no_repository(tiny_run, data, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_benchmarks(tiny_run, asked(data, "ocnli", limit=1))
    assert "fatal" not in capfd.readouterr().err


@pytest.mark.parametrize("name", OWN_TASKS)
def test_each_of_them_takes_what_it_is_given(name):
    task = OWN_TASKS[name]
    if task.runs_programs:
        assert {task.file[0], "samples", "unsafe", "temperature"} <= {each.name for each in fields(CodeOptions)}
    else:
        assert {task.file[0], "temperature", "limit"} <= inspect.signature(task.run).parameters.keys()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": ("wplc",)}, DataError, r"wplc.dev\.json is not there; wplc is published at https://openi"),
        (
            {"tasks": ("ocnli",), "files": None},
            DataError,
            "no folder was given: --files FOLDER of pangu-sigma benchmark",
        ),
        ({"tasks": ("ocnli",), "domain": "fr"}, ConfigError, "unknown domain 'fr'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_computed(tiny_run, data, options, error, message):
    with pytest.raises(error, match=message):
        run_benchmarks(tiny_run, BenchmarkRequest(**{"files": str(data), "domain": "zh"} | options))


@pytest.mark.slow  # the harness reads its thousands of tasks first
def test_a_task_that_nobody_knows_is_refused(tiny_run, data):
    with pytest.raises(
        ConfigError, match=r"benchmark ocnly is not known; this project has afqmc, c3, .*lm_eval ls tasks"
    ):
        run_benchmarks(tiny_run, asked(data, "ocnly"))


def test_it_goes_on_where_it_was_killed(tiny_run, data, tmp_path, monkeypatch):
    """Killed in the second task: the first is not run again, nor is an answer that was there already."""
    both, file = asked(data, "ocnli", "cmrc2017"), tmp_path / "out.json"
    whole = run_benchmarks(tiny_run, both)
    put, requests = ResultCache.put, list[str]()

    def killed(self: ResultCache, name: str, value: Any) -> None:
        if "task ocnli" in requests and requests[-1].startswith("answer"):
            raise KeyboardInterrupt
        requests.append(name)
        put(self, name, value)

    monkeypatch.setattr(ResultCache, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        run_benchmarks(tiny_run, both, kept_beside(file, tiny_run, both))
    assert "task ocnli" in requests
    done = len(requests)
    monkeypatch.setattr(ResultCache, "put", lambda self, name, value: requests.append(name) or put(self, name, value))
    assert run_benchmarks(tiny_run, both, kept_beside(file, tiny_run, both)) == whole
    new = requests[done:]
    assert len(new) == 2 and new[-1] == "task cmrc2017" and not set(new) & set(requests[:done])


def test_other_options_do_not_take_answers_of_before(tiny_run, data, tmp_path):
    one, other = asked(data, "ocnli"), asked(data, "ocnli", limit=2)
    kept_beside(tmp_path / "out.json", tiny_run, one).put("a", 1)
    assert kept_beside(tmp_path / "out.json", tiny_run, one).get("a") == 1
    assert kept_beside(tmp_path / "out.json", tiny_run, other).get("a") is None


def test_the_table_has_a_line_for_each_metric():
    results = {"wplc": TaskResult({"perplexity": math.inf, "acc": 0.5}, n=1200, skipped=1, truncated=0)}
    figures = {name: result.figures() for name, result in results.items()}
    assert figures == {"wplc": {"perplexity": None, "acc": 0.5, "n": 1200, "skipped": 1, "truncated": 0}}
    assert format_tasks(figures).splitlines() == [
        "| task | metric | value | items | skipped | truncated |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| wplc | perplexity | – | 1,200 | 1 | 0 |",
        "| wplc | acc | 0.5000 | 1,200 | 1 | 0 |",
    ]
