"""Does inheriting pay? A small dense PanGu-α learns Chinese, then goes on as a Σ, goes on dense, or a Σ begins with nothing.

All three learn the same tokens of four domains in the same order, with several seeds, each at several learning rates; they are
compared at the best rate of each, on all held-out tokens, paired by sample. The best rate of a variant is that of the lowest
held-out loss, mean over seeds and domains, on the samples that training evaluates on. A seed decides initial values, the order of
samples and the routing tables. The parent has the vocabulary of the four domains, but one domain and one embedding slot. What
comes out is in the folder: differences.txt and .json, curves.png, and cases.json, the seconds of each case.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pangu_sigma as ps
from experiments.cases import Cases, train_whole
from experiments.compare.variants import TrainedVariant, write_comparison
from experiments.small import SMALL, SMALL_DENSE, Changes, drawn, evaluated, schedule, tiny
from pangu_sigma.config import Config

WAYS = {"inherited": "Σ inherited", "continued": "α continued", "scratch": "Σ from scratch"}
"""What each variant is called in the tables."""


def compare_inherited(folder: Path, seeds: Sequence[int], rates: Sequence[str], overrides: Sequence[str] = ()) -> str:
    """Train what is not trained yet, compare, and return what differences.txt holds."""
    data = Path("data", folder.name)  # of its own: its slots have fewer rows than sigma_tiny's
    sparse: list[Changes] = [
        SMALL,
        schedule(200, 2e-3, 0.0),
        evaluated(50, 2, 100),
        {"data.path": str(data)},
        overrides,
    ]
    networks: dict[str, list[Changes]] = {"inherited": sparse, "continued": [*sparse, SMALL_DENSE], "scratch": sparse}
    parent_keys = [*networks["continued"], chinese_only(data)]
    cases = Cases(folder, {"set": list(overrides)}, len(seeds) * (3 + 3 * len(rates)))
    ps.prepare_data(tiny(*sparse))
    ps.prepare_data(tiny(*parent_keys))
    for seed in seeds:
        parent = folder / f"parent_{seed}"
        cases.run(parent.name, train_whole, tiny(*parent_keys, drawn(seed)), parent)
        for name in ("inherited", "continued"):
            begun = folder / f"{name}_{seed}"
            cases.run(begun.name, inherit_once, parent, tiny(*networks[name], drawn(seed)), begun)
        for rate in rates:
            for name, keys in networks.items():
                run = folder / f"{name}_{seed}_{rate}"
                if name != "scratch":
                    _copy_once(folder / f"{name}_{seed}", run)
                config = tiny(*keys, drawn(seed), {"train.optimizer.peak_lr": float(rate)})
                cases.run(run.name, train_whole, config, run)
    first, *others = (
        TrainedVariant(title, {rate: [folder / f"{name}_{seed}_{rate}" for seed in seeds] for rate in rates})
        for name, title in WAYS.items()
    )
    return f"{write_comparison(first, others, folder)}\n{cases.summary()}"


def chinese_only(data: Path) -> dict[str, Any]:
    """Keys of a parent that reads Chinese alone, in the tokens of `data`."""
    return {
        "domains": [{"name": "zh", "format": "text", "language": "zh", "slot": "zh"}],
        "data.domains_per_step": 1,
        "data.domain_sets": 1,
        "data.path": f"{data}_zh",
        "vocabulary.english_model": str(data / "tokenizer" / "english.model"),
    }


def inherit_once(parent: Path, config: Config, run: Path) -> bool:
    """Make a run that inherits from its parent, if it is not there."""
    if not run.exists():
        ps.inherit(parent, config, run)
    return True


def _copy_once(begun: Path, run: Path) -> None:
    if not run.exists():
        half = run.with_name(f"{run.name}.copy")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(begun, half)
        half.rename(run)
