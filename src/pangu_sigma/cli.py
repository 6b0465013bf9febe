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
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import UnknownCommandError, UnusedCliTokensError

import pangu_sigma
from pangu_sigma import api
from pangu_sigma.arguments import AnyPath, types_of
from pangu_sigma.bars import Bar
from pangu_sigma.chips import Chip
from pangu_sigma.config_file import dump_config, key_of
from pangu_sigma.errors import INTERRUPTED, exit_status, without_effect
from pangu_sigma.ranks.ranks import end_as_rank, end_process, is_rank
from pangu_sigma.results import Result
from pangu_sigma.writable import check_file_writable

COMMANDS: tuple[Callable[..., Any], ...] = (
    *(api.prepare_data, api.train, api.launch, api.finetune, api.evaluate, api.benchmark, api.report, api.inherit),
    *(api.extend, api.extract, api.export, api.generate, api.chat, api.serve, api.inspect, api.plan, api.doctor),
)
POSITIONAL = ("model", "config", "what", "names", "shell")
"""Parameters that are given without the name of an option."""
ONLY_PYTHON = ("on_step",)
SPELLED = {
    "output": Parameter(alias="-o"),
    "overrides": Parameter(name="--set", metavar="KEY=VALUE"),
    "limits": Parameter(name="--set", metavar="KEY=VALUE"),
    "against": Parameter(consume_multiple=True),
    **dict.fromkeys(("json", "prompts"), Parameter(allow_leading_hyphen=True)),  # - is a value of them
}
"""Options that are spelled in another way than their parameters: `--set KEY=VALUE` may be repeated."""
OF_THE_COMMAND_LINE: dict[str, tuple[Any, str, set[str]]] = {
    "chip": (Chip, "type of the NPUs, as --set parallel.chip=…", {"nodes", "scan"}),
    "print_config": (bool, "print the resolved configuration, as YAML, and stop", {"config", "what"}),
    "json": (AnyPath, "also write the result as JSON, to a new file; -: instead, to standard output", set()),
    "quiet": (bool, "print warnings, errors and the result only", set()),
}
"""Options that no function has: their types, help, and parameters of which a command must have one. --json needs a result."""

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
    if is_rank():
        end_as_rank(main)
    status = main()
    if status in (2, INTERRUPTED):
        end_process(status)  # memory may be full, or MindSpore half imported
    gc.freeze()  # no garbage collection at the end of the process (process.py)
    return status


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status, one of EXIT_STATUSES."""
    given = sys.argv[1:] if arguments is None else arguments
    app = make_app(given[0] if given else "")
    if not given or {"--help", "-h"} & {*given}:
        _show_plainly(app)
    try:
        command, bound, _ = app.parse_args(given or ["--help"], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"error: {usage_error(error)}", file=sys.stderr)
        return 2
    status = exit_status(lambda: command(*bound.args, **bound.kwargs) or 0)
    return status if given else 2


def make_app(asked: str = "") -> App:
    """Return the parser of all commands; or only of the one that is asked for, if it is a command, which takes less time."""
    app = App(
        name="pangu-sigma",
        help="PanGu-Σ on MindSpore. Examples of a command: pangu-sigma COMMAND --help",
        help_epilogue=EXIT_STATUSES,
        help_format="plaintext",
        version=lambda: f"pangu-sigma {pangu_sigma.__version__}",
        default_parameter=Parameter(negative=()),
    )

    def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
        """Print a shell script that completes these commands.

        Args:
            shell: shell that will run the script.

        Examples:
            pangu-sigma completion bash > ~/.local/share/bash-completion/completions/pangu-sigma
            pangu-sigma completion zsh > ~/.zfunc/_pangu-sigma
        """
        print(app.generate_completion(shell=shell))

    named = {each.__name__.replace("_", "-"): each for each in COMMANDS}
    functions = {asked: named[asked]} if asked in named else named | {"completion": completion}
    for number, (name, function) in enumerate(functions.items()):
        described, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\nExamples:\n")
        app.command(_command(function, described), name=name, sort_key=number, help_epilogue=f"examples:\n{examples}")
    return app


def _show_plainly(app: App) -> None:
    """Print help as lines of text without boxes, which are folded between words; examples are not folded."""
    from cyclopts.help.formatters.plain import PlainFormatter
    from rich.console import Console

    class Help(PlainFormatter):
        def _print_plain(self, console: Console, text: str) -> None:
            width, indent = min(shutil.get_terminal_size().columns, 120), " " * (len(text) - len(text.lstrip(" ")))
            fold = partial(textwrap.fill, width=width, initial_indent=indent, subsequent_indent=indent * 3)
            print("\n\n".join(fold(" ".join(part.split())) for part in text.split("\n\n")))

    app.console, app.help_formatter = Console(soft_wrap=True, highlight=False), Help()


def _command(function: Callable[..., Any], help: str) -> Callable[..., int]:
    """Return the function that a command runs."""

    def command(*given: Any, **options: Any) -> int:
        return _run(function, *given, **options)

    command.__doc__, command.__signature__ = help, _signature(function)  # type: ignore[attr-defined]
    return command


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function's command: positional parameters first, then options by keyword."""
    original = inspect.unwrap(function)
    hints, has = types_of(original), dict(inspect.signature(original).parameters)
    silent = original.__annotations__["return"] in ("int", "int | str", "None")
    parameters = []

    def add(name: str, hint: Any, default: Any, told: Parameter | None = None) -> None:
        kind = inspect.Parameter.POSITIONAL_ONLY if name in POSITIONAL else inspect.Parameter.KEYWORD_ONLY
        shown = Parameter(show_default=default not in (None, False, (), inspect.Parameter.empty))
        annotation: Any = Annotated[_typed(hint, default), Parameter.combine(SPELLED.get(name), told, shown)]
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))

    for name in (name for name in has if name not in ONLY_PYTHON):
        add(name, hints[name], has[name].default)
    for name, (kind, help, of) in OF_THE_COMMAND_LINE.items():
        if name not in has and (not of or of & has.keys()) and not (name == "json" and silent):
            add(name, kind, False if kind is bool else None, Parameter(help=help))
    return inspect.Signature(sorted(parameters, key=lambda each: each.kind))


def _typed(hint: Any, default: Any) -> Any:
    """Return the type of an option from that of a parameter: paths of files as such, several values as a list."""
    inner = [hint]
    for each in inner:
        inner += get_args(each) if get_origin(each) is not Literal else ()
    origins = {get_origin(each) for each in inner} - {os.PathLike}
    one: Any = Path if os.PathLike in [get_origin(each) for each in inner] else str if str in inner else hint
    kind = list[one] if any(isinstance(of, type) and issubclass(of, Iterable) for of in origins) else one
    kind = kind | None if default is None else kind
    return Annotated[kind, Parameter(converter=_value)] if one is Path or int in inner else kind


def _value(kind: Any, tokens: Any) -> Any:
    """Return a path or a whole number, or several paths: cyclopts rounds 1.5, and pathlib takes a blank as the current folder."""
    values = [token.value for token in tokens]
    if kind is int:
        return int(values[0])
    for value in values:
        if not value.strip() or value.startswith("--"):
            raise ValueError(f"{value!r} is {'an option' if value.strip() else 'blank'}; name a file or folder")
    return [*map(Path, values)] if get_origin(kind) is list else Path(values[0])


def _run(
    function: Callable[..., Any], *given: Any, print_config: bool = False, quiet: bool = False, **options: Any
) -> int:
    """Run a command, show its result and return the exit status."""
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    Bar.quiet = quiet
    has = [*inspect.signature(function).parameters]
    file = options.pop("json", None)
    if file not in (None, Path("-")):
        check_file_writable(file, "--json")
        if "json" in has:  # the function writes it
            options["json"], file = file, None
    if "chip" not in has and (chip := options.pop("chip", None)):
        for change in options.get("overrides", ()):
            if key_of(change) == "parallel.chip":
                without_effect(f"--set {change}", f"--chip {chip} is given, too")
        options["overrides"] = [*options.get("overrides", ()), f"parallel.chip={chip}"]
    if print_config:
        config = given[has.index("config" if "config" in has else "what")]
        made = api.load_config(config, options.get("overrides", ()))
        return _shown(Result(made.model_dump(mode="json"), dump_config(made).rstrip()), file)
    return _shown(function(*given, **options), file)


def _shown(result: Any, file: Path | None) -> int:
    """Print the result of a command, and return its exit status. file: of --json, which gets the result, too; -: only JSON."""
    if isinstance(result, api.Model):
        if result.stopped:  # a launcher takes any other status of a rank for a failure, and starts the ranks again
            return 0 if is_rank() else INTERRUPTED
        result = result.outcome
    if result is None or isinstance(result, int):
        return result or 0
    text = json.dumps(result, ensure_ascii=False, indent=2, default=_plain) if file else ""
    print(text if file == Path("-") else result)
    if file not in (None, Path("-")):
        try:
            file.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:  # that of a write, to a full disk, names no file
            error.filename = str(file)
            raise
    return 0 if getattr(result, "ok", True) else 1


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)


def usage_error(error: CycloptsError) -> str:
    """Return the message of an error of the command line, in one line."""
    error.verbose = False
    said, tokens = str(error).rstrip("."), error.unused_tokens or []
    if isinstance(error, UnusedCliTokensError):
        said = f"unrecognized arguments: {' '.join(tokens)}; put a text with blanks into quotes; an option takes one value: "
        said += "--set KEY=VALUE, and --keep A --keep B or --input A --input B for several"
    elif isinstance(error, UnknownCommandError) and tokens[0].startswith("-"):
        said = f"{tokens[0]}: options stand behind the command: pangu-sigma COMMAND {tokens[0]}"
    command = " ".join(["pangu-sigma", *(error.command_chain or ())])
    return f"{said}; see {command} --help"
