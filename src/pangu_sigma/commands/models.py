"""Commands that convert models and their weights: inherit, extend, extract, export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pangu_sigma import api
from pangu_sigma.commands.options import (
    add_command,
    call,
    flag,
    show,
    with_config,
    with_json,
    with_model,
    with_output,
)

_NEW_RUN = "new run folder (default runs/NAME); it must not exist"
_SKIP_GRAPH_CHECK = "compare logits without compiling graphs"


def add_commands(commands: Any) -> None:
    """Declare the commands inherit, extend, extract and export."""
    command = add_command(
        commands,
        "inherit",
        api.inherit,
        "start a sparse run from a dense model",
        "runs/alpha_tiny sigma_tiny -o runs/inherited",
        "pangu-alpha_2.6B mine.yaml --dry-run",
    )
    with_model(command, "a dense run, or the files of a released PanGu-α")
    with_config(command)
    with_output(command, _NEW_RUN)
    flag(command, "--dry-run", "print the origin of every tensor, and stop")
    _with_dense(command, "MODEL")
    flag(command, "--moments", "also copy the Adam moments of a dense run")
    flag(command, "--drop-rows", "leave out rows of a run that the prepared text has none for")
    with_json(command)
    _add_extend(commands)
    _add_extract(commands)
    _add_export(commands)


def _with_dense(command: argparse.ArgumentParser, named: str) -> None:
    """Add the options --heads and --activation, which the files of a dense model may lack."""
    activations, where = ["fast_gelu", "tanh", "erf"], f"of {named}, if missing from its files"
    command.add_argument("--heads", type=int, help=f"attention heads {where}")
    command.add_argument("--activation", choices=activations, help=f"GELU variant {where}")


def _add_extend(commands: Any) -> None:
    command = add_command(
        commands,
        "extend",
        api.extend,
        "add domains, slots or pieces to a trained run; old domains answer as before, bit for bit",
        "runs/sigma_tiny more.yaml -o runs/more --from-domain zh",
        "runs/sigma_paper_tiny more.yaml -o runs/more --from-dense runs/alpha_tiny",
    )
    with_model(command, "the trained run")
    with_config(command)
    with_output(command, _NEW_RUN)
    command.add_argument("--from-domain", metavar="DOMAIN", help="copy new domains from this domain of the run")
    command.add_argument("--from-dense", type=Path, metavar="MODEL", help="make new domains from this dense model")
    flag(command, "--from-scratch", "initialise new domains at random")
    _with_dense(command, "--from-dense")
    flag(command, "--skip-graph-check", _SKIP_GRAPH_CHECK)
    with_json(command)


def _add_extract(commands: Any) -> None:
    command = add_command(
        commands,
        "extract",
        api.extract,
        "extract domains from a trained run, bit for bit",
        "runs/sigma_tiny --keep zh -o runs/zh",
        "runs/sigma_tiny --drop code -o exported/without_code --format mindir",
    )
    with_model(command, "the trained run")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--keep", action="append", metavar="DOMAIN", help="domain to keep; may be repeated")
    which.add_argument("--drop", action="append", metavar="DOMAIN", help="domain to remove; may be repeated")
    with_output(command, "new folder of the run or export; it must not exist", required=True)
    command.add_argument("--format", choices=["run", "mindir"], help="run: a run with its text; mindir: an export")
    command.add_argument("--data", type=Path, help="the run's prepared text, if it has moved from data.path")
    flag(command, "--skip-graph-check", _SKIP_GRAPH_CHECK)
    with_json(command)


def _add_export(commands: Any) -> None:
    command = add_command(
        commands,
        "export",
        api.Model.export,
        "convert a model to a self-contained folder, a Hugging Face style folder, or a run",
        "runs/sigma_tiny -o exports/sigma_tiny --weights int8",
        "runs/sigma_tiny -o exports/sigma_tiny_hf --format hf",
        "exports/sigma_tiny_hf -o runs/again --format run",
        run=_export,
    )
    with_model(command, "run folder, or a folder written by --format hf")
    with_output(command, "new folder; it must not exist", required=True)
    command.add_argument("--format", choices=["mindir", "hf", "run"], help="run: of a folder from hf")
    command.add_argument("--weights", choices=["float32", "float16", "int8"], help="matrices in mindir")


def _export(options: argparse.Namespace) -> int:
    show(call(api.Model(options.model).export, options), None)
    return 0
