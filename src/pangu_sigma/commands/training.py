"""From text to a trained run, and what it learned: prepare-data, train, evaluate, report."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from pangu_sigma import api
from pangu_sigma.commands.options import (
    CONFIG_HELP,
    add_command,
    checked_or_printed,
    resolved_config,
    show,
    with_config,
    with_json,
    with_overrides,
)
from pangu_sigma.config import Config, ConfigError

logger = logging.getLogger(__name__)


def add_commands(commands: Any) -> None:
    """Declare these commands."""
    command = with_config(
        add_command(
            commands,
            "prepare-data",
            _prepare_data,
            "text → token files, tokenizer, statistics, in the folder data.path",
            "sigma_tiny",
            "sigma_tiny --input mine.jsonl --set data.path=data/mine",
        )
    )
    command.add_argument("--input", type=Path, action="append", default=[], metavar="JSONL", help="your own text")

    command = with_run(
        add_command(
            commands,
            "train",
            _train,
            "train, or resume, in a run folder",
            "sigma_tiny",
            "sigma_tiny --run runs/short --set train.steps=100 --set routing.table=balanced",
            "--run runs/short --set train.steps=200",
        )
    )
    command.add_argument("--device", choices=["cpu", "ascend"], default="cpu")
    command.add_argument("--profile", action="store_true", help="write a timeline of five steps to profile/trace.json")

    command = with_json(
        add_command(
            commands,
            "evaluate",
            _evaluate,
            "held-out loss of each domain, or its difference between runs on the same tokens; benchmarks",
            "runs/sigma_tiny --all",
            "runs/sigma_tiny --tasks ocnli,cmrc2018 --data benchmarks --json results.json",
            "runs/sigma_1 runs/sigma_2 --against runs/dense_1 runs/dense_2 --all",
        )
    )
    command.add_argument(
        "run", type=Path, nargs="+", help="run folder or exported model; several runs with as many for --against"
    )
    command.add_argument("--all", action="store_true", help="read all held-out text, not what training evaluates on")
    command.add_argument(
        "--against", type=Path, nargs="+", metavar="RUN", help="evaluate these too, and print paired differences"
    )
    command.add_argument(
        "--tasks",
        metavar="NAMES",
        help="benchmarks, with commas between: those of evaluate/README.md, or any of lm-evaluation-harness; with --json what is "
        "done is kept beside its file, and the same command goes on after a kill",
    )
    command.add_argument(
        "--data", metavar="FOLDER", help="benchmarks' files are at FOLDER/TASK/ under their published names"
    )
    command.add_argument(
        "--domain",
        help="which experts answer in benchmarks; default zh, for programs the first code domain, for translations the first "
        "bilingual one, for dialogue the first one of plain text",
    )
    command.add_argument("--limit", type=_at_least_one, metavar="N", help="the first N items of each benchmark only")
    command.add_argument(
        "--num-fewshot",
        type=_at_least_one,
        metavar="K",
        help="K examples before each item; default what the benchmark says",
    )
    command.add_argument(
        "--samples", type=_at_least_one, default=1, metavar="N", help="programs for each problem of humaneval and mbpp"
    )
    command.add_argument(
        "--temperature", type=float, metavar="T", help="of answers in humaneval, mbpp, translations and dialogue"
    )
    command.add_argument(
        "--unsafe",
        action="store_true",
        help="run programs of a model where they cannot be isolated from this machine, too",
    )

    command = with_json(
        add_command(
            commands,
            "report",
            _report,
            "summary and pictures of a run",
            "runs/sigma_tiny",
            "runs/sigma_tiny --against runs/short",
        )
    )
    command.add_argument("run", type=Path, help="run folder")
    command.add_argument(
        "--against", type=Path, nargs="+", metavar="RUN", help="compare the losses with those of other runs"
    )


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not allowed: 1 or more")
    return value


def with_run(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Give a command that trains a run folder and a configuration, and what may be asked for besides."""
    command.add_argument(
        "config", type=Path, nargs="?", help=f"{CONFIG_HELP}; left out: what the run folder has, with --set"
    )
    with_overrides(command)
    command.add_argument("--run", type=Path, help="run folder (default runs/<name>)")
    command.add_argument("--start-over", action="store_true", help="set aside what the run has, and begin at step 0")
    command.add_argument("--other-data", action="store_true", help="go on with other text than that of the checkpoint")
    command.add_argument("--no-lock", action="store_true", help="write also where the file system has no locks")
    return command


def config_and_run(options: argparse.Namespace) -> tuple[Config | None, Path]:
    """The configuration, None when --print-config has printed it, and the run folder of a command made by `with_run`."""
    if options.config is not None:
        config = resolved_config(options)
        return config, options.run or Path("runs") / (config.name if config else "")
    if options.run is None:
        raise ConfigError("name a configuration to start a run, or --run to go on with one")
    from pangu_sigma.checkpoint.run_folder import run_config

    return checked_or_printed(options, run_config(options.run, options.set)), options.run


def _prepare_data(options: argparse.Namespace) -> int:
    config = resolved_config(options)
    if config is not None:
        from pangu_sigma.data.overview import format_overview

        print(format_overview(api.prepare_data(config, options.input)))
    return 0


def _train(options: argparse.Namespace) -> int:
    config, run = config_and_run(options)
    if config is not None:
        from pangu_sigma.train.metrics import NothingLogged
        from pangu_sigma.train.summary import format_summary, summarise

        trainer = api.run_training(
            config,
            run,
            options.device,
            options.start_over,
            options.other_data,
            not options.no_lock,
            options.profile,
        )
        if trainer.finished and trainer.ranks.first:
            try:
                print(format_summary(summarise(run)))
            except NothingLogged as lost:  # the training is whole all the same
                logger.warning("no summary: %s", lost)
        trainer.ranks.leave()
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    if options.tasks is not None:
        return _evaluate_tasks(options)
    if options.against is None and len(options.run) > 1:
        raise ConfigError(f"{len(options.run)} runs without --against; evaluate them one at a time, or compare them")
    from pangu_sigma.evaluate.comparison import compare_runs, format_differences
    from pangu_sigma.evaluate.run import evaluate_run, format_losses

    if options.against is None:
        losses = evaluate_run(options.run[0], options.all)
        show(losses, format_losses(losses), options.json)
    else:
        comparison = compare_runs(options.run, options.against, options.all)
        show(comparison, format_differences(comparison), options.json)
    return 0


def _evaluate_tasks(options: argparse.Namespace) -> int:
    if options.against is not None or len(options.run) > 1:
        raise ConfigError("--tasks is for one run or export, without --against")
    from pangu_sigma.evaluate.benchmarks import BenchmarkRequest
    from pangu_sigma.evaluate.evaluation import evaluate_with_tasks, format_evaluation

    tasks = tuple(dict.fromkeys(name.strip() for name in options.tasks.split(",") if name.strip()))
    asked = BenchmarkRequest(
        tasks,
        options.data,
        options.domain,
        options.limit,
        options.num_fewshot,
        options.temperature,
        options.samples,
        options.unsafe,
    )
    file = None if options.json in (None, "-") else Path(options.json)
    found = evaluate_with_tasks(options.run[0], asked, options.all, file)
    if file is not None:
        print(format_evaluation(found))
    show(found, format_evaluation(found), options.json)
    return 0


def _report(options: argparse.Namespace) -> int:
    from pangu_sigma.train.report import write_report
    from pangu_sigma.train.summary import differences, format_comparison, format_summary, summarise

    summary = summarise(options.run)
    write_report(options.run, options.against or [])
    if options.against is None:
        show(summary, format_summary(summary), options.json)
    else:
        others = [summarise(run) | {"differences": differences(options.run, run)} for run in options.against]
        tables = [format_comparison(summary, other) for other in others]
        show([summary, *others], "\n\n".join(tables), options.json)
    return 0
