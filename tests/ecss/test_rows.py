"""Rows of a store: zeros until a token met them, updated behind the step, in memory and in files, however many there could be."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from helpers.toy import toy_config

from ascend_ops.rows import record_size
from pangu_sigma.config import Config
from pangu_sigma.ecss.rows import ROW_ARRAYS, RowStore
from pangu_sigma.ecss.store import build, make_store
from pangu_sigma.ecss.tiers import FileTier, HostTier, StoreError
from pangu_sigma.sections import FinetuneConfig
from pangu_sigma.training.step import E_ARGUMENT, EXPERTS_ARGUMENT, TrainStep

EXPERTS_LEARN = FinetuneConfig(task="test", domain="d0", domains=["d0"], learn="experts")
HYPER = np.array([1e-2, 1.0, 1.0, 0.9, 0.99, 1e-12], np.float32)


def config_of(rows: int = 300) -> Config:
    return toy_config(
        model={"rows": [{"order": 1, "rows": 64, "width": 10}, {"order": 2, "rows": rows, "width": 6, "kind": "own"}]}
    )


def keys_of(rng: np.random.Generator, config: Config, tokens: int = 20) -> np.ndarray:
    stored = [config.stored_rows(entry) for entry in config.model.rows]
    return np.stack([rng.integers(most, size=(2, 1, tokens)) for most in stored])


def tier_of(kind: str, folder: Path) -> HostTier:
    return HostTier() if kind == "host" else FileTier(folder, [], 1.0)


def trained(store: RowStore, config: Config, steps: int = 5) -> list[np.ndarray]:
    """e of each step."""
    rng, actual = np.random.default_rng(1), []
    for _ in range(steps):
        keys = keys_of(rng, config)
        actual.append(store.gather(keys))
        store.read_ahead(keys_of(rng, config))
        store.update(keys, rng.normal(size=(40, 16)).astype(np.float32), HYPER)
    return actual


def state(store: RowStore) -> list[bytes]:
    met = [store.met(e) for e in range(2)]
    return [store.read(e, name, met[e]).tobytes() for e in range(2) for name in ROW_ARRAYS] + [m.tobytes() for m in met]


def test_memory_and_files_hold_the_same_bits_and_what_is_written_is_read_again(tmp_path: Path):
    config, states = config_of(), []
    for kind in ("host", "file"):
        store = RowStore(config, tier_of(kind, tmp_path))
        first, *_, last = trained(store, config)
        assert not first.any() and last.any() and first.shape == (2, 20, 16)
        states.append(state(store))
        again = RowStore(config, tier_of(kind, tmp_path))
        for e in range(2):
            met = store.met(e)
            assert (np.diff(met) > 0).all() and (store.read(e, "step", met) > 0).all()
            again.put(e, met, **{name: store.read(e, name, met) for name in ROW_ARRAYS})
        assert state(again) == states[-1]
        keys = keys_of(np.random.default_rng(5), config)
        assert np.array_equal(store.gather(keys), again.gather(keys))
        assert state(store) == states[-1], "reading meets no row"
    assert states[0] == states[1]


@pytest.mark.parametrize("kind", ["host", "file"])
def test_rows_without_steps_keep_their_weights_until_a_token_meets_them(tmp_path: Path, kind: str):
    """As in a run that was made from a Hugging Face folder, which has no Adam state."""
    config, keys = config_of(), np.arange(64)
    store = RowStore(config, tier_of(kind, tmp_path))
    weight = np.random.default_rng(3).normal(size=(64, 10)).astype(np.float32)
    store.put(0, keys, weight)
    store.read_ahead(keys_of(np.random.default_rng(0), config))
    store.settle()
    assert np.array_equal(store.read(0, "weight", keys), weight)
    store.update(keys_of(np.random.default_rng(0), config), np.zeros((40, 16), np.float32), HYPER)
    np.testing.assert_allclose(store.read(0, "weight", store.met(0)), weight, atol=1e-6)


def test_collisions_are_about_those_of_pairs_that_fall_on_rows_at_random():
    """900 pairs in each of two domains of 300 own rows, none in the others; of order 1 nothing is estimated."""
    store, rng = RowStore(config_of(), HostTier()), np.random.default_rng(0)
    keys = np.unique(np.concatenate([rng.integers(300, size=900), 900 + rng.integers(300, size=900)]))
    store.put(1, keys, np.ones((len(keys), 6), np.float32))
    store.put(0, np.arange(64), np.ones((64, 10), np.float32))
    first, second = store.figures()
    assert first == {"met": 64, "stored": 64, "collisions": None}
    assert (second["met"], second["stored"]) == (len(keys), 4 * 300)
    assert second["collisions"] == pytest.approx(1800 - len(keys), rel=0.1)


@pytest.mark.parametrize(
    ("keys", "problem"), [([3, 2], "ascending"), ([2, 2], "ascending"), ([-1, 2], "ascending"), ([2, 64], "below 64")]
)
def test_keys_that_are_no_rows_are_refused(keys: list[int], problem: str):
    store = RowStore(config_of(), HostTier())
    with pytest.raises(ValueError, match=problem):
        store.put(0, np.array(keys), np.ones((2, 10), np.float32))
    assert not len(store.met(0))


@pytest.mark.parametrize("kind", ["host", "file"])
def test_rows_that_no_token_met_take_neither_memory_nor_disk(tmp_path: Path, kind: str):
    """A billion rows of 19 numbers would be 76 GB, four times over for the domains."""
    config = config_of(1_000_000_000)
    before, free = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, os.statvfs(tmp_path).f_bavail
    store = RowStore(config, tier_of(kind, tmp_path))
    trained(store, config)
    assert len(store.met(1)) == 5 * 40
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "KiB"
    assert (free - os.statvfs(tmp_path).f_bavail) * os.statvfs(tmp_path).f_frsize < 1 << 30


def test_whoever_waits_for_experts_does_not_wait_for_rows():
    config = config_of()
    store, free = make_store(config), Event()
    assert store.rows is not None
    store.rows._pending.append(store.rows._thread.submit(free.wait))
    store.settle()
    assert not free.is_set() and len(store.rows._pending) == 1
    free.set()
    assert not len(store.rows.met(0)), "this waits"


def test_a_full_disk_is_an_error_that_names_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = config_of()
    store = RowStore(config, FileTier(tmp_path, [], 1.0))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    store.update(keys_of(np.random.default_rng(0), config), np.ones((40, 16), np.float32), HYPER)
    with pytest.raises(StoreError, match=r"ecss\.path=.*no room for \d+ more rows \(No space left.*larger disk$"):
        store.settle()
    assert not store.records[0].any()
    assert record_size(10) == store.records[0].shape[1]


def test_what_is_put_takes_the_place_of_all_rows():
    """As when an earlier checkpoint is loaded: a row that it has not met is 0 again."""
    config = config_of()
    store = RowStore(config, HostTier())
    trained(store, config)
    first, rest = np.split(store.met(0), [1])
    assert len(rest)
    store.put(0, first, **{name: store.read(0, name, first) for name in ROW_ARRAYS})
    assert store.met(0).tolist() == first.tolist()
    assert not any(store.read(0, name, rest).any() for name in ROW_ARRAYS)


def test_rows_that_do_not_learn_are_read_and_neither_updated_nor_met():
    """In a tuning of experts own rows learn, and common ones, which all domains share, do not."""
    config = config_of().model_copy(update={"finetune": EXPERTS_LEARN})
    store = RowStore(config, HostTier())
    store.put(0, np.arange(64), np.ones((64, 10), np.float32))
    e_of_steps = trained(store, config)
    assert store.learns == [False, True]
    assert (store.read(0, "weight", store.met(0)) == 1).all() and not store.read(0, "step", store.met(0)).any()
    assert all((e_GTH[..., :10] == 1).all() for e_GTH in e_of_steps) and len(store.met(1)) > 0


def test_without_a_row_that_learns_a_step_has_no_gradient_of_rows():
    for kind, learns in (("own", True), ("common", False)):
        config = toy_config(model={"rows": [{"order": 2, "rows": 30, "width": 16, "kind": kind}]})
        config = config.model_copy(update={"finetune": EXPERTS_LEARN})
        step = TrainStep(config, *build(config))
        assert (step.learns_rows, step.learning_input) == (learns, E_ARGUMENT if learns else EXPERTS_ARGUMENT)
