"""Modules that a stranger left in the working folder, under the names of others: who imports one is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def strangers(folder: Path) -> Callable[[], list[str]]:
    """Fill a folder, and return a function that lists the modules of it that were executed."""
    folder.mkdir(exist_ok=True)
    for name in (*sys.stdlib_module_names, "mindspore", "numpy", "pangu_sigma", "pip", "sitecustomize", "xxhash"):
        (folder / f"{name}.py").write_text(
            f"open({str(folder / f'{name}.ran')!r}, 'w').close()\nraise SystemExit({name!r})\n"
        )
    return lambda: sorted(file.stem for file in folder.glob("*.ran"))
