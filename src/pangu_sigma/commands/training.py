"""Commands that prepare text and train: prepare-data, train, launch, finetune."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pangu_sigma import api, programs
from pangu_sigma.commands.options import (
    CONFIG_HELP,
    add_command,
    call_and_show,
    flag,
    with_chip,
    with_config,
    with_json,
    with_model,
    with_output,
    with_set,
)
from pangu_sigma.shipped import shipped_configs


def add_commands(commands: Any) -> None:
    """Declare the commands prepare-data, train, launch and finetune."""
    command = add_command(
        commands,
        "prepare-data",
        api.prepare_data,
        "convert text to token files, tokenizer and statistics, in the folder data.path",
        "sigma_tiny",
        "sigma_tiny --input mine.jsonl --set data.path=data/mine",
        "five.yaml --input law.jsonl --extend data/prepared --set data.path=data/five",
    )
    with_config(command)
    command.add_argument(
        "--input", type=Path, action="append", metavar="PATH", help="your own text, a file or a folder; may be repeated"
    )
    kept = "prepared data whose domains are kept as they are; only text of the others is read"
    command.add_argument("--extend", type=Path, metavar="FOLDER", help=kept)
    flag(command, "--check", "print the table and all problems of the text, and write nothing")
    command.add_argument("--workers", type=int, metavar="N", help="number of processes (default: one a core)")
    command.add_argument(
        "--ray", metavar="ADDRESS", help="let a Ray cluster do the work; auto: the one this machine is in"
    )

    command = add_command(
        commands,
        "train",
        api.train,
        "train, or resume, in a run folder",
        "sigma_tiny",
        "sigma_tiny -o runs/short --set train.steps=100 --set routing.table=balanced",
        "runs/short --set train.steps=200",
        run=_train,
    )
    _with_run(command)
    flag(command, "--profile", "write a timeline of five steps to profile/trace.json")
    _add_launch(commands)
    _add_finetune(commands)


def _with_run(command: argparse.ArgumentParser) -> None:
    """Add the argument CONFIG or RUN and the options that train and launch share."""
    with_config(command, f"{CONFIG_HELP}; or a run folder to resume")
    with_output(command, "run folder of a configuration (default runs/NAME)")
    command.add_argument("--device", choices=["cpu", "ascend"], help="ascend: one NPU per process")
    flag(command, "--start-over", "move the contents of the run aside, and begin at step 0")
    flag(command, "--allow-data-change", "resume although the text differs from the checkpoint's")
    _with_lock(command)


def _with_lock(command: argparse.ArgumentParser) -> None:
    help = "write without a lock, where the file system has none"
    command.add_argument("--no-lock", dest="lock", action="store_false", help=help)


def _train(options: argparse.Namespace) -> int:
    options.config, options.output = api.resolve_run(options.config, options.output, options.overrides)
    return call_and_show(api.train, options)


def _add_launch(commands: Any) -> None:
    command = add_command(
        commands,
        "launch",
        programs.launch_training,
        "train on many processes, NPUs or nodes, and watch them",
        "sigma_tiny --processes 2 --set parallel.data=2",
        "sigma_1t --device ascend --nodes 64 --node-rank 0 --master-address 10.0.0.1 --max-restarts 3",
        "sigma_1t --device ascend --chip 910b --nodes 64 --dry-run",
        run=_launch,
    )
    _with_run(command)
    with_chip(command)
    option = command.add_argument
    option("--processes", type=int, metavar="N", help="expected number of processes; another one is refused")
    option("--nodes", type=int, metavar="N", help="number of nodes")
    option("--node-rank", type=int, metavar="R", help="number of this node, 0 … N - 1; node 0 has the master address")
    option("--master-address", metavar="HOST", help="address of node 0 that all nodes can reach")
    option("--master-port", type=int, metavar="PORT", help="port of node 0; with several nodes also the next one")
    option("--max-restarts", type=int, metavar="N", help="number of restarts from the last checkpoint after failures")
    option("--grace", type=float, metavar="S", help="seconds for saving when asked to stop")
    option("--wait", type=float, metavar="S", help="seconds to wait for the other nodes")
    option("--hang-timeout", type=float, metavar="S", help="seconds without progress that count as a hang; 0: never")
    flag(command, "--dry-run", "print what each node would start, and start nothing")


def _launch(options: argparse.Namespace) -> int:
    options.source = options.config
    if options.device == "ascend" and options.chip is None:
        options.overrides = programs.with_known_chip(options.source, options.overrides)
    options.config, options.output = api.resolve_run(options.source, options.output, options.overrides)
    return call_and_show(programs.launch_training, options)


def _add_finetune(commands: Any) -> None:
    command = add_command(
        commands,
        "finetune",
        api.finetune,
        "fine-tune a trained run on a task; the same command resumes a stopped run",
        "runs/sigma_tiny --task qa --train-file train.jsonl --dev-file dev.jsonl -o runs/qa",
        "runs/sigma_tiny --task code --train-file train.jsonl -o runs/code --learn experts --set finetune.epochs=1",
    )
    with_model(command, "the trained run")
    tasks, lines = ", ".join(shipped_configs("finetune")), "JSON lines with a prompt and response, or with messages"
    option = command.add_argument
    option("--task", type=Path, required=True, help=f"{tasks}, or a YAML file")
    option("--train-file", type=Path, required=True, metavar="JSONL", help=lines)
    option("--dev-file", type=Path, metavar="JSONL", help="development set; the best state on it is kept")
    with_output(command, "folder of the tuned run", required=True)
    option("--learn", choices=["all", "experts", "experts+slot"], help="parameters to train (default: the task's)")
    option("--domain", help="domain of lines that name none (default: the task's)")
    with_set(command, "override a key, such as finetune.epochs=1; may be repeated")
    _with_lock(command)
    with_json(command)
