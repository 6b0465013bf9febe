"""From one form of a trained model to another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pangu_sigma.config import ConfigError
from pangu_sigma.convert.hf_folder import write_hf_folder
from pangu_sigma.convert.to_run import write_run
from pangu_sigma.stored.open import open_model
from pangu_sigma.train.first_checkpoint import check_absent
from pangu_sigma.writable import check_folder_writable

Form = Literal["hf", "run"]
_ITSELF = {"hf": "a Hugging Face style folder", "run": "a run"}


def convert_model(source: Path, output: Path, to: Form) -> Path:
    """Write the model in `source` to `output` in another form, whole or not at all.

    Raises ConfigError when `output` exists or `source` is of that form already, and what reading a run or a folder raises.
    """
    if to not in _ITSELF:
        raise ConfigError(f"to={to!r} is not known; use 'hf' or 'run'")
    check_absent(output, "as TO")
    check_folder_writable(output, "TO")
    model = open_model(source, "run", "hf")
    if model.kind == to:
        raise ConfigError(f"{source} is {_ITSELF[to]} already; to have it twice, copy the folder")
    return write_hf_folder(model, output) if to == "hf" else write_run(model, output)
