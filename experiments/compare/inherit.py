"""Does inheriting pay? A small dense PanGu-α learns Chinese, then goes on as a Σ, goes on dense, or a Σ begins with nothing.

It goes on as the paper's Σ, and as one in four segments. All learn the same tokens of four domains in the same order, with
several seeds, each at several learning rates; they are compared at the best rate of each, on all held-out tokens, paired by
sample. The best rate of a variant is that of the lowest held-out loss, mean over seeds and domains, on the samples that training
evaluates on. A seed decides initial values, the order of samples and the routing tables. The parent has the vocabulary of the
four domains, but one domain and one embedding slot. What comes out is in the folder: differences.txt and .json, curves.png, and
cases.json, the seconds of each case.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pangu_sigma as ps
from experiments.cases import Cases, train_whole
from experiments.compare.arms import ARMS
from experiments.compare.variants import TrainedVariant, write_comparison
from experiments.small import SMALL, SMALL_DENSE, Changes, drawn, evaluated, schedule, tiny
from pangu_sigma.config import Config

WAYS = {
    "inherited": "Σ inherited",
    "segments": "Σ in segments",
    "continued": "α continued",
    "scratch": "Σ from scratch",
}
"""What each variant is called in the tables. The second one inherits, too: into two own and two common segments."""


def compare_inherited(
    folder: Path, seeds: Sequence[int], rates: Sequence[str], jobs: int = 1, overrides: Sequence[str] = ()
) -> str:
    """Train what is not trained yet, compare, and return what differences.txt holds. jobs: cases at the same time."""
    data = Path("data", folder.name)  # of its own: its slots have fewer rows than sigma_tiny's
    sparse: list[Changes] = [
        SMALL,
        schedule(200, 2e-3, 0.0),
        evaluated(50, 2, 100),
        {"data.path": str(data)},
        overrides,
    ]
    networks = {
        "inherited": sparse,
        "segments": [*sparse, ARMS["mixed64"].keys],
        "continued": [*sparse, SMALL_DENSE],
        "scratch": sparse,
    }
    parent_keys = [*networks["continued"], chinese_only(data)]
    # of a seed a parent, three that inherit, and all ways at all rates
    total = len(seeds) * len(WAYS) * (1 + len(rates))
    cases = Cases(folder, {"set": list(overrides), "jobs": jobs}, total)
    ps.prepare_data(tiny(*sparse))
    ps.prepare_data(tiny(*parent_keys))
    parents = {seed: folder / f"parent_{seed}" for seed in seeds}
    cases.run_all(
        {run.name: (train_whole, tiny(*parent_keys, drawn(seed)), run) for seed, run in parents.items()}, jobs
    )
    begun = {(name, seed): folder / f"{name}_{seed}" for seed in seeds for name in WAYS if name != "scratch"}
    cases.run_all(
        {
            run.name: (inherit_once, parents[seed], tiny(*networks[name], drawn(seed)), run)
            for (name, seed), run in begun.items()
        },
        jobs,
    )
    works: dict[str, tuple[Any, ...]] = {}
    for seed in seeds:
        for rate in rates:
            for name, keys in networks.items():
                run = folder / f"{name}_{seed}_{rate}"
                if name != "scratch":
                    _copy_once(begun[name, seed], run)
                works[run.name] = (train_whole, tiny(*keys, drawn(seed), {"train.optimizer.peak_lr": float(rate)}), run)
    cases.run_all(works, jobs)
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
