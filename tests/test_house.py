"""The house that the code lives in: nothing imports upward or in a circle, no room is larger than its budget, and no text points to
a document that is not here. The rules for imports are contracts in pyproject.toml."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.house import code_of_rooms

ROOT = Path(__file__).parents[1]

BUDGETS = {
    ".": 2032,
    "checkpoint": 901,
    "convert": 678,
    "data": 2309,
    "ecss": 378,
    "evaluate": 766,
    "finetune": 479,
    "foreign": 943,
    "generate": 1471,
    "held_out": 445,
    "inherit": 832,
    "inspection": 300,
    "mindformers_adapter": 273,
    "model": 374,
    "npu": 2349,
    "optimizer": 97,
    "ranks": 931,
    "rre": 409,
    "serve": 1025,
    "stored": 673,
    "text": 927,
    "training": 1412,
}
"""Most lines of code of each room (experiments/house.py counts them). A budget goes down when its room gets smaller; a commit that
raises one says why."""

ELSEWHERE = re.compile(r"\bspec §|\bdesign (decision|§)|\(spec[:,\s]", re.IGNORECASE)
"""References to documents that are not in the repository."""


def test_imports_keep_to_the_contracts():
    # in a process of its own, because it disables the loggers of this one
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_room_is_larger_than_its_budget():
    rooms = code_of_rooms(ROOT / "src" / "pangu_sigma")
    assert rooms.keys() == BUDGETS.keys()
    assert {room: (count, BUDGETS[room]) for room, count in rooms.items() if count > BUDGETS[room]} == {}


def comments_and_strings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of everything in Python that is written for people."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.splitlines(), token.start[0])


def references_elsewhere(suffix: str, text: str) -> list[int]:
    """Lines of a file that refer to a document that is not in the repository."""
    lines = comments_and_strings(text) if suffix == ".py" else enumerate(text.splitlines(), 1)
    return [number for number, line in lines if ELSEWHERE.search(line)]


def test_no_text_refers_to_a_document_that_is_not_here():
    suffixes = {".py", ".md", ".yaml", ".sh", ".h", ".cpp", ".cc"}
    folders = ("src", "ascend_ops", "examples", "experiments", "docs", "model_configs", "run_scripts", "tests")
    files = [
        f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in suffixes and f != Path(__file__)
    ]
    files += ROOT.glob("*.md")
    pointing = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted(files)
        for line in references_elsewhere(file.suffix, file.read_text(encoding="utf-8"))
    ]
    assert pointing == []
    code = 'def f(spec: int): ...\n"""\nAs (spec §1) has it."""\n# Design decision 3'
    assert references_elsewhere(".py", code) == [3, 4]
    assert references_elsewhere(".md", "a\n(Spec: b)\na design\nspecial (special)") == [2]


def test_the_long_files_of_tests_are_there(pytestconfig: pytest.Config):
    """tests/conftest.py begins with them; the list would rot in silence."""
    conftest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    assert [name for name in conftest.LONG if not (ROOT / "tests" / name).exists()] == []


def test_no_module_is_called_utils():
    names = {"util.py", "utils.py", "helpers.py", "common.py", "misc.py"}
    folders = ("src", "ascend_ops", "experiments")
    assert [file for folder in folders for file in (ROOT / folder).rglob("*.py") if file.name in names] == []


NO_NAMES = {"each", "found", "had", "it", "known", "made", "mine", "said", "some", "there", "those", "told"}
"""Pronouns, participles and adverbs that say nothing of a thing (prose has "those of" for the same fault)."""


def bound_names(node: ast.AST) -> Iterator[str]:
    """The name that a node gives to a variable, a parameter, a function or a class."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name.strip("_")
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name.strip("_")


def test_things_have_nouns_as_names():
    files = sorted((ROOT / "src").rglob("*.py"))
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    unclear = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if NO_NAMES & {*bound_names(node)}
    ]
    unclear += [str(file.relative_to(ROOT)) for file, text in texts.items() if re.search("[Tt]hose of", text)]
    assert unclear == []
