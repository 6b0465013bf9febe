"""The few numbers that a run comes down to, from its metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.config import ConfigError
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.train.metrics import FILE, TRAFFIC, load_max_over_mean, read_metrics
from pangu_sigma.train.pictures import expert_load
from pangu_sigma.train.report import write_report


def summarise(path: Path) -> dict[str, Any]:
    """The summary of a run, as plain values.

    It holds held-out losses (nats per token) before and after, by domain, beside the unigram entropy; tokens per second; the load
    of the fullest expert over the mean; the number of rows dropped beyond an expert's capacity; and what the prefetcher moved
    (medians of the log lines; None without one).

    Raises ConfigError when the run has not reached its first checkpoint.
    """
    run = RunFolder.open(path)
    lines = read_metrics(path) if (path / FILE).exists() else []
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    if not evaluations or run.latest is None:
        raise ConfigError(
            f"{path} has no checkpoint and no losses to report yet; train it first, or wait for its first checkpoint"
        )
    moved = [line for line in lines if "fetched_mib" in line]
    speeds = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
    load_NK = expert_load([line for line in lines if line["kind"] == "load"])
    manifest = load_manifest(Path(run.config.data.path))
    return {
        "run": str(path),
        "steps": max(line["step"] for line in lines),
        "domains": {
            name: {
                "loss_before": evaluations[0]["per_domain_loss"][name],
                "loss_after": evaluations[-1]["per_domain_loss"][name],
                "unigram": manifest.domains[name].unigram_entropy,
            }
            for name in evaluations[0]["per_domain_loss"]
        },
        "tokens_per_second": _median(speeds),
        "ecss": {name: _median([line[name] for line in moved]) for name in TRAFFIC} if moved else None,
        "dropped": sum(line.get("dropped", 0) for line in lines),
        "skipped": sum(line.get("skipped", 0) for line in lines if line["kind"] == "step"),
        "expert_load_max_over_mean": None if load_NK is None else load_max_over_mean(load_NK),
        "checkpoint": str(run.latest),
        "report": str(write_report(path)),
    }


def format_summary(summary: dict[str, Any]) -> str:
    """The table that `pangu-sigma report` prints."""
    lines = [
        f"{'domain':12} {'before':>8} {'after':>8} {'unigram':>8}   held-out loss, nats per token",
        *(
            f"{name:12} {_shown(d['loss_before'])} {_shown(d['loss_after'])} {_shown(d['unigram'])}"
            for name, d in summary["domains"].items()
        ),
    ]
    speed, load = summary["tokens_per_second"], summary["expert_load_max_over_mean"]
    lines.append(f"{'steps':12} {summary['steps']}")
    lines += [f"{'tokens/s':12} {speed:,.0f}"] if speed else []
    lines += [f"{'expert load':12} max/mean {load:.2f}"] if load else []
    lines += (
        [f"{'dropped':12} {dropped:,} rows beyond parallel.capacity_factor"] if (dropped := summary["dropped"]) else []
    )
    lines += [f"{'skipped':12} {skipped:,} steps, which changed nothing"] if (skipped := summary["skipped"]) else []
    if ecss := summary["ecss"]:
        lines.append(
            f"{'ECSS':12} fetched {ecss['fetched_mib']:.1f}, refreshed {ecss['refreshed_mib']:.1f}, returned "
            f"{ecss['returned_mib']:.1f} MiB a step; hits {ecss['prefetch_hit_rate'] or 0:.0%}, "
            f"stall {ecss['prefetch_stall'] or 0:.2%}"
        )
    lines += [f"{name:12} {summary[name]}" for name in ("checkpoint", "report")]
    return "\n".join(lines)


def format_comparison(summary: dict[str, Any], other: dict[str, Any]) -> str:
    """A table of the held-out losses of two runs side by side, with their difference (negative: the first run is better)."""
    width = max(len(summary["run"]), len(other["run"]), 8)
    heads = f"{summary['run']:>{width}} {other['run']:>{width}} {'difference':>10} {'unigram':>8}"
    lines = [f"{'domain':12} {heads}   held-out loss, nats per token"]
    for name, domain in summary["domains"].items():
        mine, theirs = domain["loss_after"], other["domains"][name]["loss_after"]
        gap = None if mine is None or theirs is None else mine - theirs
        lines.append(
            f"{name:12} {_shown(mine, width)} {_shown(theirs, width)} {_shown(gap, 10)} {_shown(domain['unigram'])}"
        )
    for key, title in (("steps", "steps"), ("tokens_per_second", "tokens/s")):
        lines.append(f"{title:12} {summary[key] or 0:{width},.0f} {other[key] or 0:{width},.0f}")
    return "\n".join(lines)


def _shown(value: float | None, width: int = 8) -> str:
    """A loss in a column; a dash for one that was not finite."""
    return f"{'–':>{width}}" if value is None else f"{value:{width}.3f}"


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
