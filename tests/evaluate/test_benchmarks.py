"""Benchmarks by name: their metrics, what was skipped and cut, what is refused, and how one goes on after a kill."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.benchmark_files import json_lines
from lm_eval.api.instance import Instance

import pangu_sigma as ps
from experiments.tiny import STEPS, TINY_WORDS
from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError, UserError
from pangu_sigma.evaluate import benchmarks
from pangu_sigma.evaluate.benchmarks import (
    FORMATS,
    TASKS,
    BenchmarkRequest,
    benchmark_model,
    cache_beside,
    format_tasks,
    run_benchmarks,
)
from pangu_sigma.evaluate.harness import HarnessModel
from pangu_sigma.evaluate.result_cache import ResultCache
from pangu_sigma.evaluate.tasks import programs
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.report import BENCHMARKS
from pangu_sigma.writable import NotWritable

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
    assert found == {key: count / len(rows) for key, count in right.items()} | {"n": 5, "skipped": 1, "truncated": 1}


def test_a_limit_takes_the_first_items_and_examples_stand_before_each(tiny_run, data, monkeypatch):
    texts: list[str] = []
    monkeypatch.setattr(
        HarnessModel,
        "loglikelihood",
        lambda self, requests: texts.extend(r.args[0] for r in requests) or [(-1.0, False)] * 6,
    )
    found = run_benchmarks(tiny_run, asked(data, "ocnli", limit=2, num_fewshot=1))["ocnli"]
    assert (found["n"], found["skipped"]) == (2, 1)
    assert all(text.endswith("\n") and text.count("?") == 1 for text in texts)
    with pytest.raises(ConfigError, match="num_fewshot 5 is not possible: ocnli has 5 items, and examples are others"):
        run_benchmarks(tiny_run, asked(data, "ocnli", num_fewshot=5))


def test_a_group_counts_the_items_of_its_tasks(tiny_run, data, tmp_path, monkeypatch):
    tasks = shutil.copytree(TASKS, tmp_path / "tasks")
    group = "group: both\ntask: [ocnli, cmnli]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (tasks / "both.yaml").write_text(group, encoding="utf-8")
    monkeypatch.setattr(benchmarks, "TASKS", tasks)
    found = run_benchmarks(tiny_run, asked(data, "both"))
    assert found.keys() == {"both", "ocnli", "cmnli"}
    assert found["ocnli"] == found["cmnli"]
    assert found["both"] == {"acc": found["ocnli"]["acc"], "n": 10, "skipped": 2, "truncated": 2}


PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "x = ",
    "entry_point": "x",
    "canonical_solution": "1\n",
    "test": "def check(x):\n    pass\n",
}


@pytest.fixture
def problems(tmp_path) -> Path:
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "humaneval" / "HumanEval.jsonl").write_text(json_lines(PROBLEM, PROBLEM | {"task_id": "HumanEval/1"}))
    return tmp_path


@pytest.mark.usefixtures("programs_can_run")
def test_the_first_domain_of_its_format_answers_and_its_answers_stand_beside_the_result(tiny_run, problems):
    """Ten answers to each problem, with seeds that follow one another; the domain's tag is before the prompt, as in training."""
    options = {"temperature": 1.0, "samples_per_problem": 10, "allow_code_execution": True}
    request = BenchmarkRequest(("humaneval",), str(problems), **options)
    result = run_benchmarks(tiny_run, request, problems / "all.json")["humaneval"]
    counts = {"n": 2, "skipped": 0, "truncated": 0}
    assert result.keys() == {"pass@1", "pass@10", *counts} and result | counts == result
    rows = [json.loads(line) for line in (problems / "all.humaneval.jsonl").read_text().splitlines()]
    assert [(row["item"], row["prompt"], len(row["answers"])) for row in rows] == [(0, "x = ", 10), (1, "x = ", 10)]
    assert rows[0]["answers"] == rows[1]["answers"] and len(set(rows[0]["answers"])) > 1
    model = HarnessModel(str(tiny_run), "code", tags=True, seed=1234 + 9)
    asked_for = ("x = ", {"until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "temperature": 1.0, "top_p": 0.95})
    ninth = model.generate_until([Instance("generate_until", {}, asked_for, 0)], True)
    assert ninth == rows[0]["answers"][9:]
    passed = [row["pass@1"].count("passed") for row in rows]
    assert result["pass@1"] == pytest.approx(sum(passed) / 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "humaneval runs programs that the model writes; allow_code_execution allows it"),
        (
            {"allow_code_execution": True, "samples_per_problem": 2},
            "2 programs of temperature 0 are all the same; give temperature 0.8",
        ),
        ({"num_fewshot": 2, "allow_code_execution": True}, "num_fewshot 2 is not possible: humaneval has 2 items"),
    ],
)
@pytest.mark.usefixtures("programs_can_run")
def test_programs_that_may_not_be_run_are_refused_before_anything_is_computed(tiny_run, problems, options, message):
    with pytest.raises(ConfigError, match=message):
        run_benchmarks(tiny_run, BenchmarkRequest(("humaneval",), str(problems), **options))


def test_no_model_is_asked_where_programs_cannot_be_isolated(tiny_run, problems, monkeypatch):
    monkeypatch.setattr(programs, "_BWRAP", "false")
    monkeypatch.setattr(benchmarks, "open_engine", None)
    with pytest.raises(ConfigError, match="programs cannot be isolated here, so none is run: "):
        run_benchmarks(tiny_run, BenchmarkRequest(("humaneval",), str(problems), allow_code_execution=True))


def test_a_model_without_the_usual_domain_is_told_how_to_name_another(tiny_run, data, monkeypatch):
    with pytest.raises(
        ConfigError, match="translation_zh_en asks a domain of format bilingual, and the model has none;"
    ):
        run_benchmarks(tiny_run, BenchmarkRequest(("translation_zh_en",), str(data)))
    assert FORMATS.keys() <= {file.stem for file in TASKS.glob("*.yaml")}
    monkeypatch.setattr(benchmarks, "CHINESE", "han")
    message = "ocnli asks a domain called han, and the model has none; say with domain which answers: zh, en, code"
    with pytest.raises(ConfigError, match=message):
        run_benchmarks(tiny_run, BenchmarkRequest(("ocnli",), str(data)))


def test_options_that_do_nothing_are_warned_of(tiny_run, data, caplog, monkeypatch):
    monkeypatch.setattr(benchmarks, "_run_task", lambda *_: {})
    run_benchmarks(tiny_run, asked(data, "ocnli", samples_per_problem=2, allow_code_execution=True, temperature=0.5))
    for option, kind in (
        ("samples_per_problem", "programs"),
        ("allow_code_execution", "programs"),
        ("temperature", "generated answers"),
    ):
        assert f"{option} has no effect: it is for benchmarks of {kind}, not for ocnli" in caplog.text


def test_a_temperature_is_that_of_the_answers(tiny_run, data, monkeypatch):
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        HarnessModel,
        "generate_until",
        lambda self, requests: given.extend(r.args[1] for r in requests) or [""] * len(requests),
    )
    for temperature in (None, 0, 0.5):
        run_benchmarks(tiny_run, asked(data, "cmrc2017", limit=1, temperature=temperature))
    assert [(each["temperature"], each["do_sample"]) for each in given] == [(1.0, True), (0, False), (0.5, True)]


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
    assert result["n"] == 3 and result.keys() == {"acc", "acc_norm", "n", "skipped", "truncated"}
    (tmp_path / "mine.yaml").write_text(json.dumps(task | {"unsafe_code": True}))
    request = BenchmarkRequest(("mine",), None, "zh", include_path=str(tmp_path), allow_code_execution=True)
    with pytest.raises(ConfigError, match="mine runs programs outside of a sandbox; take humaneval or mbpp"):
        run_benchmarks(tiny_run, request)
    with pytest.raises(ConfigError, match="include_path nix is not a folder"):
        run_benchmarks(tiny_run, BenchmarkRequest(("mine",), None, "zh", include_path="nix"))


ITEMS = {"dataset_path": "json", "test_split": "test", "output_type": "multiple_choice", "doc_to_choice": ["a", "b"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [mine", "ParserError: while parsing a flow sequence"),
        ("include: nix.yaml\ntask: mine", "FileNotFoundError: .*nix.yaml"),
        ("task: mine\ndoc_to_text: !function nix.text", "Cannot import module 'nix' for function 'text'"),
        ("task: mine\ndoc_to_text: !function own.nix", "AttributeError: Module .*own.py' has no function 'nix'"),
        ("task: mine\ndoc_to_text: !function own.text\ndoc_to_target: 0", "KeyError: 'lost'"),
    ],
)
def test_a_task_of_ones_own_that_fails_is_named_with_the_reason(tiny_run, tmp_path, text, message):
    (tmp_path / "items.jsonl").write_text(json_lines({"words": "a"}))
    (tmp_path / "own.py").write_text("def text(row):\n    return row['lost']\n")
    items = ITEMS | {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}}}
    (tmp_path / "mine.yaml").write_text(text + "\n" + "\n".join(f"{k}: {json.dumps(v)}" for k, v in items.items()))
    with pytest.raises(DataError, match=rf"^{tmp_path}/mine\.yaml: .*{message}.*; mend the task"):
        run_benchmarks(tiny_run, BenchmarkRequest(("mine",), None, "zh", include_path=str(tmp_path)))


def test_git_is_not_asked_where_there_is_no_repository(tiny_run, data, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_benchmarks(tiny_run, asked(data, "ocnli", limit=1))
    assert "fatal" not in capfd.readouterr().err


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
    """Killed in the second task: no answer that was there already is asked for again."""
    both, file = asked(data, "ocnli", "cmrc2017"), tmp_path / "out.json"
    answers_file = tmp_path / "out.cmrc2017.jsonl"
    whole = run_benchmarks(tiny_run, both)
    put, answers = ResultCache.put, list[tuple[str, Any]]()

    def killed(self: ResultCache, name: str, value: Any) -> None:
        if answers and isinstance(answers[-1][1], str):  # a text, as the second task's answers are
            raise KeyboardInterrupt
        answers.append((name, value))
        put(self, name, value)

    monkeypatch.setattr(ResultCache, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        run_benchmarks(tiny_run, both, file)
    before, done = {name for name, _ in answers}, len(answers)
    assert [isinstance(value, str) for _, value in answers].count(True) == 1 and len(before) > 15 and not file.exists()
    monkeypatch.setattr(
        ResultCache, "put", lambda self, name, value: answers.append((name, value)) or put(self, name, value)
    )
    answers_file.write_text("of the killed one")
    assert run_benchmarks(tiny_run, both, file) == whole == json.loads(file.read_text(encoding="utf-8"))
    assert len(answers) == done + 1 and answers[-1][0] not in before, "the second of the two"
    assert {*tmp_path.iterdir()} == {file, answers_file} and answers_file.read_text() != "of the killed one"


def test_answers_of_another_result_are_not_replaced(tiny_run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "open_engine", None)
    (tmp_path / "out.cmrc2017.jsonl").write_text("mine")
    with pytest.raises(NotWritable, match=r"out\.cmrc2017\.jsonl exists; choose another path with json"):
        run_benchmarks(tiny_run, asked(data, "cmrc2017"), tmp_path / "out.json")


def test_no_examples_are_fewer_than_the_default(data):
    config = SimpleNamespace(num_fewshot=3, fewshot_config=SimpleNamespace(split="examples"), test_split="test")
    dataset = {"skipped": [], "examples": [], "test": []}
    task = SimpleNamespace(config=config, dataset=dataset, OUTPUT_TYPE="multiple_choice", task_name="mine")
    benchmarks._apply_options([task], asked(data, "mine", num_fewshot=0))
    with pytest.raises(UserError, match="nix"):  # and not for the number
        ps.benchmark("nix", "mbpp", num_fewshot=0)
    with pytest.raises(ConfigError, match="num_fewshot 3 is not possible: mine has 0 examples"):
        benchmarks._apply_options([task], asked(data, "mine"))


def test_other_options_do_not_take_answers_of_before(tiny_run, data, tmp_path):
    one, other, run = asked(data, "ocnli"), asked(data, "ocnli", limit=2), open_model(tiny_run, "run")
    cache_beside(tmp_path / "out.json", run, one).put("a", 1)
    assert cache_beside(tmp_path / "out.json", run, one).get("a") == 1
    assert cache_beside(tmp_path / "out.json", run, other).get("a") is None


def test_the_table_has_a_line_for_each_metric():
    items = [{"doc_id": n, "doc": {}} for n in range(1200)]
    task, lm = (
        SimpleNamespace(dataset={"skipped": ["dev.json:3"]}),
        SimpleNamespace(truncated={("wplc", 3), ("other", 1)}),
    )
    values = {"alias": "wplc", "perplexity,none": math.inf, "acc,none": 0.5}
    figures = {"wplc": benchmarks._figures_of(lm, values, {"wplc": items}, ["wplc"], {"wplc": task})}
    assert figures == {"wplc": {"perplexity": None, "acc": 0.5, "n": 1200, "skipped": 1, "truncated": 1}}
    assert format_tasks(figures).splitlines() == [
        "| task | metric | value | items | skipped | truncated |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| wplc | perplexity | – | 1,200 | 1 | 1 |",
        "| wplc | acc | 0.5000 | 1,200 | 1 | 1 |",
    ]


@pytest.mark.usefixtures("graph_mode")
def test_a_run_keeps_benchmarks_for_its_report(tiny_run, data, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / BENCHMARKS).write_text('{"older": {"acc": 0.5, "n": 9, "step": 3}}', encoding="utf-8")
    results = benchmark_model(run, asked(data, "ocnli", limit=2), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == results
    figures = results["ocnli"]
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
    text = format_tasks(results)
    assert text.startswith("| task |") and f"| ocnli | acc | {figures['acc']:.4f} | 2 | 1 | 0 |" in text
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.usefixtures("graph_mode")
def test_an_export_has_the_benchmarks_of_its_run(tiny_run, tiny_export, data, tmp_path):
    before = {str(file): file.read_bytes() for file in Path(tiny_export).rglob("*") if file.is_file()}
    run = shutil.copytree(tiny_run, tmp_path / "run")
    results = benchmark_model(tiny_export, asked(data, "ocnli", limit=2), tmp_path / "out.json")
    assert results == benchmark_model(run, asked(data, "ocnli", limit=2))
    assert {str(file): file.read_bytes() for file in Path(tiny_export).rglob("*") if file.is_file()} == before
