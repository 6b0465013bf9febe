"""A trained run becomes one for a task: finetune."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pangu_sigma import api
from pangu_sigma.commands.options import add_command, show, with_json
from pangu_sigma.shipped import shipped_configs


def add_commands(commands: Any) -> None:
    """Declare this command."""
    command = with_json(
        add_command(
            commands,
            "finetune",
            _finetune,
            "tune a trained run to a task; the same command goes on with a run that was stopped",
            "runs/sigma_tiny --task qa --data train.jsonl --eval dev.jsonl --run runs/qa",
            "runs/sigma_tiny --task code --data train.jsonl --run runs/code --learn experts --set finetune.epochs=1",
        )
    )
    command.add_argument("parent", type=Path, metavar="RUN", help="the trained run")
    tasks = ", ".join(shipped_configs("finetune"))
    command.add_argument("--task", type=Path, required=True, help=f"{tasks}, or a YAML file")
    command.add_argument(
        "--data", type=Path, required=True, metavar="JSONL", help="a prompt and response, or messages, a line"
    )
    command.add_argument("--eval", type=Path, metavar="JSONL", help="a dev set: the best state on it is kept")
    command.add_argument("--run", type=Path, required=True, help="folder of the tuned run")
    command.add_argument(
        "--learn", choices=["all", "experts", "experts+slot"], help="what learns (default: the task's)"
    )
    command.add_argument("--domain", help="domain of lines that name none (default: the task's)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override any key, such as finetune.epochs=1"
    )
    command.add_argument("--no-lock", action="store_true", help="write also where the file system has no locks")


def _finetune(options: argparse.Namespace) -> int:
    result = api.run_finetuning(
        options.parent,
        options.task,
        options.data,
        options.run,
        options.eval,
        options.learn,
        options.domain,
        options.set,
        not options.no_lock,
    )
    if result is not None:
        from pangu_sigma.finetune.tuning import format_result

        show(result, format_result(result), options.json)
    return 0
