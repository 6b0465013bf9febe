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
_CLASSES: tuple[type[StoredModel], ...] = (StoredRun, StoredCheckpoint, StoredExport, StoredFolder, StoredAlpha)


@overload
def open_model(path: Path, accepted: Literal["run"], /, *, verified: bool = True) -> StoredRun: ...
@overload
def open_model(path: Path, accepted: Literal["export"], /, *, verified: bool = True) -> StoredExport: ...
@overload
def open_model(path: Path, *accepted: Kind, verified: bool = True) -> StoredModel: ...
def open_model(path: Path, *accepted: Kind, verified: bool = True) -> StoredModel:
    """Open the model in a folder or file; only the files that decide the model's kind are read.

    accepted: kinds that the caller accepts; without any, all. verified: False to skip the hashes of the weights' files, whose
    verification reads them whole.
    Raises ConfigError for a model of another kind, and LayoutError for files that are no model.
    """
    if accepted and (problem := _problem(path, accepted)):
        raise ConfigError(problem)
    class_of_kind = {cls.kind: cls for cls in _CLASSES}
    return class_of_kind[kind_of(path)](path, verified)


def _problem(path: Path, accepted: Sequence[Kind]) -> str | None:
    """Return the message, with its fix, that a path is no model of the accepted kinds; None if it is one."""
    kind, required = kind_of(path), " or ".join(KIND_NAMES[name] for name in accepted)
    if kind == "alpha" and not is_dense_model(path):  # "alpha" is also the kind of whatever is no model
        return f"{path} is not {required}: {_why_no_model(path, accepted)}"
    if kind in accepted:
        return None
    fix = ""
    if kind == "alpha":
        fix = "; `pangu-sigma inherit` makes a run of it"
    elif "run" in accepted:
        fix = f"; name the run that it {'is in' if kind == 'checkpoint' else 'came from'}"
    return f"{path} is {KIND_NAMES[kind]}, not {required}{fix}"


def _why_no_model(path: Path, accepted: Sequence[Kind]) -> str:
    """Return the end of a message: why a path is no model at all, and how to name or make one of the accepted kinds."""
    if path.suffix in (".yaml", ".yml") or (not path.exists() and str(path) in shipped_configs()):
        return f"it is a configuration; `pangu-sigma train {path}` makes a run of it"
    if not path.exists():
        return "it is not there; check the path"
    if path.is_file() and _problem(path.parent, accepted) is None:
        return f"it is a file of one; name its folder, {path.parent}"
    # the files that a folder of an accepted kind must have, and the commands that write such folders
    files, commands = zip(*(_SIGNS[kind] for kind in accepted if kind in _SIGNS), strict=True)
    return f"it has no {' and no '.join(files)}; pass a folder that {' or '.join(commands)} wrote"


def kind_of(path: Path) -> Kind:
    """Return the kind of a model on the disk, by the files that each kind must have; "alpha" for anything else."""
    if (path / GRAPH_FILE).exists():
        return "export"
    if (path / CONFIG_FILE).exists() or checkpoints(path / CHECKPOINTS):
        return "run"
    if (path / STATE).exists():
        return "checkpoint"
    return "hf" if _is_hf_folder(path) else "alpha"


def _is_hf_folder(path: Path) -> bool:
    """Return True if a path is a Hugging Face style folder of this project, even if its files were changed."""
    try:
        with open(path / CONFIG_JSON, "rb") as stream:
            return (path / SEAL).exists() or f'"{MODEL_TYPE}"'.encode() in stream.read(1 << 16)
    except OSError:
        return False
