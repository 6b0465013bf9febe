"""Opener of models on the disk, which detects the kind of a folder or file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from pangu_sigma.checkpoint.checkpoint import STATE, checkpoints
from pangu_sigma.checkpoint.model_files import CONFIG_FILE
from pangu_sigma.checkpoint.run_folder import CHECKPOINTS
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import shipped_configs
from pangu_sigma.foreign.dense_files import is_dense_model
from pangu_sigma.sealed import SEAL
from pangu_sigma.stored.alpha import StoredAlpha
from pangu_sigma.stored.export import GRAPH_FILE, StoredExport
from pangu_sigma.stored.hf_config import MODEL_TYPE
from pangu_sigma.stored.hf_folder import CONFIG_JSON, StoredFolder
from pangu_sigma.stored.model import Kind, StoredModel
from pangu_sigma.stored.run import StoredCheckpoint, StoredRun

ANSWERING: tuple[Kind, ...] = ("run", "export", "hf", "alpha")
"""Kinds of models with everything that answering takes: weights, sizes, a vocabulary, tables."""

KIND_NAMES: dict[Kind, str] = {
    "run": "a run folder",
    "checkpoint": "the folder of a checkpoint",
    "export": "an exported model",
    "hf": "a Hugging Face style folder",
    "alpha": "a PanGu-α in the files of others",
}
_SIGNS: dict[Kind, tuple[str, str]] = {
    "run": (CONFIG_FILE, "`train`"),
    "export": (GRAPH_FILE, "`export`"),
    "hf": (CONFIG_JSON, "`export --format hf`"),
}
"""Kind of model → file that its folder must have, and command that writes the folder."""


_CLASSES: dict[Kind, type[StoredModel]] = {
    "run": StoredRun,
    "checkpoint": StoredCheckpoint,
    "export": StoredExport,
    "hf": StoredFolder,
    "alpha": StoredAlpha,
}


@overload
def open_model(path: Path, wanted: Literal["run"], /, *, verified: bool = True) -> StoredRun: ...
@overload
def open_model(path: Path, wanted: Literal["export"], /, *, verified: bool = True) -> StoredExport: ...
@overload
def open_model(path: Path, *wanted: Kind, verified: bool = True) -> StoredModel: ...
def open_model(path: Path, *wanted: Kind, verified: bool = True) -> StoredModel:
    """Open the model in a folder or file; only the files that decide the model's kind are read.

    wanted: kinds that the caller accepts; without any, all. verified: False to skip the hashes of the weights' files, whose
    verification reads them whole.
    Raises ConfigError for a model of another kind, and LayoutError for files that are no model.
    """
    kind = kind_of(path)
    if wanted and not _is_one(path, wanted):
        needs = " or ".join(KIND_NAMES[kind] for kind in wanted)
        if kind != "alpha":
            of = "that it is in" if kind == "checkpoint" else "that it came from"
            fix = f"; name the run {of}" if "run" in wanted and kind != "run" else ""
            raise ConfigError(f"{path} is {KIND_NAMES[kind]}, not {needs}{fix}")
        if is_dense_model(path):
            raise ConfigError(f"{path} is {KIND_NAMES[kind]}, not {needs}; `pangu-sigma inherit` makes a run of it")
        raise ConfigError(f"{path} is not {needs}: {_why_not(path, wanted)}")
    return _CLASSES[kind](path, verified)


def _is_one(path: Path, wanted: Sequence[Kind]) -> bool:
    """Return True if a path is a model of one of the kinds `wanted`; what is of no kind at all is no PanGu-α."""
    kind = kind_of(path)
    return kind in wanted and (kind != "alpha" or is_dense_model(path))


def _why_not(path: Path, wanted: Sequence[Kind]) -> str:
    """Return why a path is no model of the kinds `wanted`, and the fix."""
    if path.suffix in (".yaml", ".yml") or (not path.exists() and str(path) in shipped_configs()):
        return f"it is a configuration; `pangu-sigma train {path}` makes a run of it"
    if not path.exists():
        return "it is not there; check the path"
    if path.is_file() and _is_one(path.parent, wanted):
        return f"it is a file of one; name its folder, {path.parent}"
    files, makers = zip(*(_SIGNS[kind] for kind in wanted if kind in _SIGNS), strict=True)
    return f"it has no {' and no '.join(files)}; pass a folder that {' or '.join(makers)} wrote"


def kind_of(path: Path) -> Kind:
    """Return the kind of a model on the disk, by the files that each kind must have; "alpha" for files of another project."""
    if (path / GRAPH_FILE).exists():
        return "export"
    if (path / CONFIG_FILE).exists() or checkpoints(path / CHECKPOINTS):
        return "run"
    if (path / STATE).exists():
        return "checkpoint"
    return "hf" if _is_folder(path) else "alpha"


def _is_folder(path: Path) -> bool:
    """Return True if `write_hf_folder` wrote a folder, even if it was changed since."""
    try:
        with open(path / CONFIG_JSON, "rb") as stream:
            return (path / SEAL).exists() or f'"{MODEL_TYPE}"'.encode() in stream.read(1 << 16)
    except OSError:
        return False
