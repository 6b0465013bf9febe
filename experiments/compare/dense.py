"""Do experts pay? `sigma_tiny` and `sigma_paper_tiny` against a dense PanGu-α of the same active size, and of the same time.

All learn from the same tokens in the same order, with several seeds, each at its own best rate (`compare tiny`), and are compared
on all held-out tokens when they end, paired by sample. The dense models keep embedding slots and rows of `sigma_tiny`, so that
experts are the only difference; the second one takes as many steps as fit into the time of `sigma_tiny`. A seed decides initial
values, the order of samples and the routing tables; seed 1 is each model as it is shipped. What comes out is in differences.txt,
.json and .png.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pangu_sigma as ps
from experiments.cases import Cases
from experiments.compare.arms import ARMS, Arm, sizes_of
from experiments.compare.methods import write_methods
from experiments.compare.peer_runs import train_peer
from experiments.compare.variants import TrainedVariant
from experiments.small import ALPHA, Changes, drawn, evaluated, tiny
from pangu_sigma.config import Config

STEP_TIME = 1.04
"""Time of a step of sigma_tiny over that of the dense model of the same active size (docs/experiments/speed.md)."""
ALPHA_BEST = {
    **ALPHA,
    "train.optimizer.peak_lr": 1e-3,
    "model.rows": tiny(base="sigma_tiny").model.model_dump()["rows"],
}
"""The dense model, at its best rate."""


def models_of(seed: int, changes: Changes) -> dict[str, Config]:
    """The configuration of each model, by its name in the tables."""
    train = tiny(changes).train
    steps = round(train.steps * STEP_TIME)
    longer = {"train.steps": steps, "train.optimizer.decay_steps": steps - train.optimizer.warmup_steps}
    alike = evaluated(1_000_000, 1_000_000, 250), drawn(seed, tables=2)
    return {
        "sigma_tiny": tiny(changes, *alike, base="sigma_tiny"),
        "sigma_paper_tiny": tiny(changes, *alike),
        ARMS["dense"].title: tiny(changes, *alike, ALPHA_BEST),
        "dense_same_time": tiny(changes, *alike, ALPHA_BEST, longer),
    }


def compare_dense(folder: Path, seeds: Sequence[int], jobs: int = 1, overrides: Sequence[str] = ()) -> str:
    """Train what is not trained yet, compare, and return what differences.txt holds. jobs: cases at the same time."""
    configs = {seed: models_of(seed, overrides) for seed in seeds}
    cases = Cases(folder, {"set": list(overrides), "jobs": jobs}, sum(map(len, configs.values())))
    ps.prepare_data(tiny(overrides))
    works: dict[str, tuple[Any, ...]] = {
        f"{name}_{seed}": (train_peer, "ours", config, folder / f"{name}_{seed}")
        for seed in seeds
        for name, config in configs[seed].items()
    }
    cases.run_all(works, jobs)
    models = configs[seeds[0]]
    trained = [
        TrainedVariant(name, {f"{model.train.optimizer.peak_lr:g}": [folder / f"{name}_{seed}" for seed in seeds]})
        for name, model in models.items()
    ]
    sizes = {name: sizes_of(Arm(name), model) for name, model in models.items()}
    return f"{write_methods(trained, sizes, folder)}\n{cases.summary()}"
