"""Does the method learn? Five ways to give a token its FFN, on the same samples in the same order, with the same active size.

    dense      one FFN for all: a PanGu-α
    random     RRE, `routing.table=random`: domain → group, token id → one of the group's experts (the paper's)
    balanced   RRE, `routing.table=balanced`
    hash       one level: token id → one of all experts, in every domain the same (as DeepSeek-V4's first layers): hashing.py
    gate       a learned top-1 gate over all experts (Switch Transformer), with its balance loss; drops nothing: switch.py

With several seeds, each at several learning rates; compared at the best rate of each, on all held-out tokens, paired by sample.
The best rate of a variant is that of the lowest held-out loss at the end, mean over seeds and domains. A seed decides initial
values, the order of samples, and the tables. All have the same embedding slots and the same Adam; every step has all four domains,
so all experts are active, and ECSS, which would change nothing but the time, is off. The runs evaluate on all held-out tokens when
they end, and the differences are of what they logged then: a peer's network is no network of the product, and leaves no checkpoint
that the product could read. What comes out is in the folder: differences.txt, .json and .png, and cases.json, the seconds of each
case.

Shape suffixes: N routed layers, K experts of a layer, P pairs of runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display

import pangu_sigma as ps
from experiments.cases import CaseError, Cases
from experiments.compare.peer_runs import train_peer
from experiments.compare.variants import (
    TrainedVariant,
    compare_variants,
    evaluations,
    format_variants,
    half_width_95,
    last_logged,
    write_results,
)
from experiments.small import SMALL, SMALL_DENSE, Changes, drawn, evaluated, schedule, tiny
from pangu_sigma.train.log.losses import format_number
from pangu_sigma.train.log.metrics import read_metrics

METHODS = {
    "random": "RRE random",
    "dense": "dense",
    "balanced": "RRE balanced",
    "hash": "hashing",
    "gate": "learned gate",
}
"""What each variant is called in the tables."""
OWN_KEYS: dict[str, dict[str, Any]] = {"dense": SMALL_DENSE, "balanced": {"routing.table": "balanced"}}
"""Keys that the product's own variants change."""


def compare_methods(
    folder: Path, seeds: Sequence[int], rates: Sequence[str], steps: int, overrides: Sequence[str] = ()
) -> str:
    """Train what is not trained yet, compare, and return what differences.txt holds. Raises CaseError for fewer than 10 steps."""
    if steps < 10:
        raise CaseError(f"--steps {steps}: a number of at least 10 is needed, a tenth of it is the warm-up")
    alike: list[Changes] = [
        SMALL,
        schedule(steps, 2e-3, 0.0),
        {"train.loss_scale.initial": 1, "train.loss_scale.window": steps + 1},
        evaluated(steps, 1_000_000, 100),
        {"ecss.enabled": False, "data.path": str(Path("data", folder.name))},
        overrides,
    ]
    cases = Cases(folder, {"steps": steps, "set": list(overrides)}, len(seeds) * len(rates) * len(METHODS))
    ps.prepare_data(tiny(*alike))
    for seed in seeds:
        for rate in rates:
            for name in METHODS:
                run = folder / f"{name}_{seed}_{rate}"
                own = {**OWN_KEYS.get(name, {}), **drawn(seed, 2), "train.optimizer.peak_lr": float(rate)}
                cases.run(run.name, train_peer, name, tiny(*alike, own), run)
    first, *others = (
        TrainedVariant(title, {rate: [folder / f"{name}_{seed}_{rate}" for seed in seeds] for rate in rates})
        for name, title in METHODS.items()
    )
    return f"{write_methods(first, others, folder)}\n{cases.summary()}"


def cost_of(runs: Sequence[Path]) -> dict[str, Any]:
    """What the runs of a variant, one for each seed, have come down to, as plain values.

    "spread": by domain, the standard deviation over seeds of the last held-out loss; None for one seed. "load": for each routed
    layer, the tokens of the fullest expert over the mean of all, over all of the training, the mean over seeds; [] if nothing is
    routed. "tokens_per_second": the median over the log lines of all runs, None without one; evaluations are not in it.
    """
    last = [evaluations(run)[-1][1] for run in runs]
    logs = [read_metrics(run) for run in runs]
    loads = [load for log in logs if (load := load_by_layer(log))]
    speeds = [line["tokens_per_second"] for log in logs for line in log if line.get("tokens_per_second")]
    return {
        "spread": {
            d: float(np.std([losses[d] for losses in last], ddof=1)) if len(runs) > 1 else None for d in last[0]
        },
        "load": np.mean(loads, axis=0).tolist() if loads else [],
        "tokens_per_second": float(np.median(speeds)) if speeds else None,
    }


def load_by_layer(log: Sequence[Mapping[str, Any]]) -> list[float]:
    """Tokens of the fullest expert over the mean of all experts of its layer, over a whole run; [] if nothing is routed."""
    loads = [np.array(line["tokens_NK"], float) for line in log if line["kind"] == "load"]
    load_NK = np.sum(loads, axis=0) if loads else np.zeros((0, 1))
    return [float(load_K.max() / load_K.mean()) for load_K in load_NK if load_K.any()]


def format_costs(compared: Mapping[str, Any]) -> str:
    """A table for people: loss of each domain with its spread over seeds, load and speed, of variants at their best rates."""
    variants = compared["variants"]
    width, domains = max(16, *map(len, variants)), list(next(iter(variants.values()))["held_out"])
    heads = " ".join(f"{domain:>15}" for domain in domains)
    heads = f"{heads} {'load max/mean':>15} {'tokens/s':>9}"
    lines = [f"{'at its best rate':{width}} {heads}   held-out loss ± its standard deviation over seeds"]
    for name, variant in variants.items():
        losses = [
            f"{format_number(variant['held_out'][d], 6)} ±{format_number(variant['spread'][d], 7, 4)}" for d in domains
        ]
        load = " ".join(format_number(ratio, 0, 2) for ratio in variant["load"]) or "–"
        cells = [*losses, f"{load:>15}", format_number(variant["tokens_per_second"], 9, 0)]
        lines.append(f"{name:{width}} {' '.join(cells)}")
    return "\n".join(lines)


def draw_differences(compared: Mapping[str, Any]) -> Figure:
    """For each domain, how much more the first variant loses than each other one: a point a seed, and the mean's 95 % interval.

    What reaches over the line at 0 is not certain. With one seed there is no interval.
    """
    against, first = compared["against"], next(iter(compared["variants"]))
    domains = list(compared["variants"][first]["held_out"])
    rows = math.ceil(len(domains) / 2)
    figure = Figure(figsize=(10, 0.8 + rows * (0.9 + 0.32 * len(against))), layout="constrained", dpi=80)
    panels = figure.subplots(rows, 2, sharey=True, squeeze=False).ravel()
    for axes, domain in zip(panels, domains, strict=False):
        axes.axvline(0.0, color="grey", linewidth=0.8)
        for y, comparison in enumerate(against.values()):
            gaps_P = [pair["domains"][domain]["difference"]["nats_per_token"] for pair in comparison["pairs"]]
            mean, error = comparison["mean"][domain]["nats_per_token"], comparison["mean"][domain]["se"]
            axes.scatter(np.array(gaps_P, float), [y] * len(gaps_P), s=14, color="C0", alpha=0.6)
            if error is not None:
                half = half_width_95(error, len(gaps_P))
                axes.errorbar(mean, y, xerr=half, color="C1", marker="|", markersize=12, capsize=4, linewidth=1.6)
        axes.set_title(domain, fontsize=11)
        axes.set_yticks(range(len(against)), list(against))
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_ylim(len(against) - 0.5, -0.5)
    for axes in panels[len(domains) :]:
        axes.remove()
    figure.supxlabel(f"nats per token that {first} loses more than the other; left of 0 it is better", fontsize=10)
    return figure


def write_methods(first: TrainedVariant, others: Sequence[TrainedVariant], folder: Path) -> str:
    """Compare, and write differences.txt, .json and .png into `folder`. Returns what differences.txt holds.

    Raises as `compare_variants` and `last_logged`.
    """
    compared = compare_variants(first, others, last_logged)
    for variant in compared["variants"].values():
        variant.update(cost_of([Path(run) for run in variant["runs"]]))
    text = f"{format_variants(compared)}\n\n{format_costs(compared)}"
    write_results(folder, compared, text)
    draw_differences(compared).savefig(folder / "differences.png")
    return text
