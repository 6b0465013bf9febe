"""Summary of a run, and comparison of two, from their metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.root import step_of
from pangu_sigma.data.held_out import samples_of_evaluation
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.train.log.losses import DIFFERENCE_FIGURES, format_number, losses_of
from pangu_sigma.train.log.metrics import FILE, TRAFFIC, EmptyLogError, load_max_over_mean, read_metrics
from pangu_sigma.train.log.pictures import expert_load
from pangu_sigma.train.log.report import PAGE

_FIGURES = ("se", "unigram", "bits_per_byte", "tokens", "samples")
"""Keys of a domain's last evaluation in a summary, besides its loss."""


def summarise(path: Path) -> dict[str, Any]:
    """Return the summary of a run's metrics log as plain values; nothing is written.

    By domain it has the held-out loss in nats per token at the first and at the last evaluation, which is of step `evaluated_at`; a
    loss that is not finite is None. For the last evaluation it also has the standard error, the unigram loss of the same tokens,
    and bits per byte. For the run it has tokens per second, max/mean of the expert load, the number of rows dropped beyond an
    expert's capacity, and the prefetch traffic (medians of the log lines; None without a prefetcher). "report" is the path that
    `write_report` writes to.

    Raises EmptyLogError if the run has not reached its first checkpoint, or its log is missing.
    """
    run = open_model(path, "run")
    lines = read_metrics(path) if (path / FILE).exists() else []
    evaluations = _evaluations(lines)
    if not evaluations or run.latest is None:
        raise EmptyLogError(
            f"{path} has no checkpoint or no losses to report yet; train it first, or wait for its first checkpoint"
        )
    moved = [line for line in lines if "fetched_mib" in line]
    speeds = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
    load_NK = expert_load([line for line in lines if line["kind"] == "load"])
    before, after = evaluations[0], evaluations[-1]
    return {
        "run": str(path),
        "steps": max(line["step"] for line in lines),
        "evaluated_at": after["step"],
        "domains": {
            name: {
                "loss_before": before["per_domain_loss"].get(name),
                "loss_after": loss,
                **{key: after[key][name] for key in _FIGURES},
            }
            for name, loss in after["per_domain_loss"].items()
        },
        "same_samples": before["held_out"] == after["held_out"],
        "tokens_per_second": _median(speeds),
        "ecss": {name: _median([line[name] for line in moved]) for name in TRAFFIC} if moved else None,
        "dropped": sum(line.get("dropped", 0) for line in lines),
        "skipped": sum(line.get("skipped", 0) for line in lines if line["kind"] == "step"),
        "expert_load_max_over_mean": None if load_NK is None else load_max_over_mean(load_NK),
        "checkpoint": str(run.latest),
        "checkpoint_step": step_of(run.latest),
        "report": str(path / PAGE),
    }


def format_summary(summary: dict[str, Any]) -> str:
    """Format a summary as the table that `pangu-sigma report` prints."""
    lines = [
        f"{'domain':12} {'before':>8} {'after':>8} {'±':>8} {'unigram':>8} {'bits/byte':>9}   held-out loss, nats per token",
        *(
            f"{name:12} {format_number(d['loss_before'], 8)} {format_number(d['loss_after'], 8)} {format_number(d['se'], 8)} "
            f"{format_number(d['unigram'], 8)} {format_number(d['bits_per_byte'], 9)}"
            for name, d in summary["domains"].items()
        ),
    ]
    if not summary["same_samples"]:
        lines.append("before       is of other held-out samples: the run was begun on other data")
    if summary["evaluated_at"] != summary["checkpoint_step"]:
        lines.append(
            f"after        is of step {summary['evaluated_at']}, the last evaluation in the log, and the checkpoint of step "
            f"{summary['checkpoint_step']}; pangu-sigma evaluate tells its losses"
        )
    speed, load = summary["tokens_per_second"], summary["expert_load_max_over_mean"]
    lines.append(f"{'steps':12} {summary['steps']}")
    lines += [f"{'tokens/s':12} {speed:,.0f}"] if speed else []
    lines += [f"{'expert load':12} max/mean {load:.2f}"] if load else []
    if dropped := summary["dropped"]:
        lines.append(f"{'dropped':12} {dropped:,} rows beyond parallel.capacity_factor")
    lines += [f"{'skipped':12} {skipped:,} steps, which changed nothing"] if (skipped := summary["skipped"]) else []
    if ecss := summary["ecss"]:
        moved = [format_number(ecss[f"{kind}_mib"], 0, 1) for kind in ("fetched", "refreshed", "returned")]
        lines.append(
            f"{'ECSS':12} fetched {moved[0]}, refreshed {moved[1]}, returned {moved[2]} MiB a step; "
            f"hits {ecss['prefetch_hit_rate'] or 0:.0%}, stall {ecss['prefetch_stall'] or 0:.2%}"
        )
    lines += [f"{name:12} {summary[name]}" for name in ("checkpoint", "report")]
    return "\n".join(lines)


def loss_differences(path: Path, other: Path) -> dict[str, dict[str, Any]]:
    """Return the difference of two runs' held-out losses at their last evaluations, by domain; negative: `path` is better.

    nats_per_token, se, bits_per_byte, bits_per_byte_se: paired by sample, if the logs of both have the same held-out samples.
    Otherwise se and the bits are None, nats_per_token is the difference of the means, and `unpaired` is the reason.
    """
    runs = [open_model(run, "run") for run in (path, other)]
    lines = [_evaluations(read_metrics(run.path))[-1] for run in runs]
    mine, theirs = map(losses_of, lines)
    result: dict[str, dict[str, Any]] = {}
    for name, loss in lines[0]["per_domain_loss"].items():
        against = lines[1]["per_domain_loss"].get(name)
        if name in theirs and mine[name].digest == theirs[name].digest:
            result[name] = mine[name].minus(theirs[name]).figures()
        else:
            gap = None if loss is None or against is None else loss - against
            result[name] = dict.fromkeys(DIFFERENCE_FIGURES) | {"nats_per_token": gap}
            result[name]["unpaired"] = _why_unpaired(*runs) if name in theirs else f"{other} has no such domain"
    return result


def why_incomparable(run: StoredModel, other: StoredModel) -> str:
    """Return why held-out losses of two runs are incomparable (tokenizer, sequence length); "" if they may be comparable."""
    if run.tokenizer.hash != other.tokenizer.hash:
        return "their tokenizers differ"
    lengths = [r.config.model.seq_length for r in (run, other)]
    return "" if lengths[0] == lengths[1] else f"model.seq_length is {lengths[0]} and {lengths[1]}"


def format_comparison(summary: dict[str, Any], other: dict[str, Any]) -> str:
    """Format a table of the held-out losses of two runs side by side, with their difference (negative: the first run is better).

    other: summary of the second run; its key `loss_differences`, if there, gives the standard error.
    """
    width = max(len(summary["run"]), len(other["run"]), 8)
    heads = f"{summary['run']:>{width}} {other['run']:>{width}} {'difference':>10} {'±':>8} {'unigram':>8}"
    lines = [f"{'domain':12} {heads}   held-out loss, nats per token"]
    reasons: dict[str, list[str]] = {}
    for name, domain in summary["domains"].items():
        mine, theirs = domain["loss_after"], other["domains"].get(name, {}).get("loss_after")
        paired = other.get("differences", {}).get(name, {})
        gap = None if mine is None or theirs is None else mine - theirs
        lines.append(
            f"{name:12} {format_number(mine, width)} {format_number(theirs, width)} "
            f"{format_number(paired.get('nats_per_token', gap), 10)} "
            f"{format_number(paired.get('se'), 8)} {format_number(domain['unigram'], 8)}"
        )
        if "unpaired" in paired:
            reasons.setdefault(paired["unpaired"], []).append(name)
    for key, title in (("steps", "steps"), ("tokens_per_second", "tokens/s")):
        lines.append(f"{title:12} {summary[key] or 0:{width},.0f} {other[key] or 0:{width},.0f}")
    lines += [f"no error for {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "\n".join(lines)


def _why_unpaired(run: StoredModel, other: StoredModel) -> str:
    """Return why the logs of two runs have losses of different samples of a domain, and what to do."""
    again = f"pangu-sigma evaluate {run.path} --against {other.path} measures both on the same tokens"
    if reason := why_incomparable(run, other):
        return f"{reason}, so the samples are not the same"
    counts = [samples_of_evaluation(each.config) for each in (run, other)]
    if counts[0] != counts[1]:
        return f"train.eval_batches · train.batch_size is {counts[0]} and {counts[1]} samples; {again}"
    return "the held-out text differs, or one evaluated blocks of samples, on Ascend, and the other single ones"


def _evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == "evaluation"]


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
