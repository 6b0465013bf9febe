"""Commands around training: inspect, plan, doctor, completion."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pangu_sigma import api, programs
from pangu_sigma.chips import CHIP_NAMES
from pangu_sigma.commands.options import (
    CONFIG_HELP,
    add_command,
    call_and_show,
    flag,
    load_or_print_config,
    with_chip,
    with_config,
    with_json,
    with_model,
    with_overrides,
)
from pangu_sigma.config import ConfigError


def add_commands(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Declare the commands inspect, plan, doctor and completion. parser: the program's parser, which completion reads."""
    _add_inspect(commands)
    _add_plan(commands)

    command = add_command(
        commands,
        "doctor",
        programs.doctor,
        "check that this machine is ready",
        "",
        "--device ascend --chip 910b",
        "/shared/runs/sigma_1t --device ascend",
    )
    with_model(command, "run folder that must be on storage shared by all nodes; with --device ascend", nargs="?")
    demand = "ascend: require NPUs, and everything that a host of a cluster needs"
    command.add_argument("--device", choices=["cpu", "ascend"], help=demand)
    command.add_argument("--chip", choices=CHIP_NAMES, help="required type of the NPUs; with --device ascend")
    with_json(command)

    command = add_command(
        commands,
        "completion",
        _completion,
        "print a shell script that completes these commands",
        "bash > ~/.local/share/bash-completion/completions/pangu-sigma",
        "zsh > ~/.zfunc/_pangu-sigma",
        run=partial(_completion, parser),
    )
    command.add_argument("shell", choices=["bash", "zsh"], help="shell that will run the script")


def _add_inspect(commands: Any) -> None:
    command = add_command(
        commands,
        "inspect",
        api.inspect,
        "show the size of a configuration, or the contents of weight files",
        "sigma_1t --keep zh",
        "sigma_tiny --set model.experts_per_domain=16",
        "runs/sigma_tiny --verify",
        run=_inspect,
    )
    what = f"{CONFIG_HELP}; or a run, checkpoint, export, or folder or file of weights"
    command.add_argument("what", type=Path, metavar="CONFIG|MODEL", help=what)
    with_overrides(command)
    which = command.add_mutually_exclusive_group()
    for name in ("--keep", "--drop"):
        which.add_argument(name, action="append", metavar="DOMAIN", help="also the size that `extract` would leave")
    flag(command, "--verify", "compare every file with its hash, which reads all of it")
    with_json(command)


def _inspect(options: argparse.Namespace) -> int:
    if not api.is_model(options.what):
        options.config = options.what
        if load_or_print_config(options):
            return 0
        options.what = options.config
    elif options.overrides or options.print_config:
        raise ConfigError(f"--set and --print-config are for configurations; {options.what} is not one, leave them out")
    del options.print_config  # only a configuration can be printed
    return call_and_show(api.inspect, options)


def _add_plan(commands: Any) -> None:
    command = add_command(
        commands,
        "plan",
        api.plan,
        "plan memory, traffic and time on a number of NPUs",
        "sigma_1t --devices 512",
        "sigma_1t --devices 512 --compile",
        "sigma_1t --chip 910b --scan",
    )
    with_config(command)
    command.add_argument("--devices", type=int, metavar="N", help="number of NPUs")
    flag(command, "--scan", "find the fastest layouts on 8 to 4,096 NPUs")
    flag(command, "--compile", "also compile the step for Ascend, and compare; takes minutes")
    with_chip(command)
    with_json(command)


def _completion(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    import shtab

    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every option and argument of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
