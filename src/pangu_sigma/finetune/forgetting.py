"""Forgetting of a tuned run: held-out losses on the text of its parent, before and after the tuning.

Nothing is measured twice. The losses before are in the parent's log, if its last evaluation read the same samples. Those after are
the same bit for bit for a domain that uses no weight that has changed, which the checkpoints tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pangu_sigma.checkpoint.checkpoint import Checkpoint
from pangu_sigma.checkpoint.parts import EXPERTS, ROWS, WEIGHTS
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.held_out import HeldOut, samples_of_evaluation
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.held_out.run import held_out_batches
from pangu_sigma.stored.model import read_lineage
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.log.losses import HeldOutLoss, format_number, losses_of
from pangu_sigma.training.log.metrics import FILE, read_metrics

if TYPE_CHECKING:
    from pangu_sigma.finetune.tuner import Tuner

_KEPT = ("loss", "tokens", "samples")


def measure_forgetting(tuner: Tuner, parent: StoredRun) -> dict[str, Any]:
    """Measure each domain's held-out loss before and after tuning, in nats per token, and the difference with its standard error.

    Returns {"domains": …}, where "changed" tells if a weight that the domain uses has changed, and "logged" if the loss before is
    of the parent's log, or {"skipped": reason} if the parent's text is missing.
    """
    try:
        batches = held_out_batches(tuner.run)
    except (ConfigError, DataError) as error:
        return {"skipped": str(error)}
    most, best = samples_of_evaluation(parent.config), tuner.best.step
    digests = HeldOut(batches, most).digests()
    before = {name: loss for name, loss in logged_losses(tuner, parent).items() if loss.digest == digests.get(name)}
    if unknown := digests.keys() - before.keys():
        before |= tuner.losses_at(0, batches, most, unknown)
    changed = changed_domains(tuner.config, tuner.checkpoint(0), tuner.checkpoint(best))
    after = before | (tuner.losses_at(best, batches, most, changed) if changed else {})
    return {
        "domains": {
            name: {
                "before": {key: before[name].figures()[key] for key in _KEPT},
                "after": {key: own.figures()[key] for key in _KEPT},
                "difference": own.minus(before[name]).figures(),
                "changed": name in changed,
                "logged": name not in unknown,
            }
            for name, own in ((name, after[name]) for name in digests if name in after)
        }
    }


def logged_losses(tuner: Tuner, parent: StoredRun) -> dict[str, HeldOutLoss]:
    """Return the losses of the state that the tuning began with, from the log of its parent; empty if it has none.

    Another graph computed them, perhaps on another machine: for equal weights they equal the tuner's within rounding.
    """
    lineage = read_lineage(tuner.run.path) or {}
    if parent.hash != lineage.get("parent_hash") or not (parent.path / FILE).exists():
        return {}
    lines = [line for line in read_metrics(parent.path) if (line["kind"], line["step"]) == ("evaluation", parent.step)]
    return losses_of(lines[-1]) if lines else {}


def changed_domains(config: Config, before: Checkpoint, after: Checkpoint) -> set[str]:
    """Return the domains with a weight that differs between two checkpoints: of their experts, their slot, their rows, or what all
    share."""
    from pangu_sigma.model.pangu_sigma import FFN_TENSORS

    slots, experts = set[int](), set[int]()
    for e, entry in enumerate(config.model.rows):
        keys = _changed_rows(before, after, f"{ROWS}{e}")
        if len(keys) and entry.kind == "common":
            return {domain.name for domain in config.domains}
        experts.update((keys // entry.rows).tolist())
    for file, arrays in after.files.items():
        weights = FFN_TENSORS if file.startswith(EXPERTS) else arrays if file == WEIGHTS else ()
        for name in [name for name in arrays if name in weights]:
            old, new = before.files[file][name].values, arrays[name].values
            rows = np.flatnonzero((old != new).reshape(len(old), -1).any(axis=1))
            if file != WEIGHTS and config.model.routed[int(file.removeprefix(EXPERTS))] == "own":
                experts.update((rows // config.model.experts_per_domain).tolist())
            elif name == "embedding":
                slots.update((rows // config.model.slot_rows).tolist())
            elif len(rows):
                return {domain.name for domain in config.domains}
    return {domain.name for domain in domains_of(config) if domain.slot in slots or domain.index in experts}


def _changed_rows(before: Checkpoint, after: Checkpoint, shard: str) -> np.ndarray:
    """Return the keys of the rows of an entry that differ. One that was not met is 0; none that was is not met any more."""
    (old_keys, old), (keys, new) = (
        (each.files[shard]["keys"].values, each.files[shard]["weight"].values) for each in (before, after)
    )
    was = np.zeros_like(new)
    was[np.isin(keys, old_keys)] = old
    return keys[(was != new).any(axis=1)]


def format_forgetting(found: dict[str, Any]) -> str:
    """Format what `measure_forgetting` returned as a table of each domain's held-out loss before and after fine-tuning."""
    if "skipped" in found:
        return f"forgetting was not measured: {found['skipped']}"
    lines = [
        f"{'domain':12} {'before':>9} {'after':>9} {'change':>9} {'±':>9}   held-out text of the parent, nats per token"
        + ("; before: from its log" if all(own["logged"] for own in found["domains"].values()) else "")
    ]
    for name, own in found["domains"].items():
        change = own["difference"]
        cells = [
            format_number(v, 9, 4) for v in (own["before"]["loss"], own["after"]["loss"], change["nats_per_token"])
        ]
        if not own["changed"]:
            cells[2] = "exactly 0"
        lines.append(f"{name:12} {' '.join(cells)} {format_number(change['se'], 9, 4)}")
        if own["after"]["loss"] is None and own["before"]["loss"] is not None:
            lines.append(f"  {name} is lost: its loss is not finite any more; lower train.optimizer.peak_lr")
    return "\n".join(lines)
