"""A peer is trained by the product's loop on the product's samples; what it leaves cannot be taken for a run of the product."""

from __future__ import annotations

import pytest
from helpers.tiny import STEPS, tiny_tree
from yaml import safe_dump

from pangu_sigma.bench.peer_runs import train_peer
from pangu_sigma.checkpoint.format import CheckpointError
from pangu_sigma.evaluate.run import evaluate_run
from pangu_sigma.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_hashing_takes_the_samples_of_rre_and_loads_the_experts_of_its_own_table(tiny_data, tiny_run, tmp_path):
    (tmp_path / "tiny.yaml").write_text(safe_dump(tiny_tree(tiny_data), allow_unicode=True), encoding="utf-8")
    folder = tmp_path / "hashed"
    summary = train_peer("hash", tmp_path / "tiny.yaml", folder, ["ecss.enabled=false"])
    assert f"{'steps':12} {STEPS}" in summary
    assert "checkpoint   removed: it is no network of the product" in summary
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
