"""Command `pangu-sigma`: argument parser and exit status. The commands themselves are in `commands/`.

Commands import what they need when they run, so that an invalid configuration is refused before MindSpore is loaded.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pangu_sigma
from pangu_sigma.bars import Bar
from pangu_sigma.commands import answering, measuring, models, tools, training
from pangu_sigma.commands.options import check_json
from pangu_sigma.errors import INTERRUPTED, exit_status
from pangu_sigma.ranks.ranks import end_as_rank, end_process, is_rank

EXIT_STATUSES = """\
exit status:
  0  done
  1  a check failed (doctor; a plan that does not fit, or compiles to something else; inspect --verify found damage), or
     something broke: a bug, shown with its traceback
  2  something that you can fix, said in one message; a loss that is not finite (evaluate)
  130, 141  interrupted: a training has then saved its step (a launch ends with 0); nobody reads the output any more"""
"""Exit statuses of the commands, for the help; `errors.exit_status` maps errors to them."""


def program() -> int:
    """Run `main` as the process of a shell. As one of several ranks, or after an error, it does not return: see `end_process`."""
    if is_rank():
        end_as_rank(main)
    status = main()
    if status in (2, INTERRUPTED):
        end_process(status)  # memory may be full, or MindSpore half imported
    gc.freeze()  # no garbage collection at the end of the process (garbage.py)
    return status


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status, one of EXIT_STATUSES."""
    options = _parser().parse_args(arguments)
    level = logging.WARNING if options.quiet else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    Bar.quiet = options.quiet
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    check_json(options)
    return options.run_command(options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pangu-sigma",
        description="PanGu-Σ on MindSpore",
        epilog=f"examples of a command: pangu-sigma COMMAND --help\n\n{EXIT_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="print the version and stop")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    training.add_commands(commands)
    measuring.add_commands(commands)
    models.add_commands(commands)
    answering.add_commands(commands)
    tools.add_commands(commands, parser)
    return parser


class _Parser(argparse.ArgumentParser):
    """Parser of the program and of its commands, whose messages name the nearest option, command or choice."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:  # said here, where a command's own options are known
            hint = (
                "; an option takes one value: --set KEY=VALUE, and --keep A --keep B or --input A --input B for several"
            )
            if unknown[0].startswith("-"):
                hint = _nearest(" option", unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if action.type is Path and not arg_string.strip():  # which `Path` takes as the current folder
            raise argparse.ArgumentError(action, f"{arg_string!r} is blank; name a file or folder, such as .")
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _nearest("", str(value), action.choices or ())
            raise


def _nearest(kind: str, word: str, known: Iterable[str]) -> str:
    """Return the end of a message that names the word nearest to a mistyped one; "" if none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; nearest{kind}: {near[0]}" if near else ""


class _Version(argparse.Action):
    """Print the version as argparse's own action does, but read the package's metadata only when needed."""

    def __init__(self, option_strings: Any, dest: str, help: str | None = None):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> None:
        print(f"{parser.prog} {pangu_sigma.__version__}")
        parser.exit()
