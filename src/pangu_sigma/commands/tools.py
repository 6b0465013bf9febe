"""Around training: inspect, plan, doctor, completion."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_sigma.chips import CHIP_NAMES
from pangu_sigma.commands.options import (
    CONFIG_HELP,
    add_command,
    resolved_config,
    show,
    with_chip,
    with_json,
    with_overrides,
)
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.writable import check_file_writable

if TYPE_CHECKING:
    from pangu_sigma.planning.scan import Scan

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
            "--config sigma_1t --devices 512 --compile --factors",
            "--config sigma_1t --chip 910b --scan",
        )
    )
    command.add_argument("--config", type=Path, required=True, help=CONFIG_HELP)
    command.add_argument("--devices", type=int, metavar="N", help="number of NPUs")
    command.add_argument(
        "--factors",
        action="store_true",
        help="the smallest parallel.capacity_factor and arrival_factor that drop no row, by simulation; with --devices",
    )
    command.add_argument(
        "--scan",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE.svg",
        help="the fastest layouts on 8 to 4,096 NPUs as a table, and as a picture where a file is named",
    )
    command.add_argument("--compile", action="store_true", help="let MindSpore compile the step for Ascend; minutes")
    with_chip(with_overrides(command))

    command = with_json(
        add_command(
            commands,
            "doctor",
            _doctor,
            "is this machine ready?",
            "--speed",
            "--ascend --chip 910b",
            "--ascend --run /shared/runs/sigma_1t",
        )
    )
    command.add_argument(
        "--ascend", action="store_true", help="demand NPUs, and all that a host of a cluster needs for them"
    )
    command.add_argument("--speed", action="store_true", help="measure memory, Adam and matrix products; a few seconds")
    command.add_argument("--chip", choices=CHIP_NAMES, help="the chip that must be there; with --ascend")
    command.add_argument("--run", type=Path, help="a run folder: is it on storage that all nodes share? with --ascend")

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
    if options.devices is None and (options.scan is None or options.compile or options.factors):
        raise ConfigError("plan needs --devices N, for a plan on N NPUs; or --scan, for a table of 8 to 4,096 NPUs")
    config = resolved_config(options)
    if config is None:
        return 0
    from pangu_sigma.planning.differences import compile_plan
    from pangu_sigma.planning.factors import format_factors, needed_factors
    from pangu_sigma.planning.plan import laid_out, make_plan
    from pangu_sigma.planning.scan import format_scan
    from pangu_sigma.planning.text import format_plan

    tree: dict[str, Any] = {}
    texts: list[str] = []
    good = True
    if options.devices is not None:
        plan = (compile_plan if options.compile else make_plan)(config, options.devices)
        tree, texts = plan.as_dict(), [format_plan(plan)]
        good = plan.fits and not (plan.compiled and plan.compiled.differences)
    if options.factors:
        needed = needed_factors(laid_out(config, options.devices))
        tree, texts = tree | {"factors": dataclasses.asdict(needed)}, [*texts, format_factors(needed)]
    if options.scan is not None:
        found = _scan(config, options.scan)
        tree, texts = tree | found.as_dict(), [*texts, format_scan(found)]
        good = good and found.least_devices is not None
    show(tree, "\n".join(texts), options.json)
    return 0 if good else 1


def _scan(config: Config, picture: Path) -> Scan:
    """The scan of a configuration, and its picture if that is no empty path."""
    from pangu_sigma.planning.scan import draw_scan, scan

    if picture == Path():
        return scan(config)
    if picture.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--scan {picture}: a picture is a .svg, .png or .pdf file")
    check_file_writable(picture, "--scan")
    found = scan(config)
    draw_scan(found, picture)
    return found


def _doctor(options: argparse.Namespace) -> int:
    from pangu_sigma.commands.doctor import format_checks, run_checks
    from pangu_sigma.launching.host.access import Host

    for name in ("chip", "run"):
        if getattr(options, name) is not None and not options.ascend:
            raise ConfigError(f"--{name} {getattr(options, name)} is about NPUs: add --ascend")
    host = Host() if options.ascend else None
    checks = run_checks(host, options.chip, options.run, options.speed)
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
