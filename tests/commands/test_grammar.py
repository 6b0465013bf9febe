"""The commands and Python say the same with the same words, and docs/commands.md says what they are.

An option has the name and the default of a parameter of the function beside its command in that page; DIFFERENCES lists what has
not, each with a reason.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pangu_sigma as ps
from pangu_sigma import cli
from pangu_sigma.generate.sampling import Sampling

ROOT = Path(__file__).parents[2]

ALLOWED = {"pangu_sigma", "pangu_sigma.api", "pangu_sigma.programs"} | {
    f"pangu_sigma.{name}" for name in ("chips", "config", "config_file", "shipped", "writable")
}
"""What commands may import besides each other: `api`, `programs`, and of the ground floor what their options need."""

DIFFERENCES = {
    "overrides": "an argument of `ps.load_config`, which makes the configuration",
    "print_config": "`print(config)`",
    "json": "`json.dump` of the result",
    "quiet": "the level of Python's `logging`",
    "on_step": "a function, which only Python has",
    "plan chip": "a --set of parallel.chip",
    "export routing": "an ablation, in Python",
    "generate routing": "an ablation, in Python",
    "generate prompts": "the lines of a file; a list in Python",
    "generate prompt": "not required where there are lines of a file",
}
"""Options without a parameter, and those with another default; of one command, or of several."""


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command by its name."""
    (found,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a title of docs/commands.md, without its head."""
    section = (ROOT / "docs" / "commands.md").read_text("utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def called(cell: str) -> list[list[ast.Call]]:
    """The calls of each example in a cell, a method after what it is a method of."""
    texts = [text.replace("…", "0") for text in re.findall(r"`([^`]+)`", cell) if text.startswith("ps.")]
    of = [[node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)] for text in texts]
    return [sorted(calls, key=lambda call: call.end_col_offset or 0) for calls in of]


def function_of(call: ast.Call) -> Callable[..., Any]:
    assert isinstance(call.func, ast.Attribute)
    return getattr(ps if isinstance(call.func.value, ast.Name) else ps.Model, call.func.attr)


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Defaults by name, with those of sampling for `**sampling`; a parameter without one has `inspect.Parameter.empty`."""
    found = {}
    for each in inspect.signature(function).parameters.values():
        if each.kind is inspect.Parameter.VAR_KEYWORD:
            found |= parameters(Sampling)
        elif each.name != "self":
            found[each.name] = list(each.default) if isinstance(each.default, tuple) else each.default
    return found


def defaults_of_options(command: argparse.ArgumentParser) -> dict[str, Any]:
    """Defaults by name; an option or argument that must be given has `inspect.Parameter.empty`."""
    return {
        action.dest: inspect.Parameter.empty if action.required else action.default
        for action in command._actions
        if action.dest != "help"
    }


def difference(name: str, command: argparse.ArgumentParser, functions: list[Callable[..., Any]]) -> set[str]:
    """Keys of DIFFERENCES for what a command has otherwise than functions."""
    has = defaults_of_options(command)
    wants: dict[str, Any] = {}
    for function in functions:
        wants |= parameters(function)
    missing = object()
    other = {key for key in has.keys() | wants.keys() if has.get(key, missing) != wants.get(key, missing)}
    return {key if key in DIFFERENCES else f"{name} {key}" for key in other}


def test_options_are_parameters_of_the_same_name_and_default():
    known, found = commands(), set()
    for form, python, *_ in rows("All commands"):
        for name in re.findall(r"`([a-z-]+)", form) if called(python) else ():
            found |= difference(name, known[name], [function_of(call) for call in called(python)[0]])
    assert found == DIFFERENCES.keys()


def test_a_difference_is_found():
    command = argparse.ArgumentParser()
    command.add_argument("model")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--json")

    def function(model: str, seed: int = 0, stop: tuple[str, ...] = ()) -> None: ...

    assert difference("x", command, [function]) == {"x seed", "x stop", "json"}


def test_the_page_lists_every_command_and_every_call_of_it_can_be_made():
    listed = {name for form, *_ in rows("All commands") for name in re.findall(r"`([a-z-]+)", form)}
    assert commands().keys() == listed
    shown = [call for _, python, *_ in rows("All commands") for calls in called(python) for call in calls]
    for call in shown:
        names = [*parameters(function_of(call))]
        assert {keyword.arg for keyword in call.keywords} <= set(names)
        assert len(call.args) <= len(names)
    promised = {function_of(call).__name__ for call in shown if not hasattr(ps.Model, function_of(call).__name__)}
    assert promised <= set(ps.__all__)


def test_every_option_of_the_page_exists():
    known = {name: set(command._option_string_actions) for name, command in commands().items()}
    missing = set()
    for options, where, *_ in rows("Options"):
        of = [known[name] for name in re.findall(r"[a-z-]+", where) if name in known]
        assert of, where
        asked = set(re.findall(r"--[a-z-]+", options))
        missing |= asked - set.union(*of)
        assert all(asked & each for each in of)
    assert missing == set()


def test_commands_import_nothing_but_the_python_face_and_their_options():
    def foreign(source: str) -> set[str]:
        found = set()
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {n for n in names if n.startswith(("pangu_sigma", "ascend_ops")) and n not in ALLOWED}
        return {name for name in found if not name.startswith("pangu_sigma.commands.")}

    files = sorted((ROOT / "src" / "pangu_sigma" / "commands").glob("*.py"))
    assert set().union(*(foreign(file.read_text("utf-8")) for file in files)) == set()
    assert foreign("import pangu_sigma.rre\nfrom pangu_sigma.config import A\nimport json") == {"pangu_sigma.rre"}
