"""The command `python -m experiments.compare`: ways to train, on the same samples in the same order, with several seeds.

It can be stopped: the same command keeps what has ended and goes on. With other settings use another --folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.cases import log_to_terminal
from experiments.compare import dense, inherit, methods, search
from experiments.compare.arms import ARMS, LEAKING
from experiments.small import add_options
from pangu_sigma.errors import exit_status

_RATES = {"dense": (), "tiny": (), "inherit": ("7e-4", "2e-3", "6e-3"), "methods": ("2e-3", "6e-3", "1.2e-2", "2e-2")}
"""Default learning rates."""


def main() -> int:
    """Make the comparison that the command line names, and print its tables."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMPARISON")
    for module, name, compare in (
        (dense, "dense", dense.compare_dense),
        (inherit, "inherit", inherit.compare_inherited),
        (methods, "methods", methods.compare_methods),
        (search, "tiny", search.search_tiny),
    ):
        text = module.__doc__ or ""
        command = commands.add_parser(name, help=text.partition("\n")[0], description=text)
        rates = add_options(command, f"compare_{name}", _RATES[name])
        if name == "methods":
            rates.add_argument(
                "--rates-of", type=Path, metavar="FOLDER", help="take each arm's best rate in that folder"
            )
            _add_arms(command, 160, list(ARMS), [name for name in ARMS if name not in LEAKING])
        elif name == "tiny":
            _add_arms(command, 500, list(search.FORMS), ["dense", "rre16", "mixed64"])
        command.add_argument(
            "--jobs", type=int, default=1, help="cases at the same time, each on its share of the cores"
        )
        command.set_defaults(compare=compare)
    options = vars(parser.parse_args())
    print(options.pop("compare")(overrides=options.pop("set"), **options))
    return 0


def _add_arms(command: argparse.ArgumentParser, steps: int, arms: list[str], default: list[str]) -> None:
    command.add_argument("--steps", type=int, default=steps, help=f"2,048 tokens each; default {steps}")
    command.add_argument("--arms", nargs="+", choices=arms, default=default, help=f"default: {' '.join(default)}")


if __name__ == "__main__":
    log_to_terminal()
    sys.exit(exit_status(main))
