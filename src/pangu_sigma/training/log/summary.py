"""Summary of a run, and comparison of two, from their metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.root import step_of
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.differences import evaluation_of, format_missing
from pangu_sigma.training.log.losses import format_number
from pangu_sigma.training.log.metrics import FILE, TRAFFIC, EmptyLogError, load_max_over_mean, read_metrics
from pangu_sigma.training.log.pictures import expert_load
from pangu_sigma.training.log.report import PAGE, last_epochs, read_tuning

_FIGURES = ("se", "unigram", "bits_per_byte", "tokens", "samples")
"""Keys of a domain's last evaluation in a summary, besides its loss."""


def summarise(path: Path) -> dict[str, Any]:
    """Return the summary of a run's metrics log as plain values; nothing is written.

    For each domain it has the held-out loss in nats per token before and after training; None if it is not finite. "After" is the
    evaluation at the newest checkpoint, or else the last one; its step is `evaluated_at`. That loss comes with its standard error,
    the unigram loss of the same tokens, bits per byte, and how often the training text was read ("epochs"). For the run it has
    tokens per second, max/mean of the load of all experts that its domains can reach, the number of rows dropped beyond an expert's
    capacity, the median traffic of experts of a log line, None without ECSS, and the last `rows` line.
    "report" is the path that `write_report` writes to; "finetune" is `read_tuning`: the losses of a tuned run are of its dev set.

    Raises EmptyLogError if the run has not reached its first checkpoint, or its log is missing.
    """
    run, tuning = open_model(path, "run"), read_tuning(path)
    lines = read_metrics(path) if (path / FILE).exists() else []
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    if run.latest is None or not (evaluations or (tuning and lines)):
        raise EmptyLogError(
            f"{path} has no checkpoint or no losses to report yet; train it first, or wait for its first checkpoint"
        )
    steps = [line for line in lines if line["kind"] == "step"]
    moved = [line for line in lines if "fetched_mib" in line]
    speeds = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
    load_NK = expert_load([line for line in lines if line["kind"] == "load"])
    trained = {name for line in steps for name in line["per_domain_loss"]}
    reachable_N = run.config.reachable_experts(
        n for n, domain in enumerate(run.config.domains) if domain.name in trained
    )
    nothing: dict[str, Any] = {
        "step": None,
        "per_domain_loss": {},
        "held_out": {},
    }  # of a run that is tuned without a dev set
    before, after = evaluations[0] if evaluations else nothing, evaluation_of(run, lines) or nothing
    return {
        "run": str(path),
        "losses": "loss on the dev set" if tuning else "held-out loss",
        "steps": max(line["step"] for line in lines),
        "evaluated_at": after["step"],
        "domains": {
            name: {
                "loss_before": before["per_domain_loss"].get(name),
                "loss_after": loss,
                **{key: after[key][name] for key in _FIGURES},
                "epochs": last_epochs(steps, name),
            }
            for name, loss in after["per_domain_loss"].items()
        },
        "same_samples": before["held_out"] == after["held_out"],
        "tokens_per_second": _median(speeds),
        "ecss": {name: _median([line[name] for line in moved]) for name in TRAFFIC} if moved else None,
        "dropped": sum(line.get("dropped", 0) for line in lines),
        "skipped": sum(line.get("skipped", 0) for line in lines if line["kind"] == "step"),
        "clipped": sum(line.get("clipped", 0) for line in lines if line["kind"] == "step"),
        "expert_load_max_over_mean": None if load_NK is None else load_max_over_mean(load_NK, reachable_N),
        "rows": next((line for line in reversed(lines) if line["kind"] == "rows"), None),
        "checkpoint": str(run.latest),
        "checkpoint_step": step_of(run.latest),
        "report": str(path / PAGE),
        "finetune": tuning,
    }


def format_summary(summary: dict[str, Any]) -> str:
    """Format a summary as the table that `pangu-sigma report` prints."""
    lines = [
        f"{'domain':12} {'before':>8} {'after':>8} {'±':>8} {'unigram':>8} {'bits/byte':>9} {'epochs':>7}   "
        f"{summary['losses']}, nats per token",
        *(
            f"{name:12} {format_number(d['loss_before'], 8)} {format_number(d['loss_after'], 8)} {format_number(d['se'], 8)} "
            f"{format_number(d['unigram'], 8)} {format_number(d['bits_per_byte'], 9)} "
            f"{format_number(d['epochs'], 7, 2)}"
            for name, d in summary["domains"].items()
        ),
    ]
    if not summary["same_samples"]:
        lines.append("before       is of other held-out samples: the run was begun on other data")
    if summary["evaluated_at"] not in (None, summary["checkpoint_step"]):
        lines.append(
            f"after        is of step {summary['evaluated_at']}, the last evaluation in the log, and the checkpoint of step "
            f"{summary['checkpoint_step']}; pangu-sigma evaluate tells its losses"
        )
    speed, load = summary["tokens_per_second"], summary["expert_load_max_over_mean"]
    lines.append(f"{'steps':12} {summary['steps']}")
    lines += [f"{'tokens/s':12} {speed:,.0f}"] if speed else []
    lines += [f"{'expert load':12} max/mean {load:.2f}, idle experts counted"] if load else []
    if dropped := summary["dropped"]:
        lines.append(f"{'dropped':12} {dropped:,} rows beyond parallel.capacity_factor")
    lines += (
        [f"{'clipped':12} {clipped:,} steps, by train.optimizer.clip_norm"] if (clipped := summary["clipped"]) else []
    )
    lines += [f"{'skipped':12} {skipped:,} steps, which changed nothing"] if (skipped := summary["skipped"]) else []
    if ecss := summary["ecss"]:
        moved = [format_number(ecss[key], 0, 1) for key in TRAFFIC]
        lines.append(f"{'ECSS':12} fetched {moved[0]}, returned {moved[1]} MiB of active experts a step")
    lines += format_rows(summary["rows"])
    lines += [f"{name:12} {summary[name]}" for name in ("checkpoint", "report")]
    return "\n".join(lines)


def format_rows(line: dict[str, Any] | None) -> list[str]:
    """Format a `rows` line of metrics.jsonl: a line for each entry, and one for the scales; nothing for None."""
    if line is None:
        return []
    scales = ", ".join(f"{scale:.3g}" for scale in line["scales"])
    return [
        *(
            f"{f'rows, {e}':12} {entry['met']:,} of {entry['stored']:,} met ({entry['met'] / entry['stored']:.2%})"
            + ("" if entry["collisions"] is None else f", about {entry['collisions']:,} pairs more than rows")
            for e, entry in enumerate(line["entries"])
        ),
        f"{'row scales':12} {scales}, layer by layer, after step {line['step']}",
    ]


def format_divergence(lines: list[dict[str, Any]], peak_lr: float) -> str:
    """Format a warning of a log whose last held-out loss is above that of step 0 in all domains; "" for any other log."""
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    if not evaluations or evaluations[0]["step"] or evaluations[0]["held_out"] != evaluations[-1]["held_out"]:
        return ""
    before, after = (
        {name: math.inf if loss is None else loss for name, loss in line["per_domain_loss"].items()}
        for line in (evaluations[0], evaluations[-1])
    )
    if not after or any(loss <= before[name] for name, loss in after.items()):
        return ""
    changes = ", ".join(f"{name} {before[name]:.4g} → {loss:.4g}" for name, loss in after.items())
    return (
        f"the held-out loss ended above that of step 0 in all domains ({changes}): the training diverged; lower "
        f"train.optimizer.peak_lr={peak_lr:g}"
    )


def format_comparison(summary: dict[str, Any], other: dict[str, Any]) -> str:
    """Format a table of the held-out losses of two runs side by side, and of the first minus the second (negative: it is better).

    other: summary of the second run, with `loss_differences` under "differences".
    """
    width = max(len(summary["run"]), len(other["run"]), 8)
    heads = f"{summary['run']:>{width}} {other['run']:>{width}} {'first − second':>14} {'±':>8} {'unigram':>8}"
    lines = [f"{'domain':12} {heads}   {summary['losses']}, nats per token"]
    for name, domain in summary["domains"].items():
        theirs, difference = other["domains"].get(name, {}).get("loss_after"), other["differences"][name]
        lines.append(
            f"{name:12} {format_number(domain['loss_after'], width)} {format_number(theirs, width)} "
            f"{format_number(difference.get('nats_per_token'), 14)} {format_number(difference.get('se'), 8)} "
            f"{format_number(domain['unigram'], 8)}"
        )
    for key, title in (("steps", "steps"), ("tokens_per_second", "tokens/s")):
        lines.append(f"{title:12} {summary[key] or 0:{width},.0f} {other[key] or 0:{width},.0f}")
    return "\n".join([*lines, *format_missing(other["differences"])])


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
