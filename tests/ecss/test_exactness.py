"""However experts are stored and brought, training gives the same bits (spec: truths 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from sequences import SEQUENCE, Sequence, batch_of, differing
from toy import toy_config

from pangu_sigma.ecss.prefetch import Prefetcher

pytestmark = pytest.mark.usefixtures("graph_mode")

SMALL = {"dense_layers": 0}
OPTIMIZER = {"clip_norm": 0.5, "weight_decay": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16 moments": {"ecss": {"moments": "bfloat16"}},
    "float16 in two passes": {"train": {"compute_dtype": "float16", "accumulation": 2, "batch_size": 4}},
}


@pytest.fixture(scope="module")
def made(graph_mode, tmp_path_factory) -> Callable[..., Sequence]:
    """made(variant, store): compiled once for all tests."""
    kept: dict[tuple[str, str], Sequence] = {}

    def make(variant: str, store: str = "host") -> Sequence:
        if (variant, store) not in kept:
            sections = VARIANTS[variant]
            ecss = {"store": store, **sections.get("ecss", {})}
            train = {"optimizer": OPTIMIZER, **sections.get("train", {})}
            config = toy_config(model=SMALL, ecss=ecss, train=train)
            kept[variant, store] = Sequence.make(config, tmp_path_factory.mktemp("toy"))
        return kept[variant, store]

    return make


def looked_up(toy: Sequence, **options: Any) -> dict[str, bytes]:
    return toy.evidence(toy.train(prefetch=False, **options))


def brought(toy: Sequence, **options: Any) -> dict[str, bytes]:
    return toy.evidence(toy.train(prefetch=True, **options))


def test_the_sequence_overlaps_partly_wholly_and_not_at_all(made):
    toy = made("float32")
    active = [batch_of(toy, domains, seed).active_NA[0] for seed, domains in enumerate(SEQUENCE)]
    shared = [len(set(a[a < 8]) & set(b[b < 8])) for a, b in pairwise(active)]
    assert shared == [2, 4, 0, 0, 0, 2]


def test_files_and_prefetching_change_no_bit(made):
    """All four of (memory, files) × (looked up, brought)."""
    host = made("float32")
    expected = looked_up(host)
    assert len(expected) > 60
    assert differing(expected, brought(host)) == set()
    file = made("float32", "file")
    assert differing(expected, looked_up(file)) == set()
    assert differing(expected, brought(file)) == set()


def test_the_files_hold_what_was_trained(made):
    file = made("float32", "file")
    file.train(prefetch=True)
    for layer in range(2):
        for name, parameter in file.store.layer_parameters(layer).items():
            written = (file.store.tier._folder / f"experts.{layer}.{name}.bin").read_bytes()
            assert written == parameter.asnumpy().tobytes(), name


@pytest.mark.parametrize("variant", list(VARIANTS)[1:])
def test_files_and_prefetching_change_no_bit_with(made, variant: str):
    """Both at once against neither."""
    expected = looked_up(made(variant))
    assert differing(expected, brought(made(variant, "file"))) == set()
    assert differing(expected, looked_up(made("float32"))), "the option should do something"


@pytest.mark.parametrize("bad_step", [0, 1, 2, 5])
@pytest.mark.parametrize("store", ["host", "file"])
def test_a_step_with_a_gradient_that_is_not_a_number_changes_nothing_and_the_next_is_fed_right(
    made, store: str, bad_step: int
):
    """Steps whose neighbours overlap: rows of experts that were not updated are brought on all the same."""
    expected = looked_up(made("float32"), bad_step=bad_step)
    assert differing(expected, brought(made("float32", store), bad_step=bad_step)) == set()
    assert differing(expected, looked_up(made("float32"))), "the bad step should be missing"


def test_inactive_experts_keep_everything_bit_for_bit_when_brought_from_files(made):
    toy = made("bfloat16 moments", "file")
    for steps in range(1, len(SEQUENCE)):
        toy.train(prefetch=True, sequence=SEQUENCE[:steps])
        before = toy.snapshot()
        toy.train(prefetch=True, sequence=SEQUENCE[: steps + 1])
        last = batch_of(toy, SEQUENCE[steps], steps)
        active_NK, after = last.load(8) > 0, toy.snapshot()
        for layer in range(2):
            for name in toy.store.layer_parameters(layer):
                key = f"experts_layer_{layer}/{name}"
                old, new = before[key][~active_NK[layer]], after[key][~active_NK[layer]]
                assert old.tobytes() == new.tobytes(), key
            assert (after[f"experts_layer_{layer}/w1"] != before[f"experts_layer_{layer}/w1"]).any()


def test_ecss_on_equals_ecss_off_when_every_expert_is_active(tmp_path):
    """The same bfloat16 moments, everything else different: host rows from files, brought; against ordinary parameters."""
    found = []
    for ecss in ({"store": "file"}, {"enabled": False}):
        options = {"ecss": {"moments": "bfloat16", **ecss}, "train": {"optimizer": OPTIMIZER}}
        toy = Sequence.make(toy_config(2, model=SMALL, **options), tmp_path)
        sequence = [(0, 1)] * 4
        for seed, domains in enumerate(sequence):
            assert (batch_of(toy, domains, seed).load(4) > 0).all(), "the batch should activate every expert"
        found.append(toy.evidence(toy.train(prefetch=toy.config.ecss.enabled, sequence=sequence)))
    assert differing(*found) == set()


def test_float16_experts_travel_at_half_the_size(made):
    moved = []
    for variant in ("float32", "float16 in two passes"):
        toy = made(variant)
        batch = batch_of(toy, (0, 1))
        moved.append(Prefetcher(toy.store, 4).transfer(batch.active_NA, batch.active_NA)[1])
    assert moved[0].fetched_bytes == 2 * moved[1].fetched_bytes > 0
    assert all(traffic.returned_bytes == traffic.fetched_bytes for traffic in moved)
