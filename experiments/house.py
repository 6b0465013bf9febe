"""Size and shape of the repository: `python -m experiments.house [--at COMMIT …]`, a column for each commit and for the work tree.

Lines are lines of Python files. A line of code is not blank, and is neither comment, docstring nor import. A room is a
folder of the package, or all files that lie in no folder. The core is the three ideas (inherit, rre, ecss), the network,
the step and the making of its batches: CORE. The budgets of tests/test_house.py count with `code_of_rooms`.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tempfile
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "src/pangu_sigma/"
CORE = (
    *(
        "inherit/",
        "rre/",
        "ecss/",
        "model/",
        "optimizer/",
        "ranks/plans",
        "ranks/layout",
        "ranks/experts",
        "ranks/reduce",
    ),
    *(f"training/{name}.py" for name in ("step", "loop", "feed", "backend", "evaluator")),
    *(f"data/{name}.py" for name in ("batches", "order", "token_files", "prepared")),
)
"""Folders and files of the package that are the core."""
_NO_CODE = (
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
)


def code_lines(source: str) -> int:
    """Return the number of lines that hold code: no blank lines, comments, docstrings and imports."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())) | ast.Import() | ast.ImportFrom():
                lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def code_of_rooms(package: Path) -> dict[str, int]:
    """Return the lines of code of each room of the package in this folder; files in no folder are the room "."."""
    rooms: Counter[str] = Counter()
    for file in package.rglob("*.py"):
        inner = file.relative_to(package)
        rooms[inner.parts[0] if len(inner.parts) > 1 else "."] += code_lines(file.read_text(encoding="utf-8"))
    return dict(sorted(rooms.items()))


def function_imports(source: str) -> int:
    """Number of imports of the project's own modules inside of functions."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    inner = {id(found): found for function in functions for found in ast.walk(function)}
    return sum(
        isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pangu_sigma", "ascend_ops"))
        for node in inner.values()
    )


def measures(root: Path) -> dict[str, str]:
    """What is counted in a checkout, by name."""
    python = {str(f.relative_to(root)): f.read_text(encoding="utf-8") for f in sorted(root.rglob("*.py"))}
    lines = {name: text.count("\n") for name, text in python.items()}
    product = {name.removeprefix(PACKAGE): text for name, text in python.items() if name.startswith(PACKAGE)}
    code = {name: code_lines(text) for name, text in product.items()}
    core = sum(count for name, count in code.items() if name.startswith(CORE))
    names = Counter(Path(name).name for name in product if not name.endswith("__init__.py"))
    longest = max(product, key=lambda name: product[name].count("\n"))
    pages = {str(f.relative_to(root)): len(f.read_text(encoding="utf-8").split()) for f in root.rglob("*.md")}
    readmes = sum(words for name, words in pages.items() if name.endswith("README.md") and not name.startswith("docs/"))
    return {
        **{f"lines of {area}/": f"{_sum(lines, area):,}" for area in ("src", "tests", "experiments", "ascend_ops")},
        "files of src/": f"{len(product):,}",
        "longest file of src/": f"{longest} {product[longest].count(chr(10))}",
        "lines of code of src/": f"{sum(code.values()):,}",
        "share of the core": f"{100 * core / sum(code.values()):.1f} %",
        "base names in several folders": f"{sum(count > 1 for count in names.values())}",
        "imports inside of functions": f"{sum(map(function_imports, product.values()))}",
        "words of docs/": f"{_sum(pages, 'docs'):,}",
        "words of READMEs": f"{readmes:,}",
        **{f"code of {room}": f"{count:,}" for room, count in code_of_rooms(root / PACKAGE).items()},
        "code of ascend_ops/": f"{sum(code_of_rooms(root / 'ascend_ops').values()):,}",
        "lines of run_scripts/": f"{sum(f.read_text().count(chr(10)) for f in (root / 'run_scripts').glob('*.sh')):,}",
    }


def _sum(counts: dict[str, int], area: str) -> int:
    return sum(count for name, count in counts.items() if name.startswith(f"{area}/"))


def of_commit(commit: str) -> dict[str, str]:
    """What is counted in a commit; the empty string stands for the files that git tracks, as they are now."""
    with tempfile.TemporaryDirectory() as folder:
        tree = commit or subprocess.run(["git", "stash", "create"], cwd=ROOT, capture_output=True, text=True).stdout
        archive = subprocess.run(["git", "archive", tree.strip() or "HEAD"], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        return measures(Path(folder))


def main() -> None:
    """Print the columns that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--at", nargs="+", default=[], metavar="COMMIT", help="count these commits, too")
    columns = {name or "now": of_commit(name) for name in [*parser.parse_args().at, ""]}
    width = max(len(value) for column in columns.values() for value in column.values())
    print(f"{'':<30}", *(f"{name[:width]:>{width}}" for name in columns))
    for key in dict.fromkeys(key for column in columns.values() for key in column):
        print(f"{key:<30}", *(f"{column.get(key, '-'):>{width}}" for column in columns.values()))


if __name__ == "__main__":
    main()
