"""Comparison of runs by their losses on the same held-out tokens, with the standard error of the difference.

For a single pair of runs the error is over samples of text (losses.py): does the difference depend on the text? For
the mean of several pairs it is over pairs: does the difference depend on the seed?

Shape suffixes: P pairs of runs, U samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.errors import argument
from pangu_sigma.held_out.batches import HeldOut, samples_of_evaluation
from pangu_sigma.held_out.losses import Difference, DomainFigures, HeldOutLoss, finite_or_none, format_numbers, mean_of
from pangu_sigma.held_out.run import held_out_batches, measure
from pangu_sigma.results import aligned
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model

Losses = dict[str, HeldOutLoss]


def compare_runs(runs: Sequence[Path], others: Sequence[Path], all: bool = False) -> dict[str, Any]:
    """Compare the losses of each of `runs` with its counterpart in `others` on the same held-out tokens.

    all: True to read all held-out samples, False for as many as the training of the first run evaluates.
    Returns {"pairs": [{"run", "against", "domains"}, …], "mean", "left_out"}. Each domain of a pair has the metrics of
    `evaluate_run`, the other run's as "against", and `Difference.figures` as "difference". "mean" has, by domain, the mean
    difference of all pairs, its standard error over pairs (None for a single pair), and its standard error over samples of text.
    "left_out" says of each domain without the same held-out tokens in all runs why it has none.
    Raises ConfigError if the numbers of runs differ, or if no domain has the same held-out tokens in all runs.
    """
    if len(runs) != len(others):
        raise ConfigError(f"{len(runs)} runs against {len(others)}; {argument('--against')} takes as many as runs")
    losses, reasons = measure_together([*runs, *others], all)
    return {**differences_of(losses, runs, others), "left_out": reasons}


def measure_together(runs: Sequence[Path], all: bool = False) -> tuple[dict[Path, Losses], dict[str, str]]:
    """Measure the losses of each run on the held-out tokens that all runs have, in batches shaped as the first run's, so that equal
    weights have equal losses bit for bit. Returns (losses by run and domain, result of `left_out`). all: as in `compare_runs`,
    whose errors are raised."""
    models = {path: open_model(path, "run") for path in runs}
    batches = {path: held_out_batches(model, models[runs[0]].config) for path, model in models.items()}
    sample_limit = samples_of_evaluation(models[runs[0]].config, all)
    reasons = left_out(list(models.values()), list(batches.values()), sample_limit)
    losses = {path: measure(model, batches[path], sample_limit) for path, model in models.items()}
    return {path: {d: losses[path][d] for d in losses[path] if d not in reasons} for path in losses}, reasons


def differences_of(losses: Mapping[Path, Losses], runs: Sequence[Path], others: Sequence[Path]) -> dict[str, Any]:
    """Return "pairs" and "mean" of `compare_runs`. losses: by run, all of the same domains and samples. runs, others: the first and
    second runs of the pairs."""
    pairs = [(losses[run], losses[other]) for run, other in zip(runs, others, strict=True)]
    return {
        "pairs": [
            {"run": str(run), "against": str(other), "domains": _domain_figures(*pair)}
            for run, other, pair in zip(runs, others, pairs, strict=True)
        ],
        "mean": {name: _mean_figures(name, pairs) for name in pairs[0][0]},
    }


def left_out(runs: Sequence[StoredModel], batches: Sequence[BatchLoader], sample_limit: int) -> dict[str, str]:
    """Return the domains whose held-out samples or tokens differ between the runs, as name → reason.

    An extended run has the tokens of its parent in old domains, though vocabulary and slots grew. Raises ConfigError if no domain
    is left.
    """
    digests, reasons = [HeldOut(loader, sample_limit).digests() for loader in batches], dict[str, str]()
    for name in dict.fromkeys(name for of_run in digests for name in of_run):
        for run, of_run in zip(runs, digests, strict=True):
            if name not in of_run:
                reasons[name] = f"{run.path} has no such domain"
            elif of_run[name] != digests[0].get(name):
                text_differs = f"its held-out text in {runs[0].config.data.path} and {run.config.data.path} differs"
                reasons.setdefault(name, _why_incomparable(runs[0], run) or text_differs)
    if digests[0].keys() <= reasons.keys():
        raise ConfigError(
            f"{', '.join(str(run.path) for run in runs)} cannot be compared token by token: {'; '.join(_lines(reasons))}; train "
            "them on the same prepared data, or compare losses of one text by `evaluate MODEL --input FILE --all-samples`"
        )
    return reasons


def _lines(reasons: Mapping[str, str]) -> list[str]:
    """Format the result of `left_out` as a line for each reason, with all domains of that reason."""
    names = {reason: [name for name in reasons if reasons[name] == reason] for reason in reasons.values()}
    return [f"{', '.join(names[reason])}: {reason}" for reason in names]


def _why_incomparable(run: StoredModel, other: StoredModel) -> str:
    """Return why the held-out samples of two runs may differ (tokenizer, sequence length); "" if it is due to the text."""
    if run.tokenizer.hash != other.tokenizer.hash:
        return "their tokenizers differ"
    length, other_length = run.config.model.seq_length, other.config.model.seq_length
    return "" if length == other_length else f"model.seq_length is {length} and {other_length}"


def _domain_figures(losses: Losses, others: Losses) -> DomainFigures:
    """Return the figures of each domain in one pair of runs, with the other run's figures and the difference."""
    return {
        name: loss.figures() | {"against": others[name].figures(), "difference": loss.minus(others[name]).figures()}
        for name, loss in losses.items()
    }


def _mean_figures(name: str, pairs: list[tuple[Losses, Losses]]) -> dict[str, float | None]:
    """Return the mean difference of a domain over pairs, with both of its standard errors."""
    differences = [losses[name].minus(others[name]) for losses, others in pairs]
    over_pairs = Difference(mean_of([d.nats.mean for d in differences]), mean_of([d.bits.mean for d in differences]))
    # the mean difference of each sample as a loss: its standard error is over samples of text
    difference_U = np.mean([losses[name].nats_U - others[name].nats_U for losses, others in pairs], axis=0)
    over_text = dataclasses.replace(pairs[0][0][name], nats_U=difference_U)
    return over_pairs.figures() | {
        "se_of_text": finite_or_none(over_text.nats_per_token.error),
        "bits_per_byte_se_of_text": finite_or_none(over_text.bits_per_byte.error),
        "pairs": len(pairs),
    }


def format_differences(comparison: dict[str, Any]) -> str:
    """Format the table of `evaluate --against` and `report --against`. A negative difference means that the run is better than
    the other."""
    pairs, means = comparison["pairs"], comparison["mean"]
    rows = [["domain", "run", "against", "loss", "against", "nats", "±", "bits/byte", "±", "unigram"]]
    for name, mean in means.items():
        for pair in pairs:
            row = pair["domains"][name]
            values = [row["loss"], row["against"]["loss"], *row["difference"].values(), row["unigram"]]
            cells = format_numbers(values, (3, 3, 4, 4, 4, 4, 3))
            cells[:2] = ["not finite" if v is None else cell for v, cell in zip(values[:2], cells, strict=False)]
            rows.append([name, pair["run"], pair["against"], *cells])
        if len(pairs) > 1:
            names = ("nats_per_token", "se", "bits_per_byte", "bits_per_byte_se")
            over_pairs = format_numbers([mean[name] for name in names], [4] * 4)
            of_nats, of_bits = format_numbers([mean["se_of_text"], mean["bits_per_byte_se_of_text"]], [4] * 2)
            rows.append([name, f"mean of {len(pairs)}, ± over pairs", "", "", "", *over_pairs, ""])
            rows.append([name, "its ± over samples", "", "", "", "", of_nats, "", of_bits, ""])
    table = aligned(rows, "<<<>", "held-out; ± over samples")
    return "\n".join([*table, *(f"not compared: {reason}" for reason in _lines(comparison["left_out"]))])
