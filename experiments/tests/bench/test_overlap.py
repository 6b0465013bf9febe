"""The runs that are compared update the same experts, and are told apart by who waits for whom."""

from __future__ import annotations

import os
import threading

import pytest

from experiments.bench import overlap
from experiments.bench.overlap import EndlessUpdates, OverlapLab
from pangu_sigma.model.pangu_sigma import FFN_TENSORS

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> OverlapLab:
    model = {"hidden": 16, "ffn": 24, "heads": 2, "dense_layers": 1, "rre_layers": 1, "experts_per_domain": 2}
    monkeypatch.setattr(overlap, "MODEL", model)
    monkeypatch.setattr(overlap, "HEAD", 64)
    return OverlapLab(16, max(os.sched_getaffinity(0)))


def test_a_step_is_the_same_whoever_waits(lab: OverlapLab):
    weights = []
    for turns in (False, True):
        for experts in lab._store.segments:
            for name, array in experts.named.items():
                array.asnumpy()[...] = 0.01 if name in FFN_TENSORS else 0
        run = lab.run()
        overlap._steps(run, turns)
        times, updates = run.store.worker.read()
        assert len(updates) == overlap.STEPS and times.busy > 0.0
        weights.append([weight.asnumpy().tobytes() for experts in run.store.segments for weight in experts.weights])
    assert weights[0] == weights[1]


def test_the_peer_without_the_separation_updates_every_expert(lab: OverlapLab):
    for run, updated in ((lab.run(), 2), (lab.offloaded_all(), 20)):
        before = run.store.segments[0].steps.asnumpy().copy()
        run.advance()
        run.store.settle()
        assert (run.store.segments[0].steps.asnumpy() - before).sum() <= updated
        assert (run.store.segments[0].steps.asnumpy() > before).sum() == pytest.approx(
            updated, abs=1 if updated == 2 else 0
        )


def test_endless_updates_end_with_their_block():
    updates = EndlessUpdates(0, 1000)
    updates.run(3)
    assert updates.seconds() > 0
    threads = threading.active_count()
    with updates:
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads
