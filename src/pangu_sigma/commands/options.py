"""What commands share: how they are declared, the configuration they are given, and how they show a result."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_sigma.chips import CHIP_NAMES
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config, load_config
from pangu_sigma.shipped import config_path
from pangu_sigma.writable import check_file_writable

CONFIG_HELP = "YAML file, or the name of a shipped configuration, such as sigma_tiny"


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, *examples: str
) -> argparse.ArgumentParser:
    """Declare a command. run: does it and returns the exit status. examples: arguments that its --help ends with."""
    lines = [f"  pangu-sigma {name} {example}".rstrip() for example in examples]
    command = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog="\n".join(["example:" if len(lines) == 1 else "examples:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run_command=run)
    return command


def with_config(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Give a command a configuration as its first argument."""
    command.add_argument("config", type=Path, help=CONFIG_HELP)
    return with_overrides(command)


def with_overrides(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Give a command that has a configuration --set and --print-config."""
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override any key, such as train.steps=10"
    )
    command.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    return command


class _SetChip(argparse.Action):
    """An option that is a --set, before all others; `_check_chip` refuses one of those that undoes it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        namespace.set = [f"parallel.chip={values}", *namespace.set]
        namespace.chip = values


def with_chip(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Give a command that has a configuration --chip."""
    command.add_argument(
        "--chip",
        action=_SetChip,
        choices=CHIP_NAMES,
        help="the NPUs' chip, as --set parallel.chip=…; it decides what train.compute_dtype: half is",
    )
    return command


def _check_chip(options: argparse.Namespace, config: Config) -> None:
    """Raise ConfigError if a --set has undone --chip: parallel.chip with another one, or parallel as a whole without any."""
    chip = getattr(options, "chip", None)
    if chip is not None and chip != config.parallel.chip:
        raise ConfigError(
            f"--chip {chip}, and by --set parallel.chip is {config.parallel.chip}; leave one of them away, and where a --set "
            f"replaces parallel as a whole write chip: {chip} into it"
        )


def with_json(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Give a command --json."""
    command.add_argument("--json", metavar="FILE", help="write the result as JSON; - is standard output")
    return command


def with_weights(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Give a command that answers --weights."""
    command.add_argument(
        "--weights",
        choices=["float32", "float16", "int8"],
        help="matrices in memory; as they are if not given: float32 of a run, what an export keeps",
    )
    return command


def check_json(options: argparse.Namespace) -> None:
    """Raise NotWritable if the file of --json cannot be written, before the work whose result it is to hold."""
    file = getattr(options, "json", None)
    if file is not None and file != "-":
        check_file_writable(Path(file), "--json")


def resolved_config(options: argparse.Namespace) -> Config | None:
    """The configuration with its overrides; None when --print-config has printed it."""
    return checked_or_printed(options, load_config(config_path(options.config), options.set))


def checked_or_printed(options: argparse.Namespace, config: Config) -> Config | None:
    """A configuration with its overrides, which keep what --chip says; None when --print-config has printed it."""
    _check_chip(options, config)
    if options.print_config:
        print(dump_config(config), end="")
        return None
    return config


def show(result: Any, text: str, file: str | None) -> None:
    """Print `text`, or write `result` as JSON where --json says."""
    if file is None:
        print(text)
    elif file == "-":
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        Path(file).write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
