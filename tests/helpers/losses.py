"""Held-out losses: those of a run, and made ones for what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pangu_sigma.held_out.losses import HeldOutLoss
from pangu_sigma.training.log.metrics import read_metrics


def held_out(**nats: float) -> dict[str, HeldOutLoss]:
    """Losses over two samples of 10 tokens and 20 bytes, the first one 1 nat a token above the mean that is given, by domain."""
    of_two = {name: np.array([10 * n + 10, 10 * n - 10]) for name, n in nats.items()}
    sizes = np.array([10.0, 10.0]), np.array([20.0, 20.0])
    return {name: HeldOutLoss(nats_U, *sizes, unigram=4.0, digest="d") for name, nats_U in of_two.items()}


def held_out_losses(run: Path) -> tuple[dict[str, float], dict[str, float]]:
    """First and last evaluation of a run."""
    lines = [line["per_domain_loss"] for line in read_metrics(run) if line["kind"] == "evaluation"]
    return lines[0], lines[-1]
