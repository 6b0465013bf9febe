"""Declaration, call and output of commands, and the options that they share.

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

from pangu_sigma import api, programs
from pangu_sigma.chips import CHIP_NAMES
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config
from pangu_sigma.writable import check_file_writable

CONFIG_HELP = "YAML file, or the name of a shipped configuration, such as sigma_tiny"
"""Help text of the argument CONFIG."""


def add_command(
    commands: Any,
    name: str,
    function: Callable[..., Any],
    help: str,
    *examples: str,
    run: Callable[[argparse.Namespace], int] | None = None,
) -> argparse.ArgumentParser:
    """Declare a command. function: function of `api` that the command calls and whose defaults its options have. run: function
    to call in place of `call_and_show`, for the exit status. examples: arguments for the examples in the command's --help."""
    lines = [f"  pangu-sigma {name} {example}".rstrip() for example in examples]
    command = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog="\n".join(["example:" if len(lines) == 1 else "examples:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag(command, "--quiet", "print warnings, errors and the result only")
    command.set_defaults(run_command=run or partial(call_and_show, function), **defaults_of(function))
    return command


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a function's parameters by name; tuples become lists, to which argparse appends."""
    defaults = {each.name: each.default for each in inspect.signature(function).parameters.values()}
    return {
        name: list(default) if isinstance(default, tuple) else default
        for name, default in defaults.items()
        if default is not inspect.Parameter.empty
    }


def flag(command: argparse.ArgumentParser, name: str, help: str) -> None:
    """Add an option without a value to a command."""
    command.add_argument(name, action="store_true", help=help)


def with_model(
    command: argparse.ArgumentParser,
    help: str = "run, export, Hugging Face style folder, or files of PanGu-α",
    nargs: str | None = None,
) -> None:
    """Add the argument MODEL to a command."""
    command.add_argument("model", type=Path, nargs=nargs, metavar="MODEL", help=help)


def with_config(command: argparse.ArgumentParser, help: str = CONFIG_HELP) -> None:
    """Add the argument CONFIG, --set and --print-config to a command."""
    command.add_argument("config", type=Path, metavar="CONFIG", help=help)
    with_overrides(command)


def with_overrides(command: argparse.ArgumentParser) -> None:
    """Add --set and --print-config to a command with a configuration."""
    command.set_defaults(overrides=[])
    with_set(command, "override a key, such as train.steps=10; may be repeated")
    flag(command, "--print-config", "print the resolved configuration and stop")


def with_set(command: argparse.ArgumentParser, help: str, dest: str = "overrides") -> None:
    """Add the option --set to a command. dest: attribute of the parsed options that gets its values."""
    command.add_argument("--set", dest=dest, action="append", metavar="KEY=VALUE", help=help)


def with_output(command: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    """Add the option --output to a command."""
    command.add_argument("-o", "--output", type=Path, required=required, metavar="PATH", help=help)


class _SetChip(argparse.Action):
    """Action that adds parallel.chip before all other overrides; `_check_chip` refuses an override that changes it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        namespace.overrides = [f"parallel.chip={values}", *namespace.overrides]
        namespace.chip = values


def with_chip(command: argparse.ArgumentParser) -> None:
    """Add --chip to a command with a configuration."""
    help = "type of the NPUs, as --set parallel.chip=…; decides what train.compute_dtype: half is"
    command.add_argument("--chip", action=_SetChip, choices=CHIP_NAMES, help=help)


def _check_chip(options: argparse.Namespace) -> None:
    """Raise ConfigError if a --set contradicts --chip: parallel.chip with another chip, or parallel as a whole without one."""
    chip, configured = getattr(options, "chip", None), options.config.parallel.chip
    if chip not in (None, configured):
        raise ConfigError(
            f"--chip {chip}, and by --set parallel.chip is {configured}; leave one of them away, and where a --set "
            f"replaces parallel as a whole write chip: {chip} into it"
        )


def with_json(command: argparse.ArgumentParser) -> None:
    """Add the option --json to a command."""
    command.add_argument("--json", metavar="FILE", help="also write the result as JSON; -: instead, to standard output")


def with_weights(command: argparse.ArgumentParser) -> None:
    """Add --weights to a command that generates text."""
    help = "precision of matrices in memory (default: float32 for a run, the stored one for an export)"
    command.add_argument("--weights", choices=["float32", "float16", "int8", "int4"], help=help)


def check_json(options: argparse.Namespace) -> None:
    """Raise NotWritable, before the work begins, if the file of --json cannot be written."""
    file = getattr(options, "json", None)
    if file is not None and file != "-":
        check_file_writable(Path(file), "--json")


def load_or_print_config(options: argparse.Namespace) -> bool:
    """Load the configuration with its overrides into the options. With --print-config, print the configuration and return True."""
    if "print_config" not in options:
        return False
    if not isinstance(options.config, Config):
        options.config = api.load_config(options.config, options.overrides)
    _check_chip(options)
    if options.print_config:
        if getattr(options, "json", None) is not None:
            raise ConfigError("--print-config prints YAML and stops, so nothing is written to --json; leave one out")
        print(dump_config(options.config), end="")
    return options.print_config


def call(function: Callable[..., Any], options: argparse.Namespace) -> Any:
    """Call a function of `api` with the options of a command that have the names of its parameters."""
    given = vars(options)
    return function(**{name: given[name] for name in inspect.signature(function).parameters if name in given})


def call_and_show(function: Callable[..., Any], options: argparse.Namespace) -> int:
    """Call a function of `api`, show its result, and return the exit status; with --print-config only print the configuration."""
    if load_or_print_config(options):
        return 0
    result = call(function, options)
    if isinstance(result, int):
        return result
    if isinstance(result, api.Model):
        if result.stopped:
            return programs.stopped_status()
        result = result.outcome
    if result is not None:
        show(result, getattr(options, "json", None))
    return 0 if getattr(result, "ok", True) else 1


def show(result: Any, file: str | None) -> None:
    """Print the result of a command. file: file of --json, which gets the result too; "-": print JSON instead of the table."""
    text = json.dumps(result, ensure_ascii=False, indent=2, default=asdict) if file else ""
    print(text if file == "-" else result)
    if file not in (None, "-"):
        try:
            Path(file).write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:  # that of a write, to a full disk, names no file
            error.filename = file
            raise
