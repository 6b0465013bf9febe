"""What a model learned: evaluate, benchmark, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pangu_sigma import api
from pangu_sigma.commands.options import add_command, call, flag, show, with_json, with_model


def add_commands(commands: Any) -> None:
    """Declare these commands."""
    command = add_command(
        commands,
        "evaluate",
        api.evaluate,
        "held-out loss of each domain, or its difference between models on the same tokens",
        "runs/sigma_tiny --all-samples",
        "runs/sigma_1 runs/sigma_2 --against runs/dense_1 runs/dense_2 --all-samples",
    )
    with_model(command, "run folder, or exported model; several runs with as many for --against", nargs="+")
    _with_against(command, "evaluate these too, and print paired differences")
    flag(command, "--all-samples", "read all held-out text, not what training evaluates on")
    with_json(command)
    _add_benchmark(commands)

    examples = "runs/sigma_tiny", "runs/sigma_tiny --against runs/short"
    command = add_command(commands, "report", api.report, "summary and pictures of a run", *examples)
    with_model(command, "run folder")
    _with_against(command, "compare the losses with those of other runs")
    with_json(command)


def _with_against(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("--against", type=Path, nargs="+", metavar="MODEL", help=help)


def _add_benchmark(commands: Any) -> None:
    command = add_command(
        commands,
        "benchmark",
        api.benchmark,
        "scores of benchmarks; with --json what is done is kept beside its file, and the same command goes on after a kill",
        "runs/sigma_tiny ocnli cmrc2018 --files benchmarks --json results.json",
        run=_benchmark,
    )
    with_model(command)
    usual = "zh, for programs the first code domain, for translations the first bilingual one, for dialogue the first one of text"
    option = command.add_argument
    option("names", nargs="+", metavar="NAME", help="one of evaluate/README.md, or any of lm-evaluation-harness")
    option("--files", type=Path, metavar="FOLDER", help="files are at FOLDER/NAME/ under their published names")
    option("--domain", help=f"which experts answer; default {usual}")
    option("--limit", type=_at_least_one, metavar="N", help="the first N items of each benchmark only")
    option("--num-fewshot", type=_at_least_one, metavar="K", help="examples before each item; default the benchmark's")
    option("--samples-per-problem", type=_at_least_one, metavar="N", help="programs for humaneval and mbpp")
    option("--temperature", type=float, metavar="T", help="of programs, translations and dialogue")
    flag(command, "--allow-code-execution", "run programs also where they cannot be isolated from this machine")
    with_json(command)


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not allowed: 1 or more")
    return value


def _benchmark(options: argparse.Namespace) -> int:
    """As any command, but `benchmark` itself writes the file of --json, and the table is printed beside it."""
    to_output = "-" if options.json == "-" else None
    options.json = None if to_output else options.json
    show(call(api.benchmark, options), to_output)
    return 0
