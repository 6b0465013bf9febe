"""A peer is trained by the product's loop on the product's samples; what it leaves cannot be taken for a run of the product."""

from __future__ import annotations

import pytest

from experiments.compare.peer_runs import train_peer
from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.format import CheckpointError
from pangu_sigma.evaluate.held_out.run import evaluate_run
from pangu_sigma.train.log.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_hashing_takes_the_samples_of_rre_and_loads_the_experts_of_its_own_table(tiny_data, tiny_run, tmp_path):
    folder = tmp_path / "hashed"
    assert train_peer("hash", tiny_config(tiny_data, ecss={"enabled": False}), folder)
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
