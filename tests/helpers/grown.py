"""A trained run of three domains, and text and configurations of what it may grow into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tiny import TINY_WORDS, tiny_tree
from pangu_sigma.checkpoint.checkpoint import newest_checkpoint
from pangu_sigma.config import Config
from pangu_sigma.data.manifest import Manifest, load_manifest
from pangu_sigma.data.prepare.extension import extension_of
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.stored.open import open_model

LAW = {"name": "law", "language": "zh", "slot": "law"}


def write_law(path: Path, text: Path) -> None:
    """The text of the three domains, and documents of a fourth, which has the words of one of them."""
    lines = text.read_text(encoding="utf-8")
    draw = np.random.default_rng(1)
    for i in range(60):
        words = draw.choice(TINY_WORDS["zh"], int(draw.integers(20, 60)))
        lines += json.dumps({"domain": "law", "text": "".join([*words, str(i)])}, ensure_ascii=False) + "\n"
    path.write_text(lines, encoding="utf-8")


def prepare_extension(config: Config, inputs: list[Path]) -> Manifest:
    """Prepare the domains that data.path lacks, as `prepare-data --extend` does, and load the manifest of all."""
    path = Path(config.data.path)
    new_config, vocabulary = extension_of(config)
    prepare(new_config, inputs, path, old=vocabulary)
    return load_manifest(path, [domain.name for domain in config.domains])


def law_tree(data: Path, run: Path | None = None) -> dict[str, Any]:
    """The configuration with the new domain in front, in a slot of its own. run: whose vocabulary is kept."""
    tree = tiny_tree(data)
    tree["name"] = "law"
    tree["domains"] = [LAW, *tree["domains"]]
    tree["train"] |= {"batch_size": 6}
    tree["data"]["domains_per_step"] = 3
    if run is not None:
        tree["vocabulary"] = {"keep": str(run)}
    return tree


def saved_arrays(run: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint of a run, by file and name."""
    opened = open_model(run, "run")
    files = newest_checkpoint(opened.checkpoints, opened.identity).files
    return {f"{file} {name}": np.array(a.values) for file, arrays in files.items() for name, a in arrays.items()}
