"""The configurations of comparisons: `sigma_paper_tiny`, or smaller models on its four domains, and what their variants change."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config
from pangu_sigma.config_file import Override, config_path, load_config

SMALL: dict[str, Any] = {
    "model.hidden": 128,
    "model.ffn": 512,
    "model.heads": 4,
    "model.dense_layers": 2,
    "model.rre_layers": 2,
    "model.slot_rows": 4096,
}
"""The Σ of a comparison in which many models are trained."""
SMALL_DENSE = {"model.dense_layers": 4, "model.rre_layers": 0}
"""What makes it a dense model of the same active size; the embedding slots stay."""
ALPHA = {"name": "alpha_tiny", "model.dense_layers": 6, "model.rre_layers": 0}
"""What makes the shipped Σ a dense model of the same active size."""

Changes = Mapping[str, Any] | Sequence[Override]
"""Changed keys of a configuration: values by key, or overrides as the command line has them."""


def tiny(*changes: Changes, base: str = "sigma_paper_tiny") -> Config:
    """A shipped configuration with changed keys, the later ones last."""
    overrides: list[Override] = []
    for each in changes:
        overrides += each.items() if isinstance(each, Mapping) else each
    return load_config(config_path(base), overrides)


def schedule(steps: int, peak_lr: float, end_lr: float) -> dict[str, Any]:
    """Keys of a training whose learning rate warms up over a tenth of the steps and decays over the others."""
    return {
        "train.steps": steps,
        "train.optimizer.peak_lr": peak_lr,
        "train.optimizer.warmup_steps": steps // 10,
        "train.optimizer.decay_steps": steps - steps // 10,
        "train.optimizer.end_lr": end_lr,
    }


def evaluated(interval: int, batches: int, checkpoint_interval: int) -> dict[str, Any]:
    """Keys that say when a training evaluates and saves; it keeps one checkpoint."""
    return {
        "train.eval_interval": interval,
        "train.eval_batches": batches,
        "train.checkpoint_interval": checkpoint_interval,
        "train.keep_checkpoints": 1,
    }


def drawn(seed: int, tables: int = 1) -> dict[str, Any]:
    """Keys of a seed, which decides initial values, the order of samples and the routing tables.

    tables: how many of them a seed needs for itself: layer l draws from routing.seed + l.
    """
    return {"seed": seed, "routing.seed": tables * (seed - 1)}


def add_options(parser: argparse.ArgumentParser, folder: str, rates: Sequence[str] = ()) -> argparse._ActionsContainer:
    """Declare what every comparison takes. folder: the default one, in runs/. rates: default learning rates; () for none.

    Returns the group of options of which one may be given: --rates, and other ways to say them.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    group = parser.add_mutually_exclusive_group() if rates else parser  # no help is printed of an empty group
    if rates:
        group.add_argument(
            "--rates", nargs="+", default=list(rates), help="peak learning rates, of which each has its best"
        )
    parser.add_argument("--folder", type=Path, default=Path("runs", folder), help="where runs and results are kept")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of all trainings")
    return group
