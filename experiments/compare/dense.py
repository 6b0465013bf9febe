"""Does RRE earn its place? `sigma_tiny` against a dense PanGu-α of the same active size.

Both are trained on the same tokens in the same order, with several seeds, and evaluated on all held-out tokens: paired differences
with their errors, and their mean over seeds. The dense model keeps the embedding slots, so that experts are the only difference.
A seed decides initial values and the order of samples, and the routing tables too, because they are drawn as the rest is:
routing.seed is the seed less 1, so that seed 1 is sigma_tiny as it is shipped; `--set routing.seed=0` keeps the tables. Three seeds
take over 20 minutes. What comes out is in differences.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pangu_sigma as ps
from experiments.cases import Cases, train_whole
from experiments.small import drawn, tiny
from pangu_sigma.evaluate.held_out.comparison import compare_runs, format_differences

MODELS: dict[str, dict[str, Any]] = {
    "sigma_tiny": {},
    "alpha_tiny": {"name": "alpha_tiny", "model.dense_layers": 6, "model.rre_layers": 0},
}
"""What makes each model of `sigma_tiny`."""


def compare_dense(folder: Path, seeds: Sequence[int], overrides: Sequence[str] = ()) -> str:
    """Train what is not trained yet, compare, and return what differences.txt holds."""
    cases = Cases(folder, {"set": list(overrides)}, 2 * len(seeds))
    ps.prepare_data(tiny(overrides))
    runs: dict[str, list[Path]] = {name: [] for name in MODELS}
    for seed in seeds:
        for name, changes in MODELS.items():
            run = folder / f"{name}_{seed}"
            cases.run(run.name, train_whole, tiny(drawn(seed), changes, overrides), run)
            runs[name].append(run)
    text = format_differences(compare_runs(runs["sigma_tiny"], runs["alpha_tiny"], all=True))
    (folder / "differences.txt").write_text(f"{text}\n", encoding="utf-8")
    return f"{text}\n{cases.summary()}"
