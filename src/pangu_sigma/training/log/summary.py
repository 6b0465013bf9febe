"""Summary of a run from its metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.checkpoint import Checkpoint
from pangu_sigma.held_out.compare import differences_of, format_differences
from pangu_sigma.held_out.losses import HeldOutLoss, format_numbers, losses_of
from pangu_sigma.results import aligned
from pangu_sigma.stored.model import read_lineage, read_tuning_result
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.metrics import (
    FILE,
    LAST,
    SUMMED,
    EmptyLogError,
    columns,
    expert_load,
    lines_by_kind,
    load_max_over_mean,
    points,
)

PAGE = Path("report/report.html")
"""Path of the HTML report in a run folder."""
_FIGURES = ("se", "unigram", "bits_per_byte", "tokens", "samples")
"""Keys of a domain's last evaluation in a summary, besides its loss."""
_LINES = (
    ("tokens/s", "{tokens_per_second:,.0f}"),
    ("expert load", "max/mean {expert_load_max_over_mean:.2f}, idle experts counted"),
    ("dropped", "{dropped:,} rows beyond parallel.capacity_factor"),
    ("clipped", "{clipped:,} steps, by train.optimizer.clip_norm"),
    ("skipped", "{skipped:,} steps, which changed nothing"),
    ("ECSS", "fetched {fetched_mib:,.1f}, returned {returned_mib:,.1f} MiB of active experts a step"),
)
"""Lines of a summary; one is left out if its first number is zero or missing."""


def summarise(path: Path) -> dict[str, Any]:
    """Return the summary of a run's metrics log as plain values; nothing is written.

    domains: for each domain `loss_before` and `loss_after` training, in nats per token, None if not finite; of the later evaluation
        `_FIGURES`; and `epochs`, how often the training text was read.
    evaluated_at: step of the later evaluation: the one at the newest checkpoint, or else the last one.
    same_samples: True if both evaluations have the same held-out samples.
    expert_load_max_over_mean: max/mean of the load of all experts that the run's domains can reach.
    rows: the last `rows` line. report: path that `write_report` writes to.
    finetune: result of `read_tuning`; a tuned run's losses are of its dev set, which `losses` says.
    Every other number of the `step` lines has its name as its key: the sum over all lines, the last value, or the median
    (metrics.py says which). `samples` is left out, because here it is the number of held-out samples of a domain.

    Raises EmptyLogError if the run has not reached its first checkpoint, or its log is missing.
    """
    run, tuning = open_model(path, "run"), read_tuning(path)
    lines = lines_by_kind(path) if (path / FILE).exists() else {}
    evaluations, steps = lines.get("evaluation", []), columns(lines.get("step", []))
    newest = run.newest
    if newest is None or not (evaluations or (tuning and lines)):
        raise EmptyLogError(
            f"{path} has no checkpoint or no losses to report yet; train it first, or wait for its first checkpoint"
        )
    load_NK = expert_load(lines.get("load", []))
    trained = [n for n, domain in enumerate(run.config.domains) if f"loss/{domain.name}" in steps]
    reachable_N = run.config.reachable_experts(trained)
    empty_line: dict[str, Any] = {"step": None, "per_domain_loss": {}, "held_out": {}}  # tuned without a dev set
    before, after = evaluations[0] if evaluations else empty_line, evaluation_of(newest, evaluations) or empty_line
    return {
        "run": str(path),
        "losses": "loss on the dev set" if tuning else "held-out loss",
        "steps": max(line["step"] for lines_of_kind in lines.values() for line in lines_of_kind),
        "evaluated_at": after["step"],
        "domains": {
            name: {
                "loss_before": before["per_domain_loss"].get(name),
                "loss_after": loss,
                **{key: after[key][name] for key in _FIGURES},
                "epochs": _over_run(steps, f"epochs/{name}"),
            }
            for name, loss in after["per_domain_loss"].items()
        },
        "same_samples": before["held_out"] == after["held_out"],
        **{name: _over_run(steps, name) for name in steps if "/" not in name and name != "samples"},
        "expert_load_max_over_mean": None if load_NK is None else load_max_over_mean(load_NK, reachable_N),
        "rows": lines["rows"][-1] if "rows" in lines else None,
        "checkpoint": str(newest.path),
        "checkpoint_step": newest.step,
        "report": str(path / PAGE),
        "finetune": tuning,
    }


def _over_run(steps: Mapping[str, Any], name: str) -> float | None:
    """Return the sum (SUMMED), last value (LAST) or median of a number over the `step` lines, as `columns`; None without values."""
    values, metric = points(steps, name)[1], name.partition("/")[0]
    if metric in SUMMED:
        return int(values.sum())
    return float(values[-1] if metric in LAST else np.median(values)) if values.size else None


def format_summary(summary: dict[str, Any]) -> str:
    """Format a summary as the table that `pangu-sigma report` prints."""
    keys = ("loss_before", "loss_after", "se", "unigram", "bits_per_byte", "epochs")
    table = [["domain", "before", "after", "±", "unigram", "bits/byte", "epochs"]]
    for name, domain in summary["domains"].items():
        table.append([name, *format_numbers([domain[key] for key in keys], (3, 3, 3, 3, 3, 2))])
    lines = aligned(table, "<>", f"{summary['losses']}, nats per token")
    if not summary["same_samples"]:
        lines.append("before       is of other held-out samples: the run was begun on other data")
    if summary["evaluated_at"] not in (None, summary["checkpoint_step"]):
        lines.append(
            f"after        is of step {summary['evaluated_at']}, the last evaluation in the log, and the checkpoint of step "
            f"{summary['checkpoint_step']}; pangu-sigma evaluate tells its losses"
        )
    lines.append(f"{'steps':12} {summary['steps']}")
    for title, text in _LINES:
        name = text.partition("{")[2].partition(":")[0]  # the first number in the text
        lines += [f"{title:12} {text.format_map(summary)}"] if summary.get(name) else []
    lines += format_rows(summary["rows"])
    lines += [f"{name:12} {summary[name]}" for name in ("checkpoint", "report")]
    return "\n".join(lines)


def format_rows(line: dict[str, Any] | None) -> list[str]:
    """Format a `rows` line of metrics.jsonl: a line for each entry, and one for the scales; nothing for None."""
    if line is None:
        return []
    scales = ", ".join(f"{scale:.3g}" for scale in line["scales"].values())
    return [
        *(
            f"{f'rows, {e}':12} {entry['met']:,} of {entry['stored']:,} met ({entry['met'] / entry['stored']:.2%})"
            + ("" if entry["collisions"] is None else f", about {entry['collisions']:,} pairs more than rows")
            for e, entry in line["entries"].items()
        ),
        f"{'row scales':12} {scales}, layer by layer, after step {line['step']}",
    ]


def format_divergence(lines: list[dict[str, Any]], peak_lr: float) -> str:
    """Format a warning if the last held-out loss in a log's lines is above the loss of step 0 in all domains; else return ""."""
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    if not evaluations or evaluations[0]["step"] or evaluations[0]["held_out"] != evaluations[-1]["held_out"]:
        return ""  # no evaluation at step 0, or other held-out samples since
    final = evaluations[-1]["per_domain_loss"]
    pairs = {name: (loss, final[name]) for name, loss in evaluations[0]["per_domain_loss"].items() if name in final}
    # the log has None for a loss that is not finite
    losses = {name: [math.inf if loss is None else loss for loss in pair] for name, pair in pairs.items()}
    if not losses or any(after <= before for before, after in losses.values()):
        return ""
    changes = ", ".join(f"{name} {before:.4g} → {after:.4g}" for name, (before, after) in losses.items())
    return (
        f"the held-out loss ended above that of step 0 in all domains ({changes}): the training diverged; lower "
        f"train.optimizer.peak_lr={peak_lr:g}"
    )


def read_tuning(folder: Path) -> dict[str, Any] | None:
    """Return parent, parent_step and options of a tuned run, and its result once it is finished; None for other runs.

    Raises DamagedFile if one of the two files was changed.
    """
    lineage = read_lineage(folder) or {}
    if lineage.get("kind") != "finetune":
        return None
    return {key: lineage.get(key) for key in ("parent", "parent_step", "options")} | (read_tuning_result(folder) or {})


def logged_losses(path: Path) -> dict[str, HeldOutLoss]:
    """Return the held-out loss of each domain that a run logged at its newest checkpoint, or else last."""
    line = evaluation_of(open_model(path, "run").newest, lines_by_kind(path)["evaluation"])
    return losses_of(line or {"per_sample": {}})


def evaluation_of(newest: Checkpoint | None, evaluations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the `evaluation` line of a run's newest checkpoint; the last line if there is none; None if there are no lines."""
    last_line = evaluations[-1] if evaluations else None
    return next((line for line in evaluations if newest and line["step"] == newest.step), last_line)


def compare_logs(run: Path, other: Path) -> tuple[dict[str, Any], str]:
    """Compare the held-out losses that two runs logged at their newest checkpoints. Return the difference of each domain, as
    `differences_of` does, and the table of the losses. Domains whose samples differ are left out, with the reason."""
    losses, other_losses = logged_losses(run), logged_losses(other)
    fix = f"pangu-sigma evaluate {run} --against {other} measures both, or says why not"
    reason = f"the logs have no losses of the same samples; {fix}"
    names = [name for name in losses if name in other_losses and losses[name].digest == other_losses[name].digest]
    comparable = {run: {n: losses[n] for n in names}, other: {n: other_losses[n] for n in names}}
    left_out = {name: reason for name in losses | other_losses if name not in names}
    comparison = differences_of(comparable, [run], [other]) | {"left_out": left_out}
    differences = {name: row["difference"] for name, row in comparison["pairs"][0]["domains"].items()}
    return differences, format_differences(comparison)
