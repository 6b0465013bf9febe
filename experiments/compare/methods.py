"""Does the method learn? Ways to give a token its FFN (arms.py), on the same samples in the same order, with the same active size.

With several seeds, each at several learning rates; compared at the best rate of each, on all held-out tokens, paired by sample: the
first of --arms with all others, and the dense one with all others.
The best rate of an arm is that of the lowest held-out loss at the end, mean over seeds and domains. A longer comparison, with more
seeds, takes each arm at the best rate of a shorter one, with --rates-of its folder. A seed decides initial values, the order of
samples, and the tables. All have the same embedding slots and the same Adam; every step has all domains, so all experts are active,
and ECSS, which would change nothing but the time, is off. The runs evaluate on all held-out tokens when they end, and the
differences are of what they logged then. What comes out is in the folder: differences.txt, .json and .png, and cases.json, the
seconds of each case.

Shape suffixes: N segments of the routed layers, K experts of a segment, P pairs of runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # without pyplot: draws with Agg, needs no display

import pangu_sigma as ps
from experiments.cases import CaseError, Cases
from experiments.compare.arms import ARMS, Sizes, sizes_of
from experiments.compare.peer_runs import train_peer
from experiments.compare.variants import (
    TrainedVariant,
    compare_variants,
    evaluations,
    format_rates,
    half_width_95,
    is_certain,
    last_logged,
    mean_over_domains,
    write_results,
)
from experiments.small import SMALL, Changes, drawn, evaluated, schedule, tiny
from pangu_sigma.config import Config
from pangu_sigma.data.prepared import data_of
from pangu_sigma.held_out.losses import format_number
from pangu_sigma.training.log.metrics import read_metrics

DENSE = ARMS["dense"].title


def compare_methods(
    folder: Path,
    seeds: Sequence[int],
    rates: Sequence[str],
    steps: int,
    arms: Sequence[str],
    rates_of: Path | None = None,
    jobs: int = 1,
    overrides: Sequence[str] = (),
) -> str:
    """Train what is not trained yet, compare, and return what differences.txt holds. The first arm is compared with the others.

    rates_of: folder of another comparison, whose best rates are taken in place of `rates`. jobs: cases at the same time. Raises
    CaseError for one arm, for fewer than 10 steps, for steps that lack a domain, and as `best_rates`.
    """
    if len(set(arms)) < 2:
        raise CaseError(f"--arms {' '.join(arms)}: give two at least, there is nothing to compare")
    if steps < 10:
        raise CaseError(f"--steps {steps}: a number of at least 10 is needed, a tenth of it is the warm-up")
    alike: list[Changes] = [
        SMALL,
        schedule(steps, 2e-3, 0.0),
        evaluated(steps, 1_000_000, 100),
        {"ecss.enabled": False, "data.path": str(Path("data", folder.name))},
        overrides,
    ]
    common = tiny(*alike)
    if common.data.domains_per_step != len(common.domains):
        raise CaseError(
            f"data.domains_per_step={common.data.domains_per_step}: give {len(common.domains)}, all domains"
        )
    rates_by_arm = dict.fromkeys(arms, rates) if rates_of is None else best_rates(rates_of, arms)
    trained, cases = lay_out(folder, seeds, rates_by_arm, alike)
    kept = Cases(folder, {"steps": steps, "set": list(overrides), "jobs": jobs}, len(cases))
    ps.prepare_data(common)
    kept.run_all(cases, jobs)
    sizes = {ARMS[name].title: sizes_of(ARMS[name], tiny(*alike, ARMS[name].keys)) for name in arms}
    found = [write_methods(trained, sizes, folder)]
    if rates_of is not None:
        found.append(f"rates are the best of {rates_of}")
    if jobs > 1:
        found.append(
            f"tokens/s is that of a run beside {jobs - 1} more, each on its share of the cores (--jobs {jobs})"
        )
    return "\n".join([*found, format_passes(common), kept.summary()])


def best_rates(folder: Path, arms: Sequence[str]) -> dict[str, list[str]]:
    """The best rate of each arm in the comparison of a folder. Raises CaseError if it is not there, or has not ended."""
    file = folder / "differences.json"
    variants = json.loads(file.read_bytes())["variants"] if file.exists() else {}
    if missing := [name for name in arms if ARMS[name].title not in variants]:
        raise CaseError(
            f"--rates-of {folder}: {file} has no {', '.join(missing)}; end that comparison first, with these --arms"
        )
    return {name: [variants[ARMS[name].title]["best"]] for name in arms}


def lay_out(
    folder: Path, seeds: Sequence[int], rates_by_arm: Mapping[str, Sequence[str]], alike: Sequence[Changes]
) -> tuple[list[TrainedVariant], dict[str, tuple[Any, ...]]]:
    """The runs of each arm, and the cases that train them: what two arms have in common, such as by --set, is one case."""
    runs: dict[str, dict[str, list[Path]]] = {name: {rate: [] for rate in of} for name, of in rates_by_arm.items()}
    cases: dict[str, tuple[Any, ...]] = {}
    names: dict[tuple[str, str], str] = {}
    for seed in seeds:
        for rate in dict.fromkeys(rate for of in rates_by_arm.values() for rate in of):
            for name in [name for name, of in rates_by_arm.items() if rate in of]:
                arm, own = ARMS[name], {**drawn(seed, 2), "train.optimizer.peak_lr": float(rate)}
                config = tiny(*alike, arm.keys, own)
                case = names.setdefault((arm.peer, config.model_dump_json()), f"{name}_{seed}_{rate}")
                cases[case] = (train_peer, arm.peer, config, folder / case)
                runs[name][rate].append(folder / case)
    return [TrainedVariant(ARMS[name].title, of) for name, of in runs.items()], cases


def cost_of(runs: Sequence[Path], experts_N: Sequence[int]) -> dict[str, Any]:
    """What the runs of a variant, one for each seed, have come down to, as plain values. experts_N: as in `Sizes`.

    "spread": by domain, the standard deviation over seeds of the last held-out loss; None for one seed. "load": for each routed
    segment, the tokens of the fullest expert over the mean of all, over all of the training, the mean over seeds; [] if nothing is
    routed. "tokens_per_second": the median over the log lines of all runs, None without one; evaluations are not in it.
    """
    last = [evaluations(run)[-1][1] for run in runs]
    logs = [read_metrics(run) for run in runs]
    loads = [load for log in logs if (load := load_by_segment(log, experts_N))]
    speeds = [line["tokens_per_second"] for log in logs for line in log if line.get("tokens_per_second")]
    return {
        "spread": {
            d: float(np.std([losses[d] for losses in last], ddof=1)) if len(runs) > 1 else None for d in last[0]
        },
        "load": np.mean(loads, axis=0).tolist() if loads else [],
        "tokens_per_second": float(np.median(speeds)) if speeds else None,
    }


def load_by_segment(log: Sequence[Mapping[str, Any]], experts_N: Sequence[int]) -> list[float]:
    """Tokens of the fullest expert over the mean of all experts of its segment, over a whole run; [] if nothing is routed.

    experts_N: number of experts of each segment, without those that only pad the log's rows to one length.
    """
    loads = [np.array(line["tokens_NK"], float) for line in log if line["kind"] == "load"]
    if not loads or not experts_N:
        return []
    load_NK = [row_K[:experts] for row_K, experts in zip(np.sum(loads, axis=0), experts_N, strict=True)]
    return [float(load_K.max() / load_K.mean()) for load_K in load_NK]


def format_gaps(against: Mapping[str, Any], first: str) -> str:
    """A table for people: for each other variant and each domain, how much more than the first it loses, with the 95 % interval."""
    pairs = next(iter(against.values()))["pairs"]
    width, seeds, domains = max(16, *map(len, against)), len(pairs), list(pairs[0]["domains"])
    tokens = sum(row["tokens"] for row in pairs[0]["domains"].values())
    heads = " ".join(f"{domain:>16}" for domain in [*domains, "mean"])
    lines = [
        f"nats a token more than {first}, ± half of the 95 % interval over {seeds} seeds; * certain; {tokens:,} held-out tokens",
        f"{'':{width}} {heads}",
    ]
    for name, comparison in against.items():
        of_domains = [comparison["mean"][d] for d in domains]
        found = [*((of["nats_per_token"], of["se"]) for of in of_domains), mean_over_domains(comparison)]
        lines.append(f"{name:{width}} {' '.join(_gap(mean, error, seeds) for mean, error in found)}".rstrip())
    return "\n".join(lines)


def _gap(mean: float | None, error: float | None, seeds: int) -> str:
    more, half = None if mean is None else -mean, None if error is None else half_width_95(error, seeds)
    return f"{format_number(more, 7, 4)} ±{format_number(half, 6, 4)}{'*' if is_certain(mean, error, seeds) else ' '}"


def format_costs(variants: Mapping[str, Any]) -> str:
    """A table for people: loss by domain with its spread over seeds, sizes, speed and load, of variants at their best rates."""
    width, domains = max(16, *map(len, variants)), list(next(iter(variants.values()))["held_out"])
    heads = [f"{domain:>15}" for domain in domains]
    heads += [f"{head:>9}" for head in ("MFLOPs", "stored", "1 domain", "MB moved", "tokens/s")]
    lines = [
        "held-out loss ± its standard deviation over seeds; MFLOPs of training on a token; millions of values in FFNs,",
        "experts and rows, and what a domain needs of them; MB that ECSS would move in a step, both ways, at most; load of each",
        "segment, max over mean",
        f"{'at its best rate':{width}} {' '.join(heads)}  load",
    ]
    for name, variant in variants.items():
        losses = [
            f"{format_number(variant['held_out'][d], 6)} ±{format_number(variant['spread'][d], 7, 4)}" for d in domains
        ]
        sizes = (variant[key] / 1e6 for key in ("flops", "stored", "extracted", "moved_bytes"))
        cells = [*losses, *(format_number(size, 9, 1) for size in sizes)]
        load = " ".join(format_number(ratio, 0, 2) for ratio in variant["load"]) or "–"
        lines.append(f"{name:{width}} {' '.join(cells)} {format_number(variant['tokens_per_second'], 9, 0)}  {load}")
    return "\n".join(lines)


def format_passes(config: Config) -> str:
    """A line that says how often a run reads the text of each domain. Raises DataError if there is no prepared text."""
    tokens = config.train.steps * config.step_tokens
    counts_D = data_of(config).frequencies().sum(axis=1)
    passes = [
        f"{domain.name} {tokens / len(counts_D) / count:.3f}"
        for domain, count in zip(config.domains, counts_D.tolist(), strict=True)
    ]
    return f"{tokens:,} tokens of training; passes over the text: {', '.join(passes)}"


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


def write_methods(trained: Sequence[TrainedVariant], sizes: Mapping[str, Sizes], folder: Path) -> str:
    """Compare, and write differences.txt, .json and .png into `folder`. Returns what differences.txt holds.

    sizes: by the name of the variant. Raises as `compare_variants` and `last_logged`.
    """
    compared = compare_variants(trained[0], trained[1:], last_logged)
    variants, first = compared["variants"], trained[0].name
    for name, variant in variants.items():
        variant.update(cost_of([Path(run) for run in variant["runs"]], sizes[name].experts_N), **asdict(sizes[name]))
    tables = [format_rates(variants), format_gaps(compared["against"], first)]
    if first != DENSE and DENSE in variants:
        dense = next(variant for variant in trained if variant.name == DENSE)
        others = [variant for variant in trained if variant.name != DENSE]
        compared["against_dense"] = compare_variants(dense, others, last_logged)["against"]
        tables.append(format_gaps(compared["against_dense"], DENSE))
    text = "\n\n".join([*tables, format_costs(variants)])
    write_results(folder, compared, text)
    draw_differences(compared).savefig(folder / "differences.png")
    return text
