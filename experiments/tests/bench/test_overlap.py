"""The runs that are compared update the same experts, and are told apart by who waits for whom."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from experiments.bench import overlap
from experiments.bench.overlap import EndlessUpdates, OverlapLab

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> OverlapLab:
    model = {"hidden": 16, "ffn": 24, "heads": 2, "dense_layers": 1, "rre_layers": 1, "experts_per_domain": 2}
    monkeypatch.setattr(overlap, "MODEL", model)
    monkeypatch.setattr(overlap, "HEAD", 64)
    return OverlapLab(16)


def test_a_step_is_the_same_whoever_waits_and_a_factor_makes_it_a_clipped_one(lab: OverlapLab):
    losses = []
    for options in ({}, {"undo_gib": 0}):
        for weight in lab.run().store.weights:
            weight.asnumpy()[...] = 0.01
        run = lab.run(**options)
        losses.append([run.advance(factor) / factor for factor in (1.0, 1e6, 1.0)])
        run.store.settle()
        counts, _ = run.store.worker.read()
        assert counts.late == (3 if options else counts.late)
        assert counts.kept + counts.redone + counts.late == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("share", [0, 10, 100])
def test_the_share_of_clipped_steps_is_the_one_asked_for(share: int):
    factors, settled = [], []
    store = SimpleNamespace(settle=lambda: settled.append(len(factors)))
    overlap._steps(SimpleNamespace(advance=factors.append, store=store), clipped=share)  # type: ignore[arg-type]
    assert sum(factor > overlap.CLIP_NORM for factor in factors) * 100 == share * len(factors)
    assert settled == [overlap.STEPS]


def test_the_peer_without_the_separation_updates_every_expert(lab: OverlapLab):
    for run, updated in ((lab.run(), 2), (lab.offloaded_all(), 20)):
        before = run.store.steps[0].asnumpy().copy()
        run.advance()
        run.store.settle()
        assert (run.store.steps[0].asnumpy() - before).sum() <= updated
        assert (run.store.steps[0].asnumpy() > before).sum() == pytest.approx(updated, abs=1 if updated == 2 else 0)


def test_endless_updates_end_with_their_block():
    updates = EndlessUpdates(0, 1000)
    updates.run(3)
    assert updates.seconds() > 0
    threads = threading.active_count()
    with updates:
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads
