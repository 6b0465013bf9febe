"""How is `sigma_tiny` trained well? A search over settings, for several forms of its upper layers, within the quickstart's steps.

Settings are tried in turn, the values of one at a time with all others at the best so far, for each form on its own (a coordinate
search). The best has the lowest held-out loss, on all held-out tokens at the end, mean over seeds and domains. A form is an arm of
arms.py; the dense one is `alpha_tiny`. What comes out is in search.txt of the folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pangu_sigma as ps
from experiments.cases import CaseError, Cases
from experiments.compare.arms import ARMS
from experiments.compare.dense import MODELS
from experiments.compare.methods import cost_of
from experiments.compare.peer_runs import train_peer
from experiments.compare.variants import evaluations
from experiments.small import drawn, evaluated, tiny
from pangu_sigma.config_file import Override
from pangu_sigma.train.log.losses import format_number

_RATE, _WARMUP = "train.optimizer.peak_lr", "train.optimizer.warmup_steps"

SETTINGS: dict[str, tuple[str, ...]] = {
    _RATE: ("1e-3", "2e-3", "4e-3", "8e-3"),
    _WARMUP: ("50", "25", "100"),
    "train.optimizer.eps_experts": ("1e-20", "1e-12", "1e-8"),
    "model.expert_init": ("replicated", "independent"),
}
"""Keys in the order in which they are tried, and their values, the shipped one first."""
OF_ALL = {_RATE, _WARMUP}
"""Keys that a dense model has, too."""

FORMS = {name: arm.keys for name, arm in ARMS.items() if arm.peer == "ours"} | {"dense": MODELS["alpha_tiny"]}

Values = tuple[str, ...]
"""A value for each of SETTINGS."""


def search_tiny(
    folder: Path, seeds: Sequence[int], steps: int, arms: Sequence[str], jobs: int = 1, overrides: Sequence[str] = ()
) -> str:
    """Train what is not trained yet, and return what search.txt holds. Raises CaseError for steps that a warm-up is longer than."""
    if steps <= (longest := max(map(int, SETTINGS[_WARMUP]))):
        raise CaseError(f"--steps {steps}: a number above {longest} is needed, the longest warm-up")
    total = len(seeds) * sum(
        len(values) for name in arms for key, values in SETTINGS.items() if name != "dense" or key in OF_ALL
    )
    cases = Cases(folder, {"steps": steps, "set": list(overrides), "jobs": jobs}, total)
    ps.prepare_data(tiny(overrides))
    tried: dict[str, dict[Values, list[Path]]] = {name: {} for name in arms}
    best = dict.fromkeys(arms, tuple(values[0] for values in SETTINGS.values()))
    for at, (key, values) in enumerate(SETTINGS.items()):
        works: dict[str, tuple[Any, ...]] = {}
        for name in [name for name in arms if name != "dense" or key in OF_ALL]:
            for value in values:
                chosen = (*best[name][:at], value, *best[name][at + 1 :])
                tried[name][chosen] = [folder / f"{name}_{'_'.join(chosen)}_{seed}" for seed in seeds]
                for seed, run in zip(seeds, tried[name][chosen], strict=True):
                    keys = settings_of(chosen, steps), evaluated(steps, 1_000_000, 250), drawn(seed, 2)
                    works[run.name] = (train_peer, "ours", tiny(*keys, FORMS[name], overrides), run)
        cases.run_all(works, jobs)
        for name, of in tried.items():
            losses = {chosen: mean_loss(runs) for chosen, runs in of.items()}
            best[name] = min(losses, key=losses.__getitem__)
    text = format_search(tried, best)
    (folder / "search.txt").write_text(f"{text}\n", encoding="utf-8")
    return f"{text}\n{cases.summary()}"


def settings_of(chosen: Values, steps: int) -> list[Override]:
    """Chosen values as overrides; the rate falls from the end of the warm-up to the last step."""
    keys = dict(zip(SETTINGS, chosen, strict=True))
    keys |= {"train.steps": str(steps), "train.optimizer.decay_steps": str(steps - int(keys[_WARMUP]))}
    return [f"{key}={value}" for key, value in keys.items()]


def losses_of(runs: Sequence[Path]) -> dict[str, float]:
    """The last held-out loss of each domain, the mean over runs."""
    last = [evaluations(run)[-1][1] for run in runs]
    return {domain: float(np.mean([losses[domain] for losses in last])) for domain in last[0]}


def mean_loss(runs: Sequence[Path]) -> float:
    """The mean over domains of `losses_of`; infinite if a run diverged."""
    mean = float(np.mean(list(losses_of(runs).values())))
    return mean if math.isfinite(mean) else math.inf


def format_search(tried: dict[str, dict[Values, list[Path]]], best: dict[str, Values]) -> str:
    """A table for people: all that was tried, form by form, in the order in which it was."""
    domains = list(losses_of(next(iter(tried[next(iter(tried))].values()))))
    heads = [f"{key.rpartition('.')[2]:>12}" for key in SETTINGS]
    heads += [f"{head:>9}" for head in (*domains, "mean", "tokens/s")]
    lines = [f"{'form':12} {' '.join(heads)}   held-out nats a token, mean over seeds; * the best of its form"]
    for name, of in tried.items():
        for chosen, runs in of.items():
            losses = [format_number(loss, 9) for loss in (*losses_of(runs).values(), mean_loss(runs))]
            cells = [*(f"{value:>12}" for value in chosen), *losses]
            speed = format_number(cost_of(runs, [])["tokens_per_second"], 9, 0)
            lines.append(f"{name:12} {' '.join(cells)} {speed}{' *' if chosen == best[name] else ''}")
    return "\n".join(lines)
