"""Differences of the held-out losses of two runs, from their logs: always the first minus the second, and only on equal samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pangu_sigma.data.held_out import samples_of_evaluation
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.log.losses import losses_of
from pangu_sigma.training.log.metrics import read_metrics


def loss_differences(path: Path, other: Path) -> dict[str, dict[str, Any]]:
    """Return the held-out losses of the run in `path` minus those of `other`, by domain of either; negative: `path` is better.

    A domain has nats_per_token, se, bits_per_byte and bits_per_byte_se, of differences that are paired by sample. If domain,
    samples or tokenizer are not common to both runs, it has `none`, the reason, instead.
    """
    runs = [open_model(run, "run") for run in (path, other)]
    mine, theirs = (losses_of(evaluation_of(run, read_metrics(run.path)) or {"per_sample": {}}) for run in runs)
    result: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([*mine, *theirs]):
        if name not in mine or name not in theirs:
            result[name] = {"none": f"{path if name not in mine else other} has no held-out loss of it"}
        elif mine[name].digest != theirs[name].digest:
            result[name] = {"none": _why_unpaired(*runs)}
        else:
            result[name] = mine[name].minus(theirs[name]).figures()
    return result


def evaluation_of(run: StoredRun, lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the `evaluation` line of a run's newest checkpoint, or else the last one; None without any. lines: the run's log."""
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    step = run.newest.step if run.newest else None
    return next((line for line in evaluations if line["step"] == step), evaluations[-1] if evaluations else None)


def format_missing(differences: dict[str, dict[str, Any]]) -> list[str]:
    """Return a sentence for each reason why domains have no difference."""
    reasons: dict[str, list[str]] = {}
    for name, values in differences.items():
        if "none" in values:
            reasons.setdefault(values["none"], []).append(name)
    return [f"no difference for {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def why_incomparable(run: StoredModel, other: StoredModel) -> str:
    """Return why held-out losses of two runs are incomparable (tokenizer, sequence length); "" if they may be comparable."""
    if run.tokenizer.hash != other.tokenizer.hash:
        return "their tokenizers differ"
    lengths = [r.config.model.seq_length for r in (run, other)]
    return "" if lengths[0] == lengths[1] else f"model.seq_length is {lengths[0]} and {lengths[1]}"


def _why_unpaired(run: StoredModel, other: StoredModel) -> str:
    """Return why the logs of two runs have losses of different samples of a domain, and what to do."""
    again = f"pangu-sigma evaluate {run.path} --against {other.path} measures both on the same tokens"
    if reason := why_incomparable(run, other):
        return f"{reason}, so the samples are not the same"
    tuned = [each.path for each in (run, other) if each.config.finetune is not None]
    if tuned:
        return f"the losses of {' and '.join(map(str, tuned))} are of a task's answers; {again}"
    counts = [samples_of_evaluation(each.config) for each in (run, other)]
    if counts[0] != counts[1]:
        return f"train.eval_batches · train.batch_size is {counts[0]} and {counts[1]} samples; {again}"
    return "the held-out text differs, or one evaluated blocks of samples, on Ascend, and the other single ones"
