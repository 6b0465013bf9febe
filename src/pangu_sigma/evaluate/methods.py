"""Ways to route against each other: the tables of arms.py, and what each costs: how even its load is, and its speed.

Its runs evaluate on all held-out tokens when they end, and the differences are of what they logged then: a peer's network is no
network of the product, and leaves no checkpoint that the product could read.

Shape suffixes: N routed layers, K experts of a layer, P pairs of runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display

from pangu_sigma.evaluate.arms import (
    Arm,
    compare_arms,
    evaluations,
    format_arms,
    half_width_95,
    last_logged,
    write_results,
)
from pangu_sigma.train.losses import shown
from pangu_sigma.train.metrics import read_metrics


def cost_of(runs: Sequence[Path]) -> dict[str, Any]:
    """What the runs of an arm, one for each seed, have come down to, as plain values.

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
    """A table for people: held-out loss of each domain with its spread over seeds, load and speed, of each arm at its best rate."""
    arms = compared["arms"]
    width, domains = max(16, *map(len, arms)), list(next(iter(arms.values()))["held_out"])
    heads = " ".join(f"{domain:>15}" for domain in domains)
    heads = f"{heads} {'load max/mean':>15} {'tokens/s':>9}"
    lines = [f"{'at its best rate':{width}} {heads}   held-out loss ± its standard deviation over seeds"]
    for name, arm in arms.items():
        losses = [f"{shown(arm['held_out'][d], 6)} ±{shown(arm['spread'][d], 7, 4)}" for d in domains]
        load = " ".join(shown(ratio, 0, 2) for ratio in arm["load"]) or "–"
        cells = [*losses, f"{load:>15}", shown(arm["tokens_per_second"], 9, 0)]
        lines.append(f"{name:{width}} {' '.join(cells)}")
    return "\n".join(lines)


def draw_differences(compared: Mapping[str, Any]) -> Figure:
    """For each domain, how much more the first arm loses than each other one: a point a seed, and the mean's 95 % interval.

    What reaches over the line at 0 is not certain. With one seed there is no interval.
    """
    against, first = compared["against"], next(iter(compared["arms"]))
    domains = list(compared["arms"][first]["held_out"])
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


def write_methods(first: Arm, others: Sequence[Arm], folder: Path) -> str:
    """Compare, and write differences.txt, .json and .png into `folder`. Returns what differences.txt holds.

    Raises as `compare_arms` and `last_logged`.
    """
    compared = compare_arms(first, others, last_logged)
    for arm in compared["arms"].values():
        arm.update(cost_of([Path(run) for run in arm["runs"]]))
    text = f"{format_arms(compared)}\n\n{format_costs(compared)}"
    write_results(folder, compared, text)
    draw_differences(compared).savefig(folder / "differences.png")
    return text
