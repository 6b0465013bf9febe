"""Command `pangu-sigma`: each function of COMMANDS is a command. Its parameters are the options, with their types and defaults, its
docstring is the help. The constants below hold what no signature says. The functions import what they need when they run, so that
an invalid configuration is refused before MindSpore is loaded."""

from __future__ import annotations

import gc
import inspect
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_origin

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import UnknownCommandError, UnusedCliTokensError

import pangu_sigma
from pangu_sigma import api
from pangu_sigma.arguments import types_of
from pangu_sigma.bars import Bar
from pangu_sigma.config_file import dump_config
from pangu_sigma.errors import INTERRUPTED, exit_status
from pangu_sigma.ranks.ranks import end_as_rank, end_process, is_rank
from pangu_sigma.results import Result
from pangu_sigma.sealed import write_atomically
from pangu_sigma.writable import check_file_writable

COMMANDS: tuple[Callable[..., Any], ...] = (
    *(api.prepare_data, api.train, api.launch, api.finetune, api.evaluate, api.benchmark, api.report, api.inherit),
    *(api.extend, api.extract, api.export, api.generate, api.chat, api.serve, api.inspect, api.plan, api.doctor),
)
POSITIONAL = ("model", "config", "what", "names")
"""Parameters that are given without the name of an option."""
ONLY_PYTHON = ("on_step",)
SPELLED = {
    "output": Parameter(alias="-o"),
    "overrides": Parameter("--set", metavar="KEY=VALUE"),
    "limits": Parameter("--set", metavar="KEY=VALUE"),
    "reader": Parameter(metavar="FILE.py:FUNCTION"),
    "against": Parameter(consume_multiple=True),
    **dict.fromkeys(("json", "prompts"), Parameter(allow_leading_hyphen=True)),  # - is a value of them
}
"""Options that are spelled in another way than their parameters: `--set KEY=VALUE` may be repeated."""


def _as_typed(kind: Any, tokens: Any) -> Any:
    """Return the value, or for a list the values, of an option as they were typed; only whole numbers are converted. cyclopts
    would round 1.5 to a whole number and rewrite paths, which the called functions check as the user typed them. kind: type of the
    option. tokens: words of the command line, as cyclopts has them. Raises ValueError if a value is itself an option."""
    values = [int(token.value) if kind is int else token.value for token in tokens]
    if options := [value for value in values if str(value).startswith("--")]:
        raise ValueError(f"{options[0]} is an option")
    return values if get_origin(kind) is list else values[0]


_AS_TYPED = Parameter(converter=_as_typed)
TYPES: dict[str, Any] = {
    **dict.fromkeys(("AnyPath", "AnyConfig", "AnyModel"), Annotated[Path, _AS_TYPED]),
    **dict.fromkeys(("Paths", "Models"), Annotated[list[Path], _AS_TYPED]),
    **dict.fromkeys(("int", "AtLeastOne", "Count"), Annotated[int, _AS_TYPED]),
    **dict.fromkeys(("Seconds", "Temperature", "TopP", "Fraction", "Factor", "Penalty"), float),
    **dict.fromkeys(("Texts", "Overrides"), list[str]),
    "Text": str,
}
"""Types of options, by the names of types in the annotations of parameters, where these differ."""
OF_THE_COMMAND_LINE: dict[str, tuple[Any, str]] = {
    "print_config": (bool, "print the resolved configuration, as YAML, and stop"),
    "json": (TYPES["AnyPath"], "also write the result as JSON, to a new file; -: instead, to standard output"),
    "quiet": (bool, "print warnings, errors and the result only"),
}
"""Options that no function has: their types and help. --print-config needs a configuration, --json a result."""

EXIT_STATUSES = """\
exit status:
  0  done
  1  a check failed (doctor; a plan that does not fit, or compiles to something else;
     inspect --verify found damage; a loss of evaluate is not finite), or something broke:
     a bug, shown with its traceback
  2  something that you can fix, said in one message
  130, 141  interrupted: a training has then saved its step (a launch ends with 0);
     nobody reads the output any more"""
"""Exit statuses of the commands, for the help; `errors.exit_status` maps errors to them."""


def program() -> int:
    """Run `main` as the process of a shell. As one of several ranks, or after an error, it does not return: see `end_process`."""
    _mend_streams()
    if is_rank():
        end_as_rank(main)
    status = main()
    if status in (2, INTERRUPTED):
        end_process(status)  # memory may be full, or MindSpore half imported
    gc.freeze()  # no garbage collection at the end of the process (process.py)
    return status


def _mend_streams() -> None:
    """Change the standard streams so that none of them can end a command. A byte of the input that is not UTF-8 becomes half a
    surrogate pair, a character that the output's encoding lacks becomes its number, and a stream that the shell closed is empty."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 (open until the process ends)
        getattr(sys, name).reconfigure(errors="surrogateescape" if name == "stdin" else "backslashreplace")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status, one of EXIT_STATUSES."""
    words = sys.argv[1:] if arguments is None else arguments
    app = make_app(*words[:1])
    if not words or {"--help", "-h"} & {*words}:  # else its imports would take time for nothing
        _show_plainly(app)
    try:
        command, bound, _ = app.parse_args(words or ["--help"], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"error: {usage_error(error)}", file=sys.stderr)
        return 2
    status = exit_status(lambda: command(*bound.args, **bound.kwargs) or 0)
    return status if words else 2  # without a command the help was shown, which is an error of usage


def make_app(only: str = "") -> App:
    """Return the parser of all commands. only: name of the one command that will run, whose parser alone takes less time."""
    app = App(
        name="pangu-sigma",
        help="PanGu-Σ on MindSpore. Examples of a command: pangu-sigma COMMAND --help",
        help_epilogue=EXIT_STATUSES,
        help_format="plaintext",
        version=lambda: f"pangu-sigma {pangu_sigma.__version__}",
        default_parameter=Parameter(negative=()),
    )
    commands = {function.__name__.replace("_", "-"): function for function in COMMANDS}
    functions = {only: commands[only]} if only in commands else commands
    for number, (name, function) in enumerate(functions.items()):
        text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\nExamples:\n")
        app.command(_command(function, text), name=name, sort_key=number, help_epilogue=f"examples:\n{examples}")
    if only not in commands:
        summary, example = "Install completion of these commands in a shell.", "examples:\n    pangu-sigma completion"
        app.register_install_completion_command("completion", False, help=summary, help_epilogue=example)
    return app


def _show_plainly(app: App) -> None:
    """Make the app print its help as plain lines, without boxes. cyclopts passes every text but the epilogue to `_print_plain`,
    which folds the text between words; the epilogue, with the examples, goes to the console unchanged."""
    from cyclopts.help.formatters.plain import PlainFormatter
    from rich.console import Console

    class Help(PlainFormatter):
        def _print_plain(self, console: Console, text: str) -> None:
            width, indent = min(shutil.get_terminal_size().columns, 120), " " * (len(text) - len(text.lstrip(" ")))
            fold = partial(textwrap.fill, width=width, initial_indent=indent, subsequent_indent=indent * 3)
            print("\n\n".join(fold(" ".join(paragraph.split())) for paragraph in text.split("\n\n")))

    app.console, app.help_formatter = Console(soft_wrap=True, highlight=False), Help()


def _command(function: Callable[..., Any], help: str) -> Callable[..., int]:
    """Return the function that cyclopts calls for a command, with the command's options as signature. help: its docstring."""

    def command(*arguments: Any, **options: Any) -> int:
        return _run(function, *arguments, **options)

    command.__doc__, command.__signature__ = help, _signature(function)  # type: ignore[attr-defined]
    return command


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function's command: positional parameters first, then options by keyword. Options are the
    function's parameters, and the entries of OF_THE_COMMAND_LINE that are of use to it."""
    original = inspect.unwrap(function)
    hints, parameters = types_of(original, TYPES), inspect.signature(original).parameters
    options = [_option(name, hints[name], parameters[name].default) for name in parameters if name not in ONLY_PYTHON]
    has_config = not parameters.keys().isdisjoint(("config", "what"))
    has_result = original.__annotations__["return"] not in ("int", "int | str", "None")
    is_useful = {"print_config": has_config, "json": has_result and "json" not in parameters, "quiet": True}
    for name, (hint, help) in OF_THE_COMMAND_LINE.items():
        if is_useful[name]:
            options.append(_option(name, hint, False if hint is bool else None, Parameter(help=help)))
    return inspect.Signature(sorted(options, key=lambda option: option.kind))


def _option(name: str, hint: Any, default: Any, help: Parameter | None = None) -> inspect.Parameter:
    """Return the parameter of which cyclopts makes an option, or a positional argument. help: for an option without a docstring."""
    kind = inspect.Parameter.POSITIONAL_ONLY if name in POSITIONAL else inspect.Parameter.KEYWORD_ONLY
    default_help = Parameter(show_default=default not in (None, False, (), inspect.Parameter.empty))
    hint = hint | None if default is None else hint  # cyclopts checks defaults, too
    annotation: Any = Annotated[hint, Parameter.combine(SPELLED.get(name), help, default_help)]
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _run(
    function: Callable[..., Any],
    *arguments: Any,
    print_config: bool = False,
    quiet: bool = False,
    json: str | None = None,
    **options: Any,
) -> int:
    """Run a command, show its result and return the exit status. print_config, quiet, json: as in OF_THE_COMMAND_LINE."""
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    Bar.quiet = quiet
    file = None if json is None else Path(json)
    if json not in (None, "-"):
        check_file_writable(Path(json), "--json")
        if "json" in inspect.signature(function).parameters:  # the function writes it
            options["json"], file = file, None
    if print_config:
        config = api.load_config(arguments[-1], options.get("overrides", ()))  # last, as in `inherit`, after a model
        return _show(Result(config.model_dump(mode="json"), dump_config(config).rstrip()), file)
    return _show(function(*arguments, **options), file)


def _show(result: Any, file: Path | None) -> int:
    """Print the result of a command, and return the exit status. file: file that gets the result as JSON, too; "-" to print JSON in
    place of the command's table; None for no JSON."""
    if isinstance(result, api.Model):
        if result.stopped:  # a launcher takes any other status of a rank for a failure, and starts the ranks again
            return 0 if is_rank() else INTERRUPTED
        result = result.outcome
    if result is None or isinstance(result, int):
        return result or 0
    is_printed = file == Path("-")
    is_ascii = is_printed and (sys.stdout.encoding or "utf-8").lower() != "utf-8"
    text = json.dumps(result, ensure_ascii=is_ascii, indent=2, default=_json_value) if file else ""
    print(text if is_printed else result)
    if file and not is_printed:
        write_atomically(file, f"{text}\n".encode(errors="backslashreplace"))  # half a surrogate pair as JSON's escape
    return 0 if getattr(result, "ok", True) else 1


def _json_value(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)


def usage_error(error: CycloptsError) -> str:
    """Return the message of an error of the command line, in one line."""
    error.verbose = False
    reason, tokens = str(error).rstrip("."), error.unused_tokens or []
    if isinstance(error, UnusedCliTokensError):
        reason = f"unrecognized arguments: {' '.join(tokens)}; put a text with blanks into quotes; an option takes one value: "
        reason += "--set KEY=VALUE, and --keep A --keep B or --input A --input B for several"
    elif isinstance(error, UnknownCommandError) and tokens[0].startswith("-"):
        reason = f"{tokens[0]}: options stand behind the command: pangu-sigma COMMAND {tokens[0]}"
    return f"{reason}; see {' '.join(['pangu-sigma', *(error.command_chain or ())])} --help"
