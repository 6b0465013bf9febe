"""What commands share: how they are declared, called and shown.

An option has the name and the default of a parameter of the function of `api` that its command calls.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pangu_sigma import api
from pangu_sigma.chips import CHIP_NAMES
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config
from pangu_sigma.writable import check_file_writable

CONFIG_HELP = "YAML file, or the name of a shipped configuration, such as sigma_tiny"


def add_command(
    commands: Any,
    name: str,
    function: Callable[..., Any],
    help: str,
    *examples: str,
    run: Callable[[argparse.Namespace], int] | None = None,
) -> argparse.ArgumentParser:
    """Declare a command. function: what it calls, whose defaults its options have. run: does it instead of `call_and_show`, and
    returns the exit status. examples: arguments that its --help ends with."""
    lines = [f"  pangu-sigma {name} {example}".rstrip() for example in examples]
    command = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog="\n".join(["example:" if len(lines) == 1 else "examples:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run_command=run or partial(call_and_show, function), **defaults_of(function))
    return command


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a function's parameters by their names; tuples as lists, which argparse adds to."""
    found = {each.name: each.default for each in inspect.signature(function).parameters.values()}
    return {
        name: list(default) if isinstance(default, tuple) else default
        for name, default in found.items()
        if default is not inspect.Parameter.empty
    }


def flag(command: argparse.ArgumentParser, name: str, help: str) -> None:
    """Give a command an option without a value."""
    command.add_argument(name, action="store_true", help=help)


def with_model(
    command: argparse.ArgumentParser, help: str = "run folder, or exported model", nargs: str | None = None
) -> None:
    """Give a command MODEL."""
    command.add_argument("model", type=Path, nargs=nargs, metavar="MODEL", help=help)


def with_config(command: argparse.ArgumentParser, help: str = CONFIG_HELP) -> None:
    """Give a command CONFIG, --set and --print-config."""
    command.add_argument("config", type=Path, metavar="CONFIG", help=help)
    with_overrides(command)


def with_overrides(command: argparse.ArgumentParser) -> None:
    """Give a command that has a configuration --set and --print-config."""
    command.set_defaults(overrides=[])
    with_set(command, "override any key, such as train.steps=10")
    flag(command, "--print-config", "print the resolved configuration and stop")


def with_set(command: argparse.ArgumentParser, help: str, dest: str = "overrides") -> None:
    """Give a command --set."""
    command.add_argument("--set", dest=dest, action="append", metavar="KEY=VALUE", help=help)


def with_output(command: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    """Give a command --output."""
    command.add_argument("-o", "--output", type=Path, required=required, metavar="PATH", help=help)


class _SetChip(argparse.Action):
    """An option that is a --set, before all others; `_check_chip` refuses one of those that undoes it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        namespace.overrides = [f"parallel.chip={values}", *namespace.overrides]
        namespace.chip = values


def with_chip(command: argparse.ArgumentParser) -> None:
    """Give a command that has a configuration --chip."""
    help = "the NPUs' chip, as --set parallel.chip=…; it decides what train.compute_dtype: half is"
    command.add_argument("--chip", action=_SetChip, choices=CHIP_NAMES, help=help)


def _check_chip(options: argparse.Namespace) -> None:
    """Raise ConfigError if a --set has undone --chip: parallel.chip with another one, or parallel as a whole without any."""
    chip, configured = getattr(options, "chip", None), options.config.parallel.chip
    if chip not in (None, configured):
        raise ConfigError(
            f"--chip {chip}, and by --set parallel.chip is {configured}; leave one of them away, and where a --set "
            f"replaces parallel as a whole write chip: {chip} into it"
        )


def with_json(command: argparse.ArgumentParser) -> None:
    """Give a command --json."""
    command.add_argument("--json", metavar="FILE", help="write the result as JSON; - is standard output")


def with_weights(command: argparse.ArgumentParser) -> None:
    """Give a command that answers --weights."""
    help = "matrices in memory; as they are if not given: float32 of a run, what an export keeps"
    command.add_argument("--weights", choices=["float32", "float16", "int8"], help=help)


def check_json(options: argparse.Namespace) -> None:
    """Raise NotWritable if the file of --json cannot be written, before the work whose result it is to hold."""
    file = getattr(options, "json", None)
    if file is not None and file != "-":
        check_file_writable(Path(file), "--json")


def config_printed(options: argparse.Namespace) -> bool:
    """Put the configuration with its overrides in the place of its name. Returns True when --print-config has printed it."""
    if "print_config" not in options:
        return False
    if not isinstance(options.config, Config):
        options.config = api.load_config(options.config, options.overrides)
    _check_chip(options)
    if options.print_config:
        print(dump_config(options.config), end="")
    return options.print_config


def call(function: Callable[..., Any], options: argparse.Namespace) -> Any:
    """What a function returns for the options that have the names of its parameters."""
    given = vars(options)
    return function(**{name: given[name] for name in inspect.signature(function).parameters if name in given})


def call_and_show(function: Callable[..., Any], options: argparse.Namespace) -> int:
    """Call a function, show what it returns, and return the exit status; or print the configuration if that is asked for."""
    if config_printed(options):
        return 0
    found = call(function, options)
    if isinstance(found, int):
        return found
    if isinstance(found, api.Model):
        found = found.outcome
    if found is not None:
        show(found, getattr(options, "json", None))
    return 0 if getattr(found, "ok", True) else 1


def show(result: Any, file: str | None) -> None:
    """Print a result, or write it as JSON where --json says."""
    if file is None:
        print(result)
        return
    text = json.dumps(result, ensure_ascii=False, indent=2, default=asdict)
    if file == "-":
        print(text)
    else:
        Path(file).write_text(f"{text}\n", encoding="utf-8")
