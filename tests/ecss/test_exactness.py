"""However experts are stored and updated, training gives the same bits."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.sequences import Sequence, batch_of, differing
from helpers.toy import toy_config

from pangu_sigma.data.batches import Batch
from pangu_sigma.ecss.store import array_specs

pytestmark = pytest.mark.usefixtures("graph_mode")

SMALL = {"dense_layers": 0}
OPTIMIZER = {"clip_norm": 0.5, "weight_decay": 0.1}
BASE = "segments"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {"model": {"segments": ["own", "common"], "common_experts": 3}},
    "own experts alone": {},
    "bfloat16 moments, two passes": {
        "ecss": {"moments": "bfloat16"},
        "train": {"accumulation": 2, "batch_size": 4, "optimizer": OPTIMIZER},
    },
    "float16 and dropout": {"train": {"compute_dtype": "float16", "optimizer": OPTIMIZER}, "model": {"dropout": 0.1}},
}
OTHERS = [pytest.param(variant, marks=pytest.mark.slow) for variant in VARIANTS if variant != BASE]


@pytest.fixture(scope="module")
def made(graph_mode, tmp_path_factory) -> Callable[..., Sequence]:
    """made(variant, store, further keys of `ecss`): compiled once for all tests."""
    kept: dict[tuple[Any, ...], Sequence] = {}

    def make(variant: str, store: str = "host", **ecss: Any) -> Sequence:
        key = variant, store, *ecss.items()
        if key not in kept:
            sections = {"train": {"optimizer": OPTIMIZER}} | VARIANTS[variant]
            model = sections.pop("model", {})
            sections["ecss"] = {"store": store} | sections.get("ecss", {}) | ecss
            config = toy_config(**sections, model=SMALL | model)
            kept[key] = Sequence.make(config, tmp_path_factory.mktemp("toy"))
        return kept[key]

    return make


@pytest.fixture(scope="module")
def looked_up(made) -> Callable[..., dict[str, bytes]]:
    """looked_up(variant, bad_step): evidence of training from memory, without a worker."""
    kept: dict[tuple[str, int | None], dict[str, bytes]] = {}

    def actual(variant: str, bad_step: int | None = None) -> dict[str, bytes]:
        if (variant, bad_step) not in kept:
            kept[variant, bad_step] = evidence(made(variant), bad_step=bad_step)
        return kept[variant, bad_step]

    return actual


def evidence(toy: Sequence, **options: Any) -> dict[str, bytes]:
    return toy.evidence(toy.train(**options))


@pytest.mark.parametrize("variant", [BASE, *OTHERS])
def test_files_change_no_bit(made, looked_up, variant: str):
    expected = looked_up(variant)
    assert len(expected) > 60
    assert differing(expected, evidence(made(variant, "file"))) == set()
    assert variant == BASE or differing(expected, looked_up(BASE)), "the option should do something"


@pytest.mark.parametrize("variant", [BASE, *OTHERS])
def test_an_update_behind_the_step_changes_no_bit(made, looked_up, variant: str):
    """With a step that is not a number; and the worker did update."""
    toy = made(variant, update="worker")
    for bad_step in (None, 3):
        assert differing(looked_up(variant, bad_step), evidence(toy, bad_step=bad_step)) == set(), bad_step
    times, updates = toy.store.worker.read()
    assert {update.segment for update in updates} == {
        n for n, experts in enumerate(toy.store.segments) if experts.learns
    } and times.busy > 0.0
    if variant == "own experts alone":
        files = made(variant, "file", update="worker")
        assert differing(looked_up(variant), evidence(files)) == set()


@pytest.mark.parametrize("bad_step", [*(pytest.param(step, marks=pytest.mark.slow) for step in (0, 2, 7)), 3])
def test_a_step_with_a_gradient_that_is_not_a_number_changes_nothing(made, looked_up, bad_step: int):

    def watch(number: int, _: Batch, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
        if number == bad_step:
            changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
            assert "loss_scale/value" in changed <= {"loss_scale/value", "loss_scale/good_steps"}

    expected = looked_up(BASE, bad_step)
    for store in ("host", "file"):
        result = evidence(made(BASE, store), bad_step=bad_step, watch=watch)
        assert differing(expected, result) == set(), store
    assert differing(expected, looked_up(BASE)), "the bad step should be missing"


@pytest.mark.parametrize("variant", [BASE, *OTHERS])
def test_inactive_experts_keep_everything_bit_for_bit_in_files(made, variant: str):
    toy, resting = made(variant, "file"), set()

    def watch(_: int, batch: Batch, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
        active_NK = batch.load_NK > 0
        for layer, experts in enumerate(toy.store.segments):
            active_K = active_NK[layer, : experts.segment.stored]
            for name in experts.named:
                key = f"experts_layer_{layer}/{name}"
                assert before[key][~active_K].tobytes() == after[key][~active_K].tobytes(), key
            steps = f"experts_layer_{layer}/step"
            assert (after[steps] - before[steps] == active_K).all()
            weights = f"experts_layer_{layer}/w1"
            assert (before[weights] != after[weights]).any(axis=(1, 2)).tolist() == active_K.tolist()
            resting.update((layer, int(expert)) for expert in np.flatnonzero(~active_K))

    toy.train(watch=watch)
    segments = [experts.segment for experts in toy.store.segments]
    own = [segment.stored for segment in segments if segment.kind == "own"]
    assert len(resting) == sum(own), "every expert of a domain should have rested, and no common one"


def test_places_that_no_expert_needs_change_nothing(made):
    """One domain in both blocks uses two entries of four."""
    toy = made(BASE)
    toy.start()
    batch = batch_of(toy, (1, 1))
    used_A1 = batch.arrays().used_A1[0]
    assert batch.active_A[0].tolist() == [2, 3, 8, 8] and (used_A1[2:] == used_A1[2]).all()
    toy.run(batch)
    toy.store.settle()
    assert toy.store.segments[0].named["step"].asnumpy().tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_each_segment_updates_the_experts_of_its_own_table(made):
    """Text of one token has one expert a segment, and not the same one in both layers."""
    toy = made(BASE)
    toy.start()
    first_NDV = toy.batches.table.first_NDV
    token = int(np.flatnonzero(first_NDV[0, 2, 10:] != first_NDV[2, 2, 10:])[0]) + 10
    before = toy.snapshot()
    toy.run(toy.batches.assemble(np.full((1, 8, 17), token), np.array([2, 2])))
    toy.store.settle()
    after = toy.snapshot()
    for n, experts in enumerate(toy.store.segments):
        expert = int(first_NDV[n, 2, token]) + (2 * 2 if experts.segment.kind == "own" else 0)
        assert np.flatnonzero(after[f"experts_layer_{n}/step"]).tolist() == [expert]
        changed = before[f"experts_layer_{n}/w1"] != after[f"experts_layer_{n}/w1"]
        assert np.flatnonzero(changed.any(axis=(1, 2))).tolist() == [expert]


def test_the_file_holds_what_was_trained(made):
    toy = made(BASE, "file")
    toy.train()
    file, begin, specs = toy.store.tier._file.fileno(), 0, array_specs(toy.config)
    assert len(specs) == sum(len(experts.named) for experts in toy.store.segments)
    for spec in specs:  # one after the other, each from the beginning of a page
        trained = toy.store.segments[spec.segment].named[spec.name].asnumpy()
        assert os.pread(file, spec.nbytes, begin) == trained.tobytes(), spec.key
        begin += -(-spec.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    assert os.fstat(file).st_size == begin


@pytest.mark.parametrize("moments", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_ecss_on_equals_ecss_off_when_every_expert_is_active(tmp_path, moments: str):
    """The same moments, everything else different: host rows from files against ordinary parameters.

    Off, an expert without tokens takes an ordinary step of Adam: its gradient is zero, so its moments decay."""
    results, sequence = [], [(0, 1)] * 4
    for ecss in ({"store": "file"}, {"enabled": False}):
        options = {"ecss": {"moments": moments, **ecss}, "train": {"optimizer": OPTIMIZER}}
        toy = Sequence.make(toy_config(2, model=SMALL, **options), tmp_path)
        for seed, domains in enumerate(sequence):
            assert (batch_of(toy, domains, seed).load_NK > 0).all(), "the batch should activate every expert"
        results.append(evidence(toy, sequence=sequence))
    assert differing(*results) == set()
    toy.start()
    toy.run(batch_of(toy, (0, 0)))
    before = toy.snapshot()
    toy.run(batch_of(toy, (1, 1)))
    after = toy.snapshot()
    for layer in ("experts_layer_0", "experts_layer_1"):
        assert (after[f"{layer}/step"] == 2).all()
        for part, beta in (("moment", 0.8), ("variance", 0.95)) if moments == "float32" else ():
            name = f"{layer}/w1.{part}"
            np.testing.assert_allclose(after[name][:2], beta * before[name][:2], rtol=1e-6)
