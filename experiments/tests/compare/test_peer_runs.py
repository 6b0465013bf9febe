"""A peer is trained by the product's loop on the product's samples; what it leaves cannot be taken for a run of the product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.compare.peer_runs import train_peer
from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import CheckpointError
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.training.log.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("graph_mode")


def last_losses(run: Path) -> list[float]:
    """Held-out losses by domain after training."""
    lines = [line for line in read_metrics(run) if line["kind"] == "evaluation"]
    return list(lines[-1]["per_domain_loss"].values())


def test_hashing_takes_the_samples_of_rre_and_a_leak_wins_by_a_mile(tiny_data, tiny_run, tmp_path):
    for peer in ("hash", "leak"):
        assert train_peer(peer, tiny_config(tiny_data, ecss={"enabled": False}), tmp_path / peer)
    folder = tmp_path / "hash"
    with pytest.raises(CheckpointError, match="checkpoint"):
        evaluate_run(folder)

    logs = [read_metrics(run) for run in (folder, tiny_run)]
    samples, per_domain, loads = (
        [[line[key] for line in log if line["kind"] == kind] for log in logs]
        for key, kind in (("samples", "step"), ("per_domain_loss", "evaluation"), ("tokens_NK", "load"))
    )
    assert samples[0] == samples[1], "the same samples in the same order"
    assert per_domain[0][0] == pytest.approx(per_domain[1][0], abs=1e-3), "before training nothing is learned"
    assert per_domain[0][-1] != per_domain[1][-1]
    assert sum(map(sum, loads[0][0])) == sum(map(sum, loads[1][0]))
    assert loads[0][0] != loads[1][0]
    gaps = np.array(last_losses(folder)) - last_losses(tmp_path / "leak")
    assert (gaps > 0.2).all(), "a key that reads the token to predict is seen in every domain"
