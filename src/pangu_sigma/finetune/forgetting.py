"""Forgetting of a tuned run: held-out losses on the text of its parent, before and after the tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.held_out.comparison import compare_runs
from pangu_sigma.stored.open import open_model
from pangu_sigma.train.log.losses import format_number

_KEPT = ("loss", "tokens", "samples")


def measure_forgetting(run: Path, parent: Path, parent_hash: str) -> dict[str, Any]:
    """Measure each domain's held-out loss before and after tuning, in nats per token, and the difference with its standard error.

    parent_hash: `hash` of the model that the run started from. Returns {"domains": …}, or {"skipped": reason} if the parent has
    changed, or if it or its text is missing.
    """
    try:
        if open_model(parent, "run").hash != parent_hash:
            return {"skipped": f"{parent} has been trained on since"}
        pair = compare_runs([run], [parent])["pairs"][0]
    except (ConfigError, DataError) as error:
        return {"skipped": str(error)}
    return {
        "domains": {
            name: {
                "before": {key: own["against"][key] for key in _KEPT},
                "after": {key: own[key] for key in _KEPT},
                "difference": own["difference"],
            }
            for name, own in pair["domains"].items()
        }
    }


def format_forgetting(found: dict[str, Any]) -> str:
    """Format the result of `measure_forgetting` as a table."""
    if "skipped" in found:
        return f"forgetting was not measured: {found['skipped']}"
    lines = [
        f"{'domain':12} {'before':>9} {'after':>9} {'change':>9} {'±':>9}   held-out text of the parent, nats per token"
    ]
    for name, own in found["domains"].items():
        change = own["difference"]
        values = (own["before"]["loss"], own["after"]["loss"], change["nats_per_token"], change["se"])
        lines.append(f"{name:12} {' '.join(format_number(v, 9, 4) for v in values)}")
    return "\n".join(lines)
