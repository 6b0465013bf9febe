"""MBPP (Austin et al., 2021): short programs from a sentence and three tests, judged by running the tests.

Input: mbpp.jsonl, as published at github.com/google-research/google-research/tree/master/mbpp: text, code, task_id,
test_setup_code, test_list, challenge_test_list. Problems 11 to 510 are asked; 2, 3 and 4 are the examples of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks.pass_at_k import CodeOptions, CodeProblem, pass_at_k, warn_missing
from pangu_sigma.evaluate.benchmarks.task_lines import TaskLine, read_rows, task_file
from pangu_sigma.evaluate.benchmarks.task_result import TaskResult
from pangu_sigma.generate.engine import Engine

_NAME = "mbpp.jsonl"
_PUBLISHED = "https://github.com/google-research/google-research/blob/master/mbpp/mbpp.jsonl"
PROGRAM_ENDS = ("[DONE]",)
"""Stop string that ends a generated program, as in the prompt of the MBPP paper."""

_ASKED = range(11, 511)
_EXAMPLES = (2, 3, 4)


def run(engine: Engine, domain: str, folder: Path, limit: int | None = None, **options: Any) -> TaskResult:
    """Run MBPP: pass@k of a domain, with the prompt of the paper. folder: folder of the file. limit: maximum number of problems.

    options: those of `CodeOptions`. If three examples do not fit, the last ones are left out and the problem counts as truncated.
    Raises DataError for a missing or incomplete file, ConfigError for invalid options, and where programs cannot be isolated.
    """
    chosen = CodeOptions(**options)
    path = task_file(folder, [_NAME], _PUBLISHED)
    fields = {"task_id": int, "text": str, "code": str, "test_setup_code": str, "test_list": list}
    rows, skipped = read_rows(path, fields, key="task_id", check=_fault)
    by_id = {row["task_id"]: row for row in rows}
    if missing := [number for number in _EXAMPLES if number not in by_id]:
        raise DataError(
            f"{path} has no problem of task_id {missing[0]}, an example of the prompt; get it from {_PUBLISHED}"
        )
    chosen_rows = [by_id[number] for number in _ASKED if number in by_id][:limit]
    if not chosen_rows:
        raise DataError(f"{path} has no problem of task_id {_ASKED[0]} to {_ASKED[-1]}; get it from {_PUBLISHED}")
    warn_missing(len(chosen_rows), len(_ASKED), "test split of MBPP")
    examples = [_question(by_id[number]) + f"{by_id[number]['code']}\n[DONE]\n\n" for number in _EXAMPLES]
    return pass_at_k(engine, domain, [_problem(row, examples) for row in chosen_rows], PROGRAM_ENDS, chosen, skipped)


def _fault(row: TaskLine) -> str:
    return "" if row["test_list"] else "test_list: one test or more expected, found none"


def _question(row: TaskLine) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:\n\n"
        f"{tests}\n[BEGIN]\n"
    )


def _problem(row: TaskLine, examples: Sequence[str]) -> CodeProblem:
    prompts = ["".join(examples[:number]) + _question(row) for number in range(len(examples), -1, -1)]
    return CodeProblem(row["task_id"], prompts, "", "\n".join(["", row["test_setup_code"], *row["test_list"]]))
