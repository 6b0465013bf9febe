"""From one form of a trained model to another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pangu_sigma.checkpoint.model_files import CONFIG_FILE
from pangu_sigma.config import ConfigError
from pangu_sigma.convert.hf_folder import is_hf_folder, read_hf_folder, write_hf_folder
from pangu_sigma.convert.to_run import write_run
from pangu_sigma.convert.trained_model import TrainedModel, open_trained_run
from pangu_sigma.foreign.dense_model import LayoutError
from pangu_sigma.train.first_checkpoint import check_absent
from pangu_sigma.writable import check_folder_writable

Form = Literal["hf", "alpha", "run"]
_ITSELF = {"hf": "a Hugging Face style folder", "run": "a run"}


def convert_model(source: Path, output: Path, to: Form) -> Path:
    """Write the model in `source` to `output` in another form, whole or not at all.

    Raises ConfigError when `output` exists or `source` is of that form already, LayoutError for what cannot be written so, and what
    reading a run or a folder raises.
    """
    if to not in ("hf", "alpha", "run"):
        raise ConfigError(f"to={to!r} is not known; use 'hf', 'alpha' or 'run'")
    check_absent(output, "as TO")
    check_folder_writable(output, "TO")
    model = open_trained(source)
    if model.layout == to:
        raise ConfigError(f"{source} is {_ITSELF[to]} already; to have it twice, copy the folder")
    if to == "hf":
        return write_hf_folder(model, output)
    if to == "run":
        return write_run(model, output)
    from pangu_sigma.convert.to_alpha import write_dense_alpha

    return write_dense_alpha(model, output)


def open_trained(path: Path) -> TrainedModel:
    """The model in a run folder or in a Hugging Face style folder of ours. Raises LayoutError for anything else."""
    if (path / CONFIG_FILE).exists():
        return open_trained_run(path)
    if is_hf_folder(path):
        return read_hf_folder(path)
    raise LayoutError(
        f"{path} is neither a run folder nor a Hugging Face style folder of this project; files of a released PanGu-α become a run "
        "with `pangu-sigma inherit`"
    )
