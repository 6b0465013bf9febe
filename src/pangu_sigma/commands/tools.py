"""Around training: inspect, plan, bench, doctor, completion."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pangu_sigma.commands.options import (
    CONFIG_HELP,
    add_command,
    resolved_config,
    show,
    with_chip,
    with_json,
    with_overrides,
)
from pangu_sigma.config import ConfigError

BENCHES = ("ops", "adam", "ecss", "moe", "train", "tokenizer", "scale", "checkpoint", "decode", "serve", "evaluate")
"""Modules of `pangu_sigma.bench`, each with run(peers) -> rows."""
WEIGHTS_ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin")
"""Ends of the names of files that hold weights, and no configuration."""


def add_commands(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Declare these commands. parser: that of all commands, which completion reads."""
    command = with_json(
        add_command(
            commands,
            "inspect",
            _inspect,
            "what a configuration weighs, and what files of weights hold",
            "sigma_1t --domain zh",
            "sigma_tiny --set model.experts_per_domain=16",
            "runs/sigma_tiny --verify",
        )
    )
    command.add_argument(
        "config",
        type=Path,
        metavar="WHAT",
        help=f"{CONFIG_HELP}; or a run, checkpoint, export, or folder or file of weights",
    )
    command.add_argument(
        "--domain", action="append", default=[], help="the size that `extract` would leave; may be repeated"
    )
    command.add_argument(
        "--verify", action="store_true", help="compare every file with its hash, which reads all of it"
    )
    with_overrides(command)

    command = with_json(
        add_command(
            commands,
            "plan",
            _plan,
            "memory, traffic and time on a number of NPUs",
            "--config sigma_1t --devices 512",
            "--config sigma_1t --devices 512 --compile",
        )
    )
    command.add_argument("--config", type=Path, required=True, help=CONFIG_HELP)
    command.add_argument("--devices", type=int, required=True, metavar="N", help="NPUs, 8 a host")
    command.add_argument("--compile", action="store_true", help="let MindSpore compile the step for Ascend; minutes")
    with_chip(with_overrides(command))

    command = with_json(
        add_command(commands, "bench", _bench, "our speed against peers, in one run", "adam --peers", "scale")
    )
    command.add_argument("bench", choices=BENCHES)
    command.add_argument("--peers", action="store_true", help="with the peers of the [bench] extra")

    command = with_json(add_command(commands, "doctor", _doctor, "is this machine ready?", "", "--ascend", "--json -"))
    command.add_argument("--ascend", action="store_true", help="fail without NPUs, or without CANN to run them")

    command = add_command(
        commands,
        "completion",
        partial(_completion, parser),
        "print what lets a shell complete these commands",
        "bash > ~/.local/share/bash-completion/completions/pangu-sigma",
        "zsh > ~/.zfunc/_pangu-sigma",
    )
    command.add_argument("shell", choices=["bash", "zsh"])


def _inspect(options: argparse.Namespace) -> int:
    if options.config.is_dir() or options.config.suffix in WEIGHTS_ENDINGS:
        return _inspect_files(options)
    if options.verify:
        raise ConfigError(f"--verify is for files of weights; {options.config} is a configuration, leave it out")
    config = resolved_config(options)
    if config is not None:
        from pangu_sigma.planning.inspect import extraction, format_extraction, format_inspection, inspect

        inspection, text = inspect(config), ""
        if options.domain:
            inspection["extract"] = extraction(config, options.domain)
            text = f"\n{format_extraction(inspection['extract'])}"
        show(inspection, format_inspection(inspection) + text, options.json)
    return 0


def _inspect_files(options: argparse.Namespace) -> int:
    if options.set or options.print_config:
        raise ConfigError(
            f"--set and --print-config are for configurations; {options.config} is not one, leave them out"
        )
    from pangu_sigma.planning.inspect import extraction, format_extraction
    from pangu_sigma.planning.inspect_files import format_file_inspection, inspect_files

    found = inspect_files(options.config, options.verify)
    tree, text = found.as_dict(), format_file_inspection(found)
    if options.domain:
        if found.config is None:
            raise ConfigError(f"--domain: {options.config} is a dense model without domains; leave it out")
        tree["extract"] = extraction(found.config, options.domain)
        text += f"\n{format_extraction(tree['extract'])}"
    show(tree, text, options.json)
    return 0


def _plan(options: argparse.Namespace) -> int:
    config = resolved_config(options)
    if config is not None:
        from pangu_sigma.planning.differences import compile_plan
        from pangu_sigma.planning.plan import make_plan
        from pangu_sigma.planning.text import format_plan

        plan = (compile_plan if options.compile else make_plan)(config, options.devices)
        show(plan.as_dict(), format_plan(plan), options.json)
        return 1 if not plan.fits or (plan.compiled and plan.compiled.differences) else 0
    return 0


def _bench(options: argparse.Namespace) -> int:
    from pangu_sigma.bench.harness import format_rows

    rows = importlib.import_module(f"pangu_sigma.bench.{options.bench}").run(options.peers)
    show([row.as_dict() for row in rows], format_rows(rows), options.json)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from pangu_sigma.commands.doctor import format_checks, run_checks

    checks = run_checks(options.ascend)
    show([vars(check) for check in checks], format_checks(checks), options.json)
    return 0 if all(check.ok for check in checks) else 1


def _completion(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    import shtab

    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
