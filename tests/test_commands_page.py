"""docs/commands.md shows commands and calls that there are."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pangu_sigma as ps
from pangu_sigma import cli
from pangu_sigma.generate.sampling import Sampling

ROOT = Path(__file__).parents[1]


def options_of_commands() -> dict[str, set[str]]:
    """The options of each command by its name."""
    app = cli.make_app()
    collections = {name: app[name].assemble_argument_collection() for name in app if not name.startswith("-")}
    return {name: {each for argument in found for each in argument.names} for name, found in collections.items()}


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a title of docs/commands.md, without its head."""
    section = (ROOT / "docs" / "commands.md").read_text("utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def called(cell: str) -> list[ast.Call]:
    """The calls of the examples in a cell."""
    texts = [text.replace("…", "0") for text in re.findall(r"`([^`]+)`", cell) if text.startswith("ps.")]
    return [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]


def function_of(call: ast.Call) -> Callable[..., Any]:
    assert isinstance(call.func, ast.Attribute)
    return getattr(ps if isinstance(call.func.value, ast.Name) else ps.Model, call.func.attr)


def names_of(function: Callable[..., Any]) -> list[str]:
    """The names of parameters, with those of sampling for `**sampling`."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    return [*names, *inspect.signature(Sampling).parameters] if "sampling" in names else names


def test_the_page_lists_every_command_and_every_call_of_it_can_be_made():
    listed = {name for form, *_ in rows("All commands") for name in re.findall(r"`([a-z-]+)", form)}
    assert options_of_commands().keys() == listed
    shown = [call for _, python, *_ in rows("All commands") for call in called(python)]
    assert len(shown) > 15
    for call in shown:
        assert {keyword.arg for keyword in call.keywords} <= set(names_of(function_of(call)))
        assert len(call.args) <= len(names_of(function_of(call)))
    promised = {function_of(call).__name__ for call in shown if not hasattr(ps.Model, function_of(call).__name__)}
    assert promised <= set(ps.__all__)


def test_every_option_of_the_page_exists():
    known = options_of_commands()
    missing = set()
    for options, where, *_ in rows("Options"):
        of = [known[name] for name in re.findall(r"[a-z-]+", where) if name in known]
        assert of, where
        asked = set(re.findall(r"--[a-z-]+", options))
        missing |= asked - set.union(*of)
        assert all(asked & each for each in of)
    assert missing == set()
