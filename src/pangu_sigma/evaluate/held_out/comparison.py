"""Comparison of runs by their losses on the same held-out tokens, with the standard error of the difference.

For a single pair of runs the error is over samples of text (`training/log/losses.py`): does the difference depend on the text? For
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
from pangu_sigma.data.held_out import HeldOut
from pangu_sigma.errors import argument
from pangu_sigma.evaluate.held_out.run import (
    DomainFigures,
    figures_with_perplexity,
    held_out_batches,
    measure,
    samples_read,
)
from pangu_sigma.results import aligned
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.losses import Difference, HeldOutLoss, finite_or_none, format_numbers, mean_of
from pangu_sigma.training.log.summary import logged_losses

Losses = dict[str, HeldOutLoss]


def compare_runs(runs: Sequence[Path], others: Sequence[Path], all: bool = False) -> dict[str, Any]:
    """Compare the losses of each of `runs` with its counterpart in `others` on the same held-out tokens.

    all: True to read all held-out samples, False for as many as the training of the first run evaluates.
    Returns {"pairs": [{"run", "against", "domains"}, …], "mean"}. Each domain of a pair has the metrics of `evaluate_run`, those of
    the other run as "against", and `Difference.figures` as "difference". "mean" has, by domain, the mean difference of all pairs,
    its standard error over pairs (None for a single pair), and its standard error over samples of text.
    Raises ConfigError if the numbers of runs differ, or if a run has another tokenizer or other held-out text than the first.
    """
    if len(runs) != len(others):
        raise ConfigError(
            f"{len(runs)} runs against {len(others)}; {argument('--against')} takes as many as there are runs"
        )
    return differences_of(measure_together([*runs, *others], all), runs, others)


def measure_together(runs: Sequence[Path], all: bool = False) -> dict[Path, Losses]:
    """Measure the losses of each run on the same held-out tokens, in batches as in the first run, so that equal weights have equal
    losses bit for bit. Arguments and errors as in `compare_runs`."""
    opened, first = {path: open_model(path, "run") for path in runs}, runs[0]
    batches = {path: held_out_batches(run, opened[first].config) for path, run in opened.items()}
    most = samples_read(opened[first], batches[first], all)
    for path in opened:
        _check_same_text(opened[first], opened[path], batches[first], batches[path], most)
    return {path: measure(run, batches[path], most) for path, run in opened.items()}


def differences_of(losses: Mapping[Path, Losses], runs: Sequence[Path], others: Sequence[Path]) -> dict[str, Any]:
    """Return the result of `compare_runs` for losses by run. runs and others have the same length. A domain without losses of the
    same samples is left out."""
    pairs = [_paired(losses[run], losses[other]) for run, other in zip(runs, others, strict=True)]
    return {
        "pairs": [
            {"run": str(run), "against": str(other), "domains": _rows(*pair)}
            for run, other, pair in zip(runs, others, pairs, strict=True)
        ],
        "mean": {name: _mean(name, pairs) for name in pairs[0][0]},
    }


def compare_logs(run: Path, other: Path) -> tuple[dict[str, Any], str]:
    """Return the difference of what two runs logged at their newest checkpoints, by domain, and the table of their losses."""
    losses = {path: logged_losses(path) for path in (run, other)}
    compared = differences_of(losses, [run], [other])
    (pair,), text = compared["pairs"], format_differences(compared)
    differences = {name: row["difference"] for name, row in pair["domains"].items()}
    if left_out := [name for name in dict.fromkeys([*losses[run], *losses[other]]) if name not in differences]:
        text += (
            f"\nno difference for {', '.join(left_out)}: the logs have no losses of the same samples; pangu-sigma evaluate {run} "
            f"--against {other} measures both, or says why not"
        )
    return differences, text


def _paired(mine: Losses, theirs: Losses) -> tuple[Losses, Losses]:
    names = [name for name, loss in mine.items() if name in theirs and loss.digest == theirs[name].digest]
    return {name: mine[name] for name in names}, {name: theirs[name] for name in names}


def _check_same_text(run: StoredModel, other: StoredModel, own: BatchLoader, theirs: BatchLoader, most: int) -> None:
    """Raise ConfigError unless two runs have the same domains and the same held-out samples, in the same tokens."""
    reason, lengths = "", [each.config.model.seq_length for each in (run, other)]
    names = [[domain.name for domain in batches.domains] for batches in (own, theirs)]
    if run.tokenizer.hash != other.tokenizer.hash:
        reason = "their tokenizers differ"
    elif lengths[0] != lengths[1]:
        reason = f"model.seq_length is {lengths[0]} and {lengths[1]}"
    elif names[0] != names[1]:
        reason = f"their domains are {', '.join(names[0])} and {', '.join(names[1])}"
    else:
        digests = [HeldOut(batches, most).digests() for batches in (own, theirs)]
        differing = [name for name in names[0] if digests[0][name] != digests[1][name]]
        if differing:
            reason = f"the held-out text of {', '.join(differing)} in {own.folder} and {theirs.folder} differs"
    if reason:
        raise ConfigError(
            f"{run.path} and {other.path} cannot be compared token by token: {reason}; train both on the same prepared data, or "
            "compare losses of one text by `evaluate MODEL --input FILE`"
        )


def _rows(mine: Losses, theirs: Losses) -> DomainFigures:
    return {
        name: figures_with_perplexity(loss)
        | {"against": figures_with_perplexity(theirs[name]), "difference": loss.minus(theirs[name]).figures()}
        for name, loss in mine.items()
    }


def _mean(name: str, pairs: list[tuple[Losses, Losses]]) -> dict[str, float | None]:
    """Return the mean difference of a domain over pairs, with both of its standard errors."""
    differences = [mine[name].minus(theirs[name]) for mine, theirs in pairs]
    over_pairs = Difference(mean_of([d.nats.mean for d in differences]), mean_of([d.bits.mean for d in differences]))
    gap_U = np.mean([mine[name].nats_U - theirs[name].nats_U for mine, theirs in pairs], axis=0)
    over_text = dataclasses.replace(pairs[0][0][name], nats_U=gap_U)
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
            over_pairs = format_numbers(
                [mean[key] for key in ("nats_per_token", "se", "bits_per_byte", "bits_per_byte_se")], [4] * 4
            )
            of_nats, of_bits = format_numbers([mean["se_of_text"], mean["bits_per_byte_se_of_text"]], [4] * 2)
            rows.append([name, f"mean of {len(pairs)}, ± over pairs", "", "", "", *over_pairs, ""])
            rows.append([name, "its ± over samples", "", "", "", "", of_nats, "", of_bits, ""])
    return "\n".join(aligned(rows, "<<<>", "held-out; ± over samples"))
