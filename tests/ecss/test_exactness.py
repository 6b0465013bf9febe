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
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16 moments, two passes": {
        "ecss": {"moments": "bfloat16"},
        "train": {"accumulation": 2, "batch_size": 4, "optimizer": OPTIMIZER},
    },
    "float16 and dropout": {"train": {"compute_dtype": "float16", "optimizer": OPTIMIZER}, "model": {"dropout": 0.1}},
    "segments": {"model": {"segments": ["own", "common", "own", "common"], "common_experts": 3}},
}


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

    def found(variant: str, bad_step: int | None = None) -> dict[str, bytes]:
        if (variant, bad_step) not in kept:
            kept[variant, bad_step] = evidence(made(variant), bad_step=bad_step)
        return kept[variant, bad_step]

    return found


def evidence(toy: Sequence, **options: Any) -> dict[str, bytes]:
    return toy.evidence(toy.train(**options))


def test_files_change_no_bit(made, looked_up):
    expected = looked_up("float32")
    assert len(expected) > 60
    assert differing(expected, evidence(made("float32", "file"))) == set()


@pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.slow) for v in list(VARIANTS)[1:]])
def test_files_change_no_bit_with(made, looked_up, variant: str):
    expected = looked_up(variant)
    assert differing(expected, evidence(made(variant, "file"))) == set()
    assert differing(expected, looked_up("float32")), "the option should do something"


@pytest.mark.parametrize(
    "variant", ["segments", *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v != "segments")]
)
def test_an_update_behind_the_step_changes_no_bit(made, looked_up, variant: str):
    """With a step that is not a number, from files; and the worker did update."""
    toy = made(variant, update="worker")
    for bad_step in (None, 3):
        assert differing(looked_up(variant, bad_step), evidence(toy, bad_step=bad_step)) == set(), bad_step
    times, updates = toy.store.worker.read()
    assert {update.segment for update in updates} == {
        n for n, experts in enumerate(toy.store.segments) if experts.learns
    } and times.busy > 0.0
    if variant == "float32":
        files = made(variant, "file", update="worker")
        assert differing(looked_up(variant), evidence(files)) == set()


@pytest.mark.parametrize("bad_step", [*(pytest.param(step, marks=pytest.mark.slow) for step in (0, 2)), 3, 7])
def test_a_step_with_a_gradient_that_is_not_a_number_changes_nothing(made, looked_up, bad_step: int):

    def watch(number: int, _: Batch, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
        if number == bad_step:
            changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
            assert "loss_scale/value" in changed <= {"loss_scale/value", "loss_scale/good_steps"}

    expected = looked_up("float32", bad_step)
    for store in ("host", "file"):
        found = evidence(made("float32", store), bad_step=bad_step, watch=watch)
        assert differing(expected, found) == set(), store
    assert differing(expected, looked_up("float32")), "the bad step should be missing"


@pytest.mark.parametrize("variant", ["float32", *(pytest.param(v, marks=pytest.mark.slow) for v in list(VARIANTS)[1:])])
def test_inactive_experts_keep_everything_bit_for_bit_in_files(made, variant: str):
    toy, rested = made(variant, "file"), set()

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
            rested.update((layer, int(expert)) for expert in np.flatnonzero(~active_K))

    toy.train(watch=watch)
    segments = [experts.segment for experts in toy.store.segments]
    own = [segment.stored for segment in segments if segment.kind == "own"]
    assert len(rested) == sum(own), "every expert of a domain should have rested, and no common one"


def test_the_file_holds_what_was_trained(made):
    toy = made("float32", "file")
    toy.train()
    file, begin, specs = toy.store.tier._file.fileno(), 0, array_specs(toy.config)
    assert len(specs) == sum(len(toy.store.segments[n].named) for n in range(2))
    for spec in specs:  # one after the other, each from the beginning of a page
        trained = toy.store.segments[spec.segment].named[spec.name].asnumpy()
        assert os.pread(file, spec.nbytes, begin) == trained.tobytes(), spec.key
        begin += -(-spec.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    assert os.fstat(file).st_size == begin


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_ecss_on_equals_ecss_off_when_every_expert_is_active(tmp_path, moments: str):
    """The same moments, everything else different: host rows from files against ordinary parameters."""
    found, sequence = [], [(0, 1)] * 4
    for ecss in ({"store": "file"}, {"enabled": False}):
        options = {"ecss": {"moments": moments, **ecss}, "train": {"optimizer": OPTIMIZER}}
        toy = Sequence.make(toy_config(2, model=SMALL, **options), tmp_path)
        for seed, domains in enumerate(sequence):
            assert (batch_of(toy, domains, seed).load_NK > 0).all(), "the batch should activate every expert"
        found.append(evidence(toy, sequence=sequence))
    assert differing(*found) == set()
