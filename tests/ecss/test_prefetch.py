"""Experts that are brought ahead are the experts that would have been looked up, bit for bit."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.sequences import batch_of
from helpers.toy import Toy, bits, toy_config, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from pangu_sigma.data.step_arrays import StepArrays
from pangu_sigma.ecss.prefetch import PrefetchedExperts, Prefetcher
from pangu_sigma.ecss.store import HostStore, make_store
from pangu_sigma.ecss.tiers import HostTier
from pangu_sigma.model.declare import as_input

pytestmark = pytest.mark.usefixtures("graph_mode")

LAYERS, STORED, PLACES = 2, 8, 4
ROW_BYTES = 4 * (16 * 24 + 24 + 24 * 16 + 16)
"""Weights of one expert of the toy."""


def places_of(experts: list[list[int]]) -> np.ndarray:
    """A plan's active list: unused entries hold K."""
    return np.array([sorted(of_layer) + [STORED] * (PLACES - len(of_layer)) for of_layer in experts], np.int32)


NOTHING = places_of([[], []])


class SlowTier(HostTier):
    """The thread begins when it is told to: at once, or when the step is over."""

    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        self.needed: list[list[list[int]]] = []

    def prefetch(self, layer: int, expert: int) -> None:
        self.go.wait()

    def used(self, active: list[np.ndarray]) -> None:
        self.needed.append([sorted(set(experts.tolist())) for experts in active])


class BrokenTier(SlowTier):
    """A disk that fails, once."""

    broken = False

    def prefetch(self, layer: int, expert: int) -> None:
        if self.broken:
            self.broken = False
            raise OSError("Input/output error")


def step_of(store: HostStore, active_NA: np.ndarray, brought: PrefetchedExperts, rng: np.random.Generator) -> None:
    """What a step does to its buffers: new rows for the active experts, also in the next step's buffers."""
    for active_A, next_A, experts, buffers in zip(
        active_NA, brought.next_A, store.segments, brought.buffers, strict=True
    ):
        for weight, buffer in zip(experts.weights, buffers, strict=True):
            stored, copy, entries = weight.asnumpy(), buffer.asnumpy(), next_A.asnumpy()
            for entry, expert in enumerate(active_A):
                if expert < STORED:
                    stored[expert] = rng.standard_normal(stored.shape[1:])
                    if entries[entry] >= 0:
                        copy[entries[entry]] = stored[expert]


def assert_brought(store: HostStore, active_NA: np.ndarray, brought: PrefetchedExperts) -> None:
    for active_A, experts, of_segment in zip(active_NA, store.segments, brought.experts, strict=True):
        for weight, tensor in zip(experts.weights, of_segment, strict=True):
            buffer, used = tensor.asnumpy(), active_A < STORED
            assert buffer[used].tobytes() == weight.asnumpy()[active_A[used]].astype(buffer.dtype).tobytes()


EXPERTS = st.lists(st.integers(0, STORED - 1), unique=True, max_size=PLACES)
LISTS = st.lists(EXPERTS, min_size=LAYERS, max_size=LAYERS).map(places_of)


@pytest.fixture(scope="module", params=["float32", "float16"])
def tables(request: pytest.FixtureRequest, graph_mode: None) -> HostStore:
    return make_store(toy_config(train={"compute_dtype": request.param}), SlowTier())  # type: ignore[return-value]


@settings(deadline=None, max_examples=40)
@given(
    sequence=st.lists(LISTS, min_size=2, max_size=7),
    surprises=st.lists(st.none() | LISTS, min_size=7, max_size=7),
    late=st.booleans(),
    seed=st.integers(0, 999),
)
def test_each_step_finds_the_rows_of_the_store_whatever_was_announced(
    tables: HostStore, sequence: list[np.ndarray], surprises: list[np.ndarray | None], late: bool, seed: int
):
    """late: the thread moves after the step has changed the store. surprises: steps that are announced and do not come."""
    prefetcher, rng, tier = Prefetcher(tables), np.random.default_rng(seed), tables.tier
    announced, size = None, ROW_BYTES * (1 if tables.dtype == ms.float32 else 0.5)
    before = NOTHING
    for active_NA, follows, surprise in zip(sequence, [*sequence[1:], NOTHING], surprises, strict=False):
        coming_NA = follows if surprise is None else surprise
        brought, traffic = prefetcher.transfer(active_NA, coming_NA)
        if late:
            tier.go.clear()
        try:
            assert_brought(tables, active_NA, brought)
            step_of(tables, active_NA, brought, rng)
        finally:
            tier.go.set()
        known = before if np.array_equal(announced, active_NA) else NOTHING
        counted = [
            moved(now_A, known_A, tables.dtype == ms.float32) for now_A, known_A in zip(active_NA, known, strict=True)
        ]
        in_place, refreshed, misses = np.sum(counted, axis=0)
        assert (traffic.hits, traffic.misses) == (in_place + refreshed, misses)
        assert traffic.refreshed_bytes == size * refreshed
        assert traffic.fetched_bytes == size * misses
        assert traffic.returned_bytes == size * (in_place + refreshed + misses)
        announced, before = coming_NA, active_NA


def moved(active_A: np.ndarray, before_A: np.ndarray, whole: bool) -> tuple[int, int, int]:
    """Experts of a layer that are read in place, that the step before wrote, and that are fetched.

    In place: as many as there are entries, one after another, in a network whose precision is the store's.
    """
    used = set(active_A.tolist()) - {STORED}
    if whole and len(used) == PLACES and max(used) - min(used) == PLACES - 1:
        return PLACES, 0, 0
    known = len(used & set(before_A.tolist()))
    return 0, known, len(used) - known


def test_experts_that_fill_the_places_one_after_another_are_read_where_they_are(graph_mode: None):
    """And are those that Adam changes: nothing is copied for them, before or after the step. Not in another precision."""
    shared = []
    for dtype in ("float32", "float16"):
        store = make_store(toy_config(train={"compute_dtype": dtype}))
        prefetcher = Prefetcher(store)  # type: ignore[arg-type]
        brought, _ = prefetcher.transfer(places_of([[2, 3, 4, 5], [0, 1, 3, 4]]), places_of([[2, 3, 4, 5]] * 2))
        rows = [tensor.asnumpy() for of_segment in brought.experts for tensor in of_segment]
        shared.append([np.shares_memory(row, w.asnumpy()) for row, w in zip(rows, weights_of(store), strict=True)])
        for n, next_A in enumerate(brought.next_A):
            assert next_A.asnumpy().tolist() == ([-1] * 4 if dtype == "float32" else [[0, 1, 2, 3], [-1, -1, 1, 2]][n])
    assert shared == [[True] * 4 + [False] * 4, [False] * 8]


def test_the_tier_learns_which_experts_this_step_and_the_next_need(graph_mode: None):
    tier = SlowTier()
    prefetcher = Prefetcher(make_store(toy_config(), tier))  # type: ignore[arg-type]
    prefetcher.transfer(places_of([[0, 1], [7]]), places_of([[1, 2], [3, 4]]))
    prefetcher.transfer(places_of([[1, 2], [3, 4]]), places_of([[5], []]))
    prefetcher.transfer(places_of([[5], []]), NOTHING)  # what was begun by the call before is done by now
    assert tier.needed[:3] == [[[0, 1], [7]], [[0, 1, 2], [3, 4, 7]], [[1, 2, 5], [3, 4]]]


def test_an_error_of_the_thread_reaches_the_caller_and_leaves_nothing_that_was_half_brought(graph_mode: None):
    tier = BrokenTier()
    store, rng = make_store(toy_config(), tier), np.random.default_rng(0)
    prefetcher = Prefetcher(store)  # type: ignore[arg-type]
    first, second = places_of([[0, 1], [2]]), places_of([[1, 4], [2, 5]])
    brought, _ = prefetcher.transfer(first, NOTHING)
    step_of(store, first, brought, rng)  # type: ignore[arg-type]
    tier.broken = True
    brought, _ = prefetcher.transfer(NOTHING, second)
    with pytest.raises(OSError, match="Input/output error"):
        prefetcher.transfer(second, NOTHING)
    brought, traffic = prefetcher.transfer(second, NOTHING)
    assert (traffic.hits, traffic.misses) == (0, 4)
    assert_brought(store, second, brought)  # type: ignore[arg-type]


DOMAINS = [(0, 1), (1, 2), (0, 2), (0, 2), (1, 1), (2, 3), (0, 3)]
"""Of one step after another."""


def test_a_step_with_an_expert_that_is_not_a_number_changes_nothing_and_the_next_ones_are_right(tmp_path: Path):
    """The NaN is in the buffer alone, where it stays until another expert comes to its entry; (1, 1) fills two of four."""
    bad = 2  # of DOMAINS, one whose experts are not read in place
    toy = Toy.build(toy_config(), tmp_path)
    toy.reset()
    for t, domains in enumerate(DOMAINS):
        if t == bad:
            scale = toy.step.scale
            scale.value.set_data(Tensor(scale.value.asnumpy() / 2))
            scale.good_steps.set_data(Tensor(0, ms.int32))
        else:
            toy.run(batch_of(toy, domains, t))
    expected = bits(toy.snapshot())

    toy.reset()
    prefetcher = Prefetcher(toy.store)  # type: ignore[arg-type]
    batches = [batch_of(toy, domains, seed) for seed, domains in enumerate([*DOMAINS, DOMAINS[0]])]
    for t, (batch, coming) in enumerate(pairwise(batches)):
        before = toy.snapshot()
        brought, _ = prefetcher.transfer(batch.active_A, coming.active_A)
        if t == bad:
            brought.experts[0][0].asnumpy()[[1, 3]] = np.nan
        result = toy.step.take(1e-3, StepArrays(*map(as_input, batch.arrays())), brought)
        assert result.applied.asnumpy() == (t != bad)
        if t == bad:
            after = toy.snapshot()
            assert after.pop("loss_scale/value") == before.pop("loss_scale/value") / 2
            assert after.pop("loss_scale/good_steps") == 0 != before.pop("loss_scale/good_steps")
            assert bits(after) == bits(before)
    assert bits(toy.snapshot()) == expected


def test_common_experts_that_do_not_learn_are_fetched_and_not_expected_of_adam(graph_mode: None):
    """With finetune.learn=experts no Adam writes their rows into the next step's buffers."""
    config = toy_config(
        model={"segments": ["own", "common"], "common_experts": 3},
        finetune={"task": "t", "domain": "d0", "learn": "experts", "domains": ["d0"]},
        train={"eval_interval": 100, "checkpoint_interval": 100},
    )
    store = make_store(config, SlowTier())
    assert [experts.learns for experts in store.segments] == [True, False] * 2
    prefetcher = Prefetcher(store, in_place=False)  # type: ignore[arg-type]
    active_A = [np.array(experts, np.int32) for experts in [[0, 1, 8, 8], [0, 1, 2]] * 2]
    own, common = 4 * (16 * 12 + 12 + 12 * 16 + 16), 4 * (16 * 12 + 12 + 12 * 16)
    first, _ = prefetcher.transfer(active_A, active_A)
    assert [next_A.asnumpy().tolist() for next_A in first.next_A] == [[0, 1, -1, -1], [-1] * 3] * 2
    for n in (0, 2):  # what Adam does of the own segments of both layers
        for buffer, weight in zip(first.buffers[n], store.segments[n].weights, strict=True):
            buffer.asnumpy()[:2] = weight.asnumpy()[:2]
    second, traffic = prefetcher.transfer(active_A, active_A)
    for n, experts in enumerate(store.segments):
        rows = 3 if n % 2 else 2
        for tensor, weight in zip(second.experts[n], experts.weights, strict=True):
            assert tensor.asnumpy()[:rows].tobytes() == weight.asnumpy()[:rows].tobytes(), n
    assert (traffic.refreshed_bytes, traffic.fetched_bytes) == (4 * own, 6 * common)
    assert traffic.returned_bytes == 4 * own, "gradients of own experts alone"
