"""Forgetting of a tuned run: held-out losses on the text of its parent, before and after the tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.held_out.run import held_out_batches
from pangu_sigma.train.log.losses import format_number

if TYPE_CHECKING:
    from pangu_sigma.finetune.tuner import Tuner

_KEPT = ("loss", "tokens", "samples")


def measure_forgetting(tuner: Tuner, most: int) -> dict[str, Any]:
    """Measure each domain's held-out loss before and after tuning, in nats per token, and the difference with its standard error.

    most: maximum number of samples of a domain. Returns {"domains": …}, where "changed" is the number of samples whose loss
    has changed, or {"skipped": reason} if the parent's text is missing.
    """
    try:
        batches = held_out_batches(tuner.run)
    except (ConfigError, DataError) as error:
        return {"skipped": str(error)}
    before, after = tuner.before_and_after(batches, most)
    return {
        "domains": {
            name: {
                "before": {key: before[name].figures()[key] for key in _KEPT},
                "after": {key: own.figures()[key] for key in _KEPT},
                "difference": own.minus(before[name]).figures(),
                "changed": int(np.count_nonzero(own.nats_U != before[name].nats_U)),
            }
            for name, own in after.items()
        }
    }


def format_forgetting(found: dict[str, Any]) -> str:
    """Format what `measure_forgetting` returned as a table of each domain's held-out loss before and after fine-tuning."""
    if "skipped" in found:
        return f"forgetting was not measured: {found['skipped']}"
    lines = [
        f"{'domain':12} {'before':>9} {'after':>9} {'change':>9} {'±':>9}   held-out text of the parent, nats per token"
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
