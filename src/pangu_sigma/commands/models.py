"""How weights become a Σ, grow, shrink and leave: inherit, extend, extract, export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pangu_sigma import api
from pangu_sigma.commands.options import (
    add_command,
    call,
    call_and_show,
    flag,
    show,
    with_config,
    with_json,
    with_model,
    with_output,
)

_NEW_RUN = "folder of the run to make (default runs/NAME); it must not exist"


def add_commands(commands: Any) -> None:
    """Declare these commands."""
    command = add_command(
        commands,
        "inherit",
        api.inherit,
        "start a sparse run from a dense model",
        "runs/alpha_tiny sigma_tiny -o runs/inherited",
        "pangu-alpha_2.6B mine.yaml --dry-run",
        run=_inherit,
    )
    with_model(command, "a dense run, or the files of a released PanGu-α")
    with_config(command)
    with_output(command, _NEW_RUN)
    flag(command, "--dry-run", "print where every tensor would come from, and stop")
    _with_dense(command, "MODEL")
    command.add_argument("--noise", type=float, help="multiply the experts' values by 1 + NOISE · N(0, 1)")
    command.add_argument("--reinit-ratio", type=float, help="share of each expert's inner units that is drawn anew")
    flag(command, "--moments", "carry Adam's state of a dense run over")
    with_json(command)
    _add_extend(commands)
    _add_extract(commands)
    _add_export(commands)


def _inherit(options: argparse.Namespace) -> int:
    return call_and_show(api.planned_inheritance if options.dry_run else api.inherit, options)


def _with_dense(command: argparse.ArgumentParser, named: str) -> None:
    """Give a command what the files of a dense model may not say."""
    activations, where = ["fast_gelu", "tanh", "erf"], f"of {named}, where its files do not say it"
    command.add_argument("--heads", type=int, help=f"attention heads {where}")
    command.add_argument("--activation", choices=activations, help=f"GELU {where}")


def _add_extend(commands: Any) -> None:
    command = add_command(
        commands,
        "extend",
        api.extend,
        "more domains, slots, pieces or experts for a trained run; what it had stays as it was, bit for bit",
        "runs/sigma_tiny more.yaml -o runs/more --from-domain zh",
        "runs/sigma_tiny more.yaml -o runs/more --from-dense runs/alpha_tiny",
    )
    with_model(command, "the trained run")
    with_config(command)
    with_output(command, _NEW_RUN)
    command.add_argument("--from-domain", metavar="DOMAIN", help="new domains begin as this domain of the run")
    command.add_argument("--from-dense", type=Path, metavar="MODEL", help="new domains begin as this dense model")
    flag(command, "--from-scratch", "new domains are drawn")
    _with_dense(command, "--from-dense")
    flag(command, "--skip-graph-check", _SKIP_GRAPH_CHECK)
    with_json(command)


_SKIP_GRAPH_CHECK = "compare logits on the path that adds in one order only, which compiles no graph"


def _add_extract(commands: Any) -> None:
    command = add_command(
        commands,
        "extract",
        api.extract,
        "cut domains out of a trained run, bit for bit",
        "runs/sigma_tiny --keep zh -o runs/zh",
        "runs/sigma_tiny --drop code -o exported/without_code --format mindir",
    )
    with_model(command, "the trained run")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--keep", action="append", metavar="DOMAIN", help="a domain to keep; may be repeated")
    which.add_argument("--drop", action="append", metavar="DOMAIN", help="a domain to leave away; may be repeated")
    with_output(command, "folder of the run or export to make; it must not exist", required=True)
    command.add_argument("--format", choices=["run", "mindir"], help="a run with its text, or an exported model")
    command.add_argument("--data", type=Path, help="prepared text of the run, if it is no longer at its data.path")
    flag(command, "--skip-graph-check", _SKIP_GRAPH_CHECK)
    with_json(command)


def _add_export(commands: Any) -> None:
    command = add_command(
        commands,
        "export",
        api.Model.export,
        "a model in another form: a folder that stands alone, its weights as one file, a Hugging Face style folder, a run",
        "runs/sigma_tiny -o exports/sigma_tiny --weights int8",
        "runs/sigma_tiny -o exports/sigma_tiny_hf --format hf",
        "exports/sigma_tiny_hf -o runs/again --format run",
        run=_export,
    )
    with_model(command, "run folder, or a folder that --format hf wrote")
    with_output(command, "folder or file to make", required=True)
    command.add_argument("--format", choices=["mindir", "safetensors", "hf", "run"], help="run: of a folder of hf")
    command.add_argument("--weights", choices=["float32", "float16", "int8"], help="how mindir keeps matrices")


def _export(options: argparse.Namespace) -> int:
    show(call(api.Model(options.model).export, options), None)
    return 0
