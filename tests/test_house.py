"""The house that the code lives in: nothing imports upward, nothing imports in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    ["errors", "config", "config_file", "domains", "device", "mindformers_import", "shipped"],
    ["rre"],
    ["model", "parallel"],
    ["data", "ecss", "optimizer"],
    ["checkpoint"],
    ["generate", "launching"],
    ["train"],
    ["ascend", "evaluate"],
    ["convert"],
    ["planning", "mindformers_adapter", "bench"],
    ["api"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
"""Folders and files of `pangu_sigma` from the ground up. A folder imports its own files and those of lower floors. Files of the
ground floor may import each other."""


def sources() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "ascend_ops").rglob("*.py")]
    found = {}
    for file in files:
        base = ROOT / "src" if (ROOT / "src") in file.parents else ROOT
        parts = file.relative_to(base).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(modules: dict[str, Path]) -> dict[str, set[str]]:
    """What each module imports of the others, inside functions too; not under `if TYPE_CHECKING`."""
    edges: dict[str, set[str]] = {}
    for name, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        edges[name] = set()
        for node in ast.walk(tree):
            if id(node) in typing_only:
                continue
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    edges[name] |= {inner if inner in modules else node.module} & modules.keys()
            elif isinstance(node, ast.Import):
                edges[name] |= {alias.name for alias in node.names} & modules.keys()
        edges[name].discard(name)
    return edges


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first found; empty when there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(edges[module]):
            if found := visit(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in edges if (found := visit(module, []))), [])


def room(module: str) -> str:
    """The folder or file of `pangu_sigma` that a module belongs to."""
    return module.removeprefix("pangu_sigma.").split(".")[0]


@pytest.fixture(scope="module")
def edges() -> dict[str, set[str]]:
    return imports(sources())


def test_no_module_imports_in_a_circle(edges):
    assert circle(edges) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"], "the search finds one where there is one"


def test_every_room_has_a_floor(edges):
    rooms = {room(module) for module in edges if module.startswith("pangu_sigma.")}
    assert sorted(rooms) == sorted(name for floor in FLOORS for name in floor)


def test_no_folder_imports_one_above_it(edges):
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    upward = [
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in others
        if module.startswith("pangu_sigma.")
        and other.startswith("pangu_sigma.")
        and room(module) != room(other)
        and height[room(module)] <= height[room(other)]
        and height[room(module)] > 0
    ]
    upward += [
        f"{m} imports {o}"
        for m, others in edges.items()
        for o in others
        if height.get(room(m)) == 0 and height.get(room(o), 0) > 0
    ]
    assert upward == []


def test_the_operators_import_nothing_of_the_product(edges):
    below = {
        m: o
        for m, others in edges.items()
        for o in others
        if m.startswith("ascend_ops") and o.startswith("pangu_sigma")
    }
    assert below == {}


def test_routing_and_configuration_do_not_load_mindspore():
    """Routing belongs to the data pipeline, and a wrong configuration is refused at once."""
    pure = ("rre.table", "rre.plan", "rre.capacity", "config", "config_file", "domains", "errors", "parallel.layout")
    loads = "; ".join(f"import pangu_sigma.{name}" for name in pure)
    code = f"import sys; {loads}; print([m for m in ('mindspore', 'mindformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
