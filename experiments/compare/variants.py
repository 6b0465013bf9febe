"""Ways to train, each tried at the same rates and seeds; the first at its best rate against the others at theirs.

The best rate of a variant is that of the lowest held-out loss: the mean over seeds and domains of the last evaluation of its runs,
on the samples that training evaluates on. The differences are of all held-out tokens, paired by sample, seed by seed. One is
certain if a 95 % interval of its mean over seeds does not contain 0; it is wide with few seeds: 4.3 errors to each side with three.

Shape suffixes: P runs of a variant, E evaluations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display

from pangu_sigma.config import ConfigError
from pangu_sigma.held_out.compare import Losses, differences_of, measure_together
from pangu_sigma.held_out.losses import Estimate, format_number, losses_of, mean_of
from pangu_sigma.training.log.metrics import read_metrics


@dataclass(frozen=True)
class TrainedVariant:
    """A way to train. runs: by learning rate, as its text, the run of each seed; the seeds are in the same order everywhere."""

    name: str
    runs: Mapping[str, Sequence[Path]]

    def losses(self) -> dict[str, float]:
        """By rate, the mean over seeds and domains of the last held-out loss that training logged; NaN if one is not finite.

        Raises ConfigError for a run that logged no evaluation.
        """
        return {
            rate: float(np.mean([list(evaluations(run)[-1][1].values()) for run in runs]))
            for rate, runs in self.runs.items()
        }

    def best_rate(self) -> str:
        """The rate of the lowest of `losses`, the first of equal ones. Raises ConfigError if none is finite."""
        finite = {rate: loss for rate, loss in self.losses().items() if math.isfinite(loss)}
        if not finite:
            raise ConfigError(
                f"{self.name}: no run of the rates {', '.join(self.runs)} has a finite loss; try lower rates"
            )
        return min(finite, key=finite.__getitem__)


def evaluations(run: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and held-out loss by domain of each evaluation that a run logged, in order. Raises ConfigError if there is none."""
    found = [
        (line["step"], {name: math.nan if v is None else v for name, v in line["per_domain_loss"].items()})
        for line in read_metrics(run)
        if line["kind"] == "evaluation"
    ]
    if not found:
        raise ConfigError(f"{run} has logged no evaluation; train it to its end first")
    return found


Measure = Callable[[Sequence[Path]], dict[Path, Losses]]
"""Gives the losses of runs on the same held-out tokens."""


def measure_all(runs: Sequence[Path]) -> dict[Path, Losses]:
    """The losses of runs on all held-out tokens, by their newest checkpoints. Raises as `measure_together`, and ConfigError if the
    runs have not the same tokens in all domains."""
    losses, left_out = measure_together(runs, all=True)
    if left_out:
        raise ConfigError(f"runs of variants must have the same domains and text; {left_out}")
    return losses


def last_logged(runs: Sequence[Path]) -> dict[Path, Losses]:
    """The losses of the last evaluation that each run logged, for runs whose training evaluates on all held-out tokens.

    Raises ConfigError for runs of other held-out samples than the first.
    """
    lines = {run: [line for line in read_metrics(run) if line["kind"] == "evaluation"][-1] for run in runs}
    losses = {run: losses_of(line) for run, line in lines.items()}
    digests = {run: {name: loss.digest for name, loss in found.items()} for run, found in losses.items()}
    for run in runs:
        if digests[run] != digests[runs[0]]:
            raise ConfigError(
                f"{run} was not evaluated on the samples of {runs[0]}; train both on the same data with the same train.eval_batches"
            )
    return losses


def compare_variants(
    first: TrainedVariant, others: Sequence[TrainedVariant], measure: Measure = measure_all
) -> dict[str, Any]:
    """The first variant against each of the others, all at their best rates, on all held-out tokens.

    measure: how the losses of the runs at the best rates are found.
    Returns {"variants": {name: {"losses": by rate, "best": rate, "runs": at it, "held_out": by domain, the mean over seeds}},
    "against": {name: `compare_runs`'s comparison}}. Raises ConfigError when a run of a variant was evaluated at other steps than
    its first one, and as `TrainedVariant.best_rate` and `measure`.
    """
    variants = [first, *others]
    for variant in variants:
        _check_same_steps([run for runs in variant.runs.values() for run in runs])
    best = {variant.name: variant.best_rate() for variant in variants}
    runs = {variant.name: list(variant.runs[best[variant.name]]) for variant in variants}
    losses = measure([run for found in runs.values() for run in found])
    return {
        "variants": {
            variant.name: {
                "losses": variant.losses(),
                "best": best[variant.name],
                "runs": [str(run) for run in runs[variant.name]],
                "held_out": _means([losses[run] for run in runs[variant.name]]),
            }
            for variant in variants
        },
        "against": {other.name: differences_of(losses, runs[first.name], runs[other.name]) for other in others},
    }


def _check_same_steps(runs: Sequence[Path]) -> None:
    steps = {run: [step for step, _ in evaluations(run)] for run in runs}
    for run in runs:
        if steps[run] != steps[runs[0]]:
            raise ConfigError(
                f"{run} was evaluated after steps {', '.join(map(str, steps[run]))}, {runs[0]} after "
                f"{', '.join(map(str, steps[runs[0]]))}; they must be equal: train all runs to the same end"
            )


def _means(losses: list[Losses]) -> dict[str, float]:
    return {name: mean_of([found[name].nats_per_token.mean for found in losses]).mean for name in losses[0]}


_ERRORS_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Standard errors to each side in a 95 % interval of the mean of 2, 3, … 10 values: Student's t."""


def half_width_95(error: float, seeds: int) -> float:
    """Half the width of a 95 % interval of a mean over seeds: infinite for one; for more than 10 as for 10, a little too wide.

    error: the standard error of the mean over seeds.
    """
    return _ERRORS_95[min(seeds - 2, len(_ERRORS_95) - 1)] * error if seeds > 1 else math.inf


def is_certain(mean: float | None, error: float | None, seeds: int) -> bool:
    """True if the 95 % interval of a mean over seeds does not contain 0; False if mean or error (None, NaN) is not known."""
    return mean is not None and error is not None and abs(mean) > half_width_95(error, seeds)


def mean_over_domains(comparison: Mapping[str, Any]) -> Estimate:
    """The mean over domains, each of which counts the same, of a comparison's differences: its mean and error over seeds."""
    gaps = [[row["difference"]["nats_per_token"] for row in pair["domains"].values()] for pair in comparison["pairs"]]
    return mean_of([float(np.mean(np.array(gap, float))) for gap in gaps])


def format_rates(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for people: the loss of each variant at each rate, – where it was not tried."""
    width, rates = max(map(len, variants)), list(dict.fromkeys(r for v in variants.values() for r in v["losses"]))
    lines = [f"{'rate':{width}} {' '.join(f'{rate:>9}' for rate in rates)}   last evaluation of training; * the best"]
    for name, variant in variants.items():
        cells = [
            format_number(variant["losses"].get(rate), 8) + ("*" if rate == variant["best"] else " ") for rate in rates
        ]
        lines.append(f"{name:{width}} {' '.join(cells)}".rstrip())
    return "\n".join(lines)


def format_variants(compared: Mapping[str, Any]) -> str:
    """Two tables for people: the loss of each rate, and the differences, whose errors are over seeds and over samples of text.

    A difference that the seeds do not decide is said to be not certain.
    """
    variants = compared["variants"]
    first, width = next(iter(variants)), max(map(len, variants))
    pairs = next(iter(compared["against"].values()))["pairs"]
    seeds, tokens = len(pairs), sum(row["tokens"] for row in pairs[0]["domains"].values())
    heads = [f"{head:>9}" for head in (first.rpartition(" ")[2], "against", "nats", "± seeds", "± samples")]
    lines = [
        format_rates(variants),
        "",
        f"{'domain':12} {'against':{width}} {' '.join(heads)}   {tokens:,} held-out tokens, mean of {seeds} seeds",
    ]
    for domain, own in variants[first]["held_out"].items():
        for name, comparison in compared["against"].items():
            mean, held_out = comparison["mean"][domain], (own, variants[name]["held_out"][domain])
            row = _cells(held_out, mean["nats_per_token"], mean["se"], mean["se_of_text"], seeds)
            lines.append(f"{domain:12} {name:{width}} {row}")
    for name, comparison in compared["against"].items():
        means = [float(np.mean(list(variants[variant]["held_out"].values()))) for variant in (first, name)]
        row = _cells(means, *mean_over_domains(comparison), None, seeds)
        lines.append(f"{'mean':12} {name:{width}} {row}")
    return "\n".join(lines)


def _cells(
    held_out: Sequence[float], gap: float | None, over_seeds: float | None, over_samples: float | None, seeds: int
) -> str:
    """Both losses, the difference with both of its errors, and whether it is certain."""
    numbers = [
        *(format_number(v, 9) for v in held_out),
        *(format_number(v, 9, 4) for v in (gap, over_seeds, over_samples)),
    ]
    return " ".join([*numbers, *([] if is_certain(gap, over_seeds, seeds) else ["  not certain"])])


def draw_variants(variants: Mapping[str, Sequence[Path]]) -> Figure:
    """Held-out loss of each domain over the steps of training: thin lines for runs, a thick one for their mean. variants: runs."""
    curves = {name: [evaluations(run) for run in runs] for name, runs in variants.items()}
    domains = list(next(iter(curves.values()))[0][0][1])
    figure = Figure(figsize=(10, 2.9 * math.ceil(len(domains) / 2)), layout="constrained", dpi=80)
    panels = figure.subplots(math.ceil(len(domains) / 2), 2, sharex=True, squeeze=False).ravel()
    for axes, domain in zip(panels, domains, strict=False):
        for number, (name, runs) in enumerate(curves.items()):
            steps = [step for step, _ in runs[0]]
            losses_PE = np.array([[losses[domain] for _, losses in run] for run in runs])
            for losses_E in losses_PE:
                axes.plot(steps, losses_E, color=f"C{number}", linewidth=0.7, alpha=0.5)
            axes.plot(steps, losses_PE.mean(axis=0), color=f"C{number}", linewidth=1.8, marker=".", label=name)
        axes.set_title(domain, fontsize=11)
        axes.grid(alpha=0.3)
    for axes in panels[len(domains) :]:
        axes.remove()
    panels[0].legend(fontsize=9)
    figure.supxlabel("steps", fontsize=10)
    figure.supylabel("held-out loss (nats per token)", fontsize=10)
    return figure


def write_comparison(first: TrainedVariant, others: Sequence[TrainedVariant], folder: Path) -> str:
    """Compare, and write differences.txt, differences.json and curves.png into `folder`. Returns what differences.txt holds."""
    compared = compare_variants(first, others)
    text = format_variants(compared)
    write_results(folder, compared, text)
    best = {variant.name: variant.runs[compared["variants"][variant.name]["best"]] for variant in (first, *others)}
    draw_variants(best).savefig(folder / "curves.png")
    return text


def write_results(folder: Path, compared: Mapping[str, Any], text: str) -> None:
    """Write a comparison into `folder`: as differences.txt for people, and as differences.json."""
    (folder / "differences.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "differences.json").write_text(
        json.dumps(compared, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
