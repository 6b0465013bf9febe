"""Configurations that ship with the package, by name: files of `model_configs/` of a checkout, or of its copy in a wheel."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from pangu_sigma.config import ConfigError

_ENDINGS = (".yaml", ".yml")


def shipped_configs(kind: str = "") -> dict[str, Path]:
    """Return the files of the shipped configurations, by the name that `config_path` takes. kind: "finetune" for tasks."""
    folder = Path(str(files("pangu_sigma") / "model_configs"))  # a link in a checkout, a folder of files in a wheel
    return {file.stem: file for file in sorted((folder / kind).glob("*.yaml"))}


def config_path(name_or_path: str | os.PathLike[str], kind: str = "") -> Path:
    """Return the file of a shipped configuration by its name, or a path unchanged; an existing file wins over a shipped name.

    kind: as in `shipped_configs`.
    Raises ConfigError, which lists the shipped names, for a bare name that is neither a shipped name nor a file.
    """
    path = Path(name_or_path)
    if path.suffix in _ENDINGS or path.name != str(path) or path.is_file():
        return path
    shipped = shipped_configs(kind)
    if path.name not in shipped:
        raise ConfigError(
            f"{'task' if kind else 'configuration'} {path.name!r} is neither shipped nor a file; shipped: {', '.join(shipped)}; "
            f"the name of a file ends in {' or '.join(_ENDINGS)}"
        )
    return shipped[path.name]
