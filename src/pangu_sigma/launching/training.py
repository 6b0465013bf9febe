"""Training as a job to launch, and the facts that its nodes must have in common."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.parallel.layout import axes_text


def training_command(file: Path, run: Path, overrides: list[str], ascend: bool = False) -> list[str]:
    """The command that every rank runs: `pangu-sigma train`, which resumes in a run folder that has a checkpoint."""
    settings = [text for override in overrides for text in ("--set", override)]
    device = ["--device", "ascend"] if ascend else []
    return [sys.executable, "-m", "pangu_sigma", "train", str(file), "--run", str(run), *device, *settings]


def check_ranks(config: Config, processes: int | None) -> None:
    """Raise ConfigError if the configuration does not lay out `processes` ranks, the number that the user expects."""
    p = config.parallel
    if processes not in (None, p.ranks):
        raise ConfigError(
            f"--processes {processes} is not what the parallel section lays out: {axes_text(p)} is {p.ranks} ranks; change one of "
            "them, for example --set parallel.data=…"
        )


def training_facts(config: Config) -> dict[str, str]:
    """Values, by name, that must be the same on all nodes for a run to be one run.

    They are every key of the configuration; hashes of vocabulary, routing tables and prepared data; versions of the packages that
    compute. Raises ConfigError or DataError if the prepared data does not fit or is not there. Needs no device.
    """
    from pangu_sigma.checkpoint.run_folder import read_prepared

    tokenizer, table = read_prepared(config)
    facts = dict(_values_by_path(config.model_dump(mode="json")))
    facts |= {name: importlib.metadata.version(name) for name in ("pangu-sigma", "mindspore", "numpy")}
    data = Path(config.data.path)
    return facts | {
        "vocabulary": tokenizer.hash[:16],
        "routing tables": table.hash[:16],
        "prepared data": _data_hash(data)[:16],
    }


def _values_by_path(tree: Any, path: str = "") -> dict[str, str]:
    """Values of a tree by their path, such as train.optimizer.beta1."""
    if not isinstance(tree, dict | list):
        return {path: str(tree)}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        key: value
        for name, child in items
        for key, value in _values_by_path(child, f"{path}.{name}".lstrip(".")).items()
    }


def _data_hash(data: Path) -> str:
    """SHA-256 over the content hash in the manifest, token counts of the training text, and name and size of every token file.

    Other data shows by it, and a copy that is cut short.
    """
    digest = hashlib.sha256((data / "frequencies.npy").read_bytes())
    digest.update((load_manifest(data).content_hash or "").encode())
    for file in sorted([*data.glob("*.bin"), *data.glob("*.idx")]):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()
