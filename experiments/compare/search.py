"""How is `sigma_tiny` trained well? A search over settings, for several forms of its upper layers, within the quickstart's steps.

Settings are tried in turn, the values of one at a time with all others at the best so far, for each form on its own (a coordinate
search). The best has the lowest held-out loss, on all held-out tokens at the end, mean over seeds and domains. A form is an arm of
arms.py; the dense one is `alpha_tiny`. What comes out is in search.txt of the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pangu_sigma as ps
from experiments.cases import CaseError, Cases
from experiments.compare.arms import ARMS
from experiments.compare.methods import cost_of
from experiments.compare.peer_runs import train_peer
from experiments.compare.variants import TrainedVariant, evaluations
from experiments.small import ALPHA, drawn, evaluated, tiny
from pangu_sigma.config_file import Override
from pangu_sigma.held_out.losses import format_number

_RATE, _WARMUP = "train.optimizer.peak_lr", "train.optimizer.warmup_steps"

SETTINGS: dict[str, tuple[str, ...]] = {
    _RATE: ("1e-3", "2e-3", "4e-3", "8e-3"),
    _WARMUP: ("50", "100"),
    "train.optimizer.eps_experts": ("1e-20", "1e-8"),
    "model.expert_init": ("replicated", "independent"),
}
"""Keys in the order in which they are tried, and their values, the shipped one first."""
OF_ALL = {_RATE, _WARMUP}
"""Keys that a dense model has, too."""

FORMS = {name: arm.keys for name, arm in ARMS.items() if arm.peer == "ours"} | {"dense": ALPHA}


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
    tried: dict[str, dict[str, list[Path]]] = {name: {} for name in arms}
    best = {name: [values[0] for values in SETTINGS.values()] for name in arms}
    for at, (key, values) in enumerate(SETTINGS.items()):
        works: dict[str, tuple[Any, ...]] = {}
        for name in [name for name in arms if name != "dense" or key in OF_ALL]:
            for value in values:
                chosen = [*best[name][:at], value, *best[name][at + 1 :]]
                runs = [folder / f"{name}_{'_'.join(chosen)}_{seed}" for seed in seeds]
                for seed, run in zip(seeds, runs, strict=True):
                    keys = settings_of(chosen, steps), evaluated(steps, 1_000_000, 250), drawn(seed, 2)
                    works[run.name] = (train_peer, "ours", tiny(*keys, FORMS[name], overrides), run)
                tried[name][" ".join(chosen)] = runs
        cases.run_all(works, jobs)
        best = {name: TrainedVariant(name, of).best_rate().split() for name, of in tried.items()}
    text = format_search([TrainedVariant(name, of) for name, of in tried.items()])
    (folder / "search.txt").write_text(f"{text}\n", encoding="utf-8")
    return f"{text}\n{cases.summary()}"


def settings_of(chosen: Sequence[str], steps: int) -> list[Override]:
    """Values of SETTINGS as overrides; the rate falls from the end of the warm-up to the last step."""
    keys = dict(zip(SETTINGS, chosen, strict=True))
    keys |= {"train.steps": str(steps), "train.optimizer.decay_steps": str(steps - int(keys[_WARMUP]))}
    return [f"{key}={value}" for key, value in keys.items()]


def format_search(forms: Sequence[TrainedVariant]) -> str:
    """A table for people: all that was tried, form by form, in the order in which it was.

    forms: with the values of settings, with blanks between, where other variants have rates.
    """
    first = next(iter(forms[0].runs.values()))
    heads = [f"{key.rpartition('.')[2]:>12}" for key in SETTINGS]
    heads += [f"{head:>9}" for head in (*evaluations(first[0])[-1][1], "mean", "tokens/s")]
    lines = [f"{'form':12} {' '.join(heads)}   held-out nats a token, mean over seeds; * the best of its form"]
    for form in forms:
        best, means = form.best_rate(), form.losses()
        for chosen, runs in form.runs.items():
            last = np.array([list(evaluations(run)[-1][1].values()) for run in runs])
            cells = [f"{value:>12}" for value in chosen.split()]
            cells += [format_number(loss, 9) for loss in (*last.mean(axis=0).tolist(), means[chosen])]
            cells.append(format_number(cost_of(runs, [])["tokens_per_second"], 9, 0))
            lines.append(f"{form.name:12} {' '.join(cells)}{' *' if chosen == best else ''}")
    return "\n".join(lines)
