"""How weights become a Σ, grow and leave: inherit, extend, extract, convert."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pangu_sigma import api
from pangu_sigma.commands.options import CONFIG_HELP, add_command, resolved_config, show, with_json, with_overrides
from pangu_sigma.config import ConfigError
from pangu_sigma.inherit.receipt import Receipt


def add_commands(commands: Any) -> None:
    """Declare these commands."""
    command = with_json(
        with_overrides(
            add_command(
                commands,
                "inherit",
                _inherit,
                "start a sparse run from a dense model",
                "runs/alpha_tiny --config sigma_tiny --run runs/inherited",
                "pangu-alpha_2.6B --config mine.yaml --dry-run",
            )
        )
    )
    command.add_argument(
        "parent",
        type=Path,
        nargs="?",
        metavar="PARENT",
        help="a dense run, or the files of a released PanGu-α",
    )
    command.add_argument("--config", type=Path, required=True, help=CONFIG_HELP)
    command.add_argument("--run", type=Path, help="folder of the run to make; it must not exist")
    command.add_argument("--dry-run", action="store_true", help="print where every tensor would come from, and stop")
    command.add_argument("--heads", type=int, help="the parent's attention heads, where its files do not say it")
    command.add_argument(
        "--activation", choices=["fast_gelu", "tanh", "erf"], help="the parent's GELU, where its files do not say it"
    )
    command.add_argument("--noise", type=float, default=0.0, help="multiply the experts' values by 1 + NOISE · N(0, 1)")
    command.add_argument(
        "--fresh", type=float, default=0.0, help="share of each expert's inner units that is drawn anew"
    )
    command.add_argument("--moments", action="store_true", help="carry Adam's state of a dense run over")
    _add_extend(commands)
    _add_extract(commands)
    _add_convert(commands)


def _add_extend(commands: Any) -> None:
    command = with_json(
        with_overrides(
            add_command(
                commands,
                "extend",
                _extend,
                "more domains, slots, pieces or experts for a trained run; what it had stays as it was, bit for bit",
                "runs/sigma_tiny --config more.yaml --run runs/more --from zh",
                "runs/sigma_tiny --config more.yaml --run runs/more --alpha runs/alpha_tiny",
            )
        )
    )
    command.add_argument("parent", type=Path, metavar="RUN", help="the trained run")
    command.add_argument("--config", type=Path, required=True, help=CONFIG_HELP)
    command.add_argument("--run", type=Path, help="folder of the run to make; it must not exist")
    command.add_argument("--from", dest="origin", metavar="DOMAIN", help="new domains begin as this domain of the run")
    command.add_argument("--alpha", type=Path, metavar="PARENT", help="new domains begin as this dense parent")
    command.add_argument("--fresh", action="store_true", help="new domains are drawn")
    command.add_argument("--heads", type=int, help="attention heads of --alpha, where its files do not say it")
    command.add_argument(
        "--activation", choices=["fast_gelu", "tanh", "erf"], help="GELU of --alpha, where its files do not say it"
    )
    command.add_argument("--exact-only", action="store_true", help=_EXACT_ONLY)


def _add_extract(commands: Any) -> None:
    command = with_json(
        add_command(
            commands,
            "extract",
            _extract,
            "cut domains out of a trained run, bit for bit",
            "runs/sigma_tiny --domain zh --run runs/zh",
            "runs/sigma_tiny --drop code --output exported/without_code",
        )
    )
    command.add_argument("parent", type=Path, metavar="RUN", help="the trained run")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--domain", action="append", default=[], help="a domain to keep; may be given several times")
    which.add_argument("--drop", action="append", default=[], metavar="DOMAIN", help="a domain to leave away")
    target = command.add_mutually_exclusive_group(required=True)
    target.add_argument("--run", type=Path, help="folder of the run to make; it must not exist")
    target.add_argument("--output", type=Path, help="folder of the exported model to make; it must not exist")
    command.add_argument("--data", type=Path, help="prepared text of the run, if it is no longer at its data.path")
    command.add_argument("--exact-only", action="store_true", help=_EXACT_ONLY)


_EXACT_ONLY = "compare logits on the path that adds in one order only, which compiles no graph"


def _extend(options: argparse.Namespace) -> int:
    config = resolved_config(options)
    if config is None:
        return 0
    receipt = api.extend(
        options.parent,
        config,
        options.run or Path("runs") / config.name,
        origin=options.origin,
        alpha=options.alpha,
        fresh=options.fresh,
        heads=options.heads,
        activation=options.activation,
        exact_only=options.exact_only,
    )
    return _show(receipt, options)


def _extract(options: argparse.Namespace) -> int:
    receipt = api.extract(
        options.parent,
        options.run or options.output,
        domains=options.domain,
        drop=options.drop,
        format="run" if options.run else "mindir",
        data=options.data,
        exact_only=options.exact_only,
    )
    return _show(receipt, options)


def _show(receipt: Receipt, options: argparse.Namespace) -> int:
    from pangu_sigma.inherit.receipt import format_receipt

    show(asdict(receipt), format_receipt(receipt), options.json)
    return 0


def _inherit(options: argparse.Namespace) -> int:
    config = resolved_config(options)
    if config is None:
        return 0
    from pangu_sigma.inherit.from_alpha import plan_inheritance
    from pangu_sigma.inherit.parent import PUBLISHED, open_parent
    from pangu_sigma.inherit.receipt import format_mapping
    from pangu_sigma.inherit.variation import Variation

    if options.parent is None:
        raise ConfigError(f"name the PARENT to inherit from; {PUBLISHED}")
    if options.dry_run:
        parent = open_parent(options.parent, options.heads, options.activation)
        variation = Variation(options.noise, options.fresh, config.seed)
        child = plan_inheritance(parent, config, variation, options.moments)
        show([asdict(each) for each in child.descents()], format_mapping(child), options.json)
        return 0
    receipt = api.inherit(
        options.parent,
        config,
        options.run or Path("runs") / config.name,
        heads=options.heads,
        activation=options.activation,
        noise=options.noise,
        fresh=options.fresh,
        moments=options.moments,
    )
    return _show(receipt, options)


def _add_convert(commands: Any) -> None:
    command = add_command(
        commands,
        "convert",
        _convert,
        "a model in another form: a Hugging Face style folder, a run",
        "runs/sigma_tiny exports/sigma_tiny_hf --to hf",
        "exports/sigma_tiny_hf runs/again --to run",
    )
    command.add_argument("source", type=Path, metavar="FROM", help="run folder, or a folder that --to hf wrote")
    command.add_argument("output", type=Path, metavar="TO", help="folder to make; it must not exist")
    command.add_argument("--to", choices=["hf", "run"], required=True)


def _convert(options: argparse.Namespace) -> int:
    written = api.convert(options.source, options.output, options.to)
    print(f"{written}: all weights of {options.source}, without optimizer state")
    return 0
