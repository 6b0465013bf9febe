"""Tasks of lm-evaluation-harness that fetch their text: CMMLU and C-Eval, from a copy of the dataset in the working folder.

The columns and splits are those of the dataset cards, https://huggingface.co/datasets/haonan-li/cmmlu and
https://huggingface.co/datasets/ceval/ceval-exam; the questions are ours.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks import BenchmarkRequest, run_benchmarks
from pangu_sigma.evaluate.harness import HarnessModel

ROWS = [("今天去哪里", "公园", "学校", "家", "天气", "B"), ("什么不错", "天气", "朋友", "花", "我们", "D")]
CMMLU = ("haonan-li/cmmlu", ("Question", "A", "B", "C", "D", "Answer"), ("test", "dev"))
CEVAL = ("ceval/ceval-exam", ("question", "A", "B", "C", "D", "answer"), ("test", "val", "dev"))


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    """The harness's tasks of these two datasets; it takes many seconds to list all."""
    folder = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_path=[str(folder / "cmmlu"), str(folder / "ceval")], include_defaults=False)


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch, manager) -> Path:
    """Copies of datasets are found in the working folder; what is made of them is kept beside them."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: manager)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def copy_of(folder: Path, dataset: tuple[str, tuple[str, ...], tuple[str, ...]], subject: str) -> None:
    """A dataset of the Hub with one subject, which has `ROWS` in every split."""
    name, columns, splits = dataset
    for split in splits:
        file = folder / name / split / f"{subject}.csv"
        file.parent.mkdir(parents=True)
        with file.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened).writerows([columns, *ROWS])
    files = [{"split": split, "path": f"{split}/{subject}.csv"} for split in splits]
    card = f"---\n{yaml.safe_dump({'configs': [{'config_name': subject, 'data_files': files}]})}---\n"
    (folder / name / "README.md").write_text(card, encoding="utf-8")


def asked(*tasks: str, **options: Any) -> BenchmarkRequest:
    return BenchmarkRequest(tasks, None, "zh", **options)


def right_answers(model: HarnessModel, description: str) -> int:
    """Number of `ROWS` whose answer is the most likely letter after the published prompt."""
    right = 0
    for question, a, b, c, d, answer in ROWS:
        prompt = f"{description}\n\n{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\n答案："
        asked_for = [Instance("loglikelihood", {}, (prompt, f" {letter}"), 0) for letter in "ABCD"]
        scores = [score for score, _ in model.loglikelihood(asked_for, True)]
        right += "ABCD"[max(range(4), key=lambda n: scores[n])] == answer
    return right


@pytest.mark.parametrize(
    ("dataset", "subject", "task", "description"),
    [
        (CMMLU, "agronomy", "cmmlu_agronomy", "以下是关于农学的单项选择题，请直接给出正确答案的选项。"),
        (CEVAL, "law", "ceval-valid_law", "以下是中国关于法学的单项选择题，请选出其中的正确答案。"),
    ],
    ids=["cmmlu", "ceval"],
)
def test_the_letter_that_is_most_likely_after_the_published_prompt_counts(
    tiny_run, working_folder, dataset, subject, task, description
):
    copy_of(working_folder, dataset, subject)
    model = HarnessModel(str(tiny_run), "zh")
    accuracy = right_answers(model, description) / len(ROWS)
    found = run_benchmarks(tiny_run, asked(task))[task]
    assert found == {"acc": accuracy, "acc_norm": accuracy, "n": len(ROWS), "skipped": 0, "truncated": len(ROWS)}


def test_where_the_text_cannot_be_fetched_the_error_says_where_a_copy_is_looked_for(tiny_run, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cmmlu_agronomy: .*haonan-li/cmmlu.*a copy in a folder of its full name"):
        run_benchmarks(tiny_run, asked("cmmlu_agronomy"))
