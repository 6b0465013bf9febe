"""Commands that measure a trained model: evaluate, benchmark, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pangu_sigma import api
from pangu_sigma.commands.options import add_command, call, flag, show, with_json, with_model, with_set

_AGAINST: dict[str, Any] = {"type": Path, "nargs": "+", "metavar": "MODEL"}


def add_commands(commands: Any) -> None:
    """Declare the commands evaluate, benchmark and report."""
    command = add_command(
        commands,
        "evaluate",
        api.evaluate,
        "measure the held-out loss of each domain, or compare models on the same tokens",
        "runs/sigma_tiny --all-samples",
        "runs/sigma_1 runs/sigma_2 --against runs/dense_1 runs/dense_2 --all-samples",
        "runs/sigma_tiny --input mine.jsonl --domain en",
        run=_evaluate,
    )
    with_model(
        command, "run folder, exported model or Hugging Face style folder; several runs with --against", nargs="+"
    )
    command.add_argument("--against", help="as many other runs, to compare in pairs", **_AGAINST)
    flag(command, "--all-samples", "read all held-out samples, not only those that training evaluates")
    other = "text to measure in place of the held-out one, a file or a folder; may be repeated"
    command.add_argument("--input", type=Path, action="append", metavar="PATH", help=other)
    command.add_argument("--domain", help="domain of all records of --input (default: they say it)")
    with_set(command, "how records of --input are read, such as data.layout=wudao or data.reader=FILE.py:FUNCTION")
    with_json(command)
    _add_benchmark(commands)

    examples = "runs/sigma_tiny", "runs/sigma_tiny --against runs/short", "data/prepared"
    command = add_command(commands, "report", api.report, "summarise a run or prepared data, and draw plots", *examples)
    with_model(command, "run folder, or folder of prepared data")
    command.add_argument("--against", help="compare the losses with those of other runs", **_AGAINST)
    with_json(command)


def _evaluate(options: argparse.Namespace) -> int:
    """Run the command. A loss that is not finite is an error of the model, which the user can replace."""
    result = call(api.evaluate, options)
    show(result, options.json)
    return 0 if result.ok else 2


def _add_benchmark(commands: Any) -> None:
    command = add_command(
        commands,
        "benchmark",
        api.benchmark,
        "run benchmarks; with --json the same command resumes after a kill",
        "runs/sigma_tiny ocnli cmrc2018 --files benchmarks --json results.json",
        run=_benchmark,
    )
    with_model(command)
    usual = "zh; for programs the first code domain, for translations the first bilingual one"
    option = command.add_argument
    option("names", nargs="+", metavar="NAME", help="benchmark of evaluate/README.md, or any of lm-evaluation-harness")
    option("--files", type=Path, metavar="FOLDER", help="published files of the benchmarks, in FOLDER/NAME/")
    option("--domain", help=f"domain that answers; default {usual}")
    option("--limit", type=_at_least_one, metavar="N", help="run only the first N items of each benchmark")
    option("--num-fewshot", type=_at_least_one, metavar="K", help="examples before each item; default the benchmark's")
    option("--samples-per-problem", type=_at_least_one, metavar="N", help="programs per problem of humaneval, mbpp")
    option("--temperature", type=float, metavar="T", help="sampling temperature of programs and translations")
    flag(command, "--allow-code-execution", "run the model's programs even where they cannot be isolated")
    with_json(command)


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not allowed: 1 or more")
    return value


def _benchmark(options: argparse.Namespace) -> int:
    """Run the command. Unlike in other commands, the function of `api` writes the file of --json."""
    to_output = "-" if options.json == "-" else None
    options.json = None if to_output else options.json
    show(call(api.benchmark, options), to_output)
    return 0
