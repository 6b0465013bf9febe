"""The runs that are compared are the same training, and every row names what it is compared with."""

from __future__ import annotations

import pytest

from experiments.bench import adam, ecss
from experiments.bench.ecss import Lab

pytestmark = pytest.mark.usefixtures("graph_mode")

MODEL = {"hidden": 16, "ffn": 24, "heads": 2, "dense_layers": 0, "rre_layers": 1, "experts_per_domain": 2}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PAPER_MODEL": MODEL,
        "HALF_MODEL": MODEL,
        "PAPER_TOKENS": (16,),
        "SWEEP_MODEL": MODEL,
        "SWEEP_TOKENS": (16,),
        "OPTIMIZER_LAYERS": 2,
        "OPTIMIZER_SIZE": 100,
    }.items():
        monkeypatch.setattr(ecss, name, value)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_with_and_without_ecss_begin_with_the_same_loss_over_the_same_arrays(small: None, dtype: str):
    lab = Lab(MODEL, 3, dtype=dtype)
    runs = [lab.on(16), lab.off(16), lab.offloaded(16)]
    first, *others = [run.store.segments[0].weights[0].asnumpy() for run in runs]
    assert all(other.ctypes.data == first.ctypes.data for other in others)
    before = first.copy()
    losses = [run.advance() for run in runs]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3), "the experts differ by one or two updates"
    assert (first != before).any()


@pytest.mark.slow
def test_rows_of_every_part(small: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adam, "installed", lambda peer: False)
    monkeypatch.setattr(ecss, "installed", lambda peer: False)
    rows = [*ecss.optimizer(4, 2, peers=True), *ecss.paper(), *ecss.paper_half(), *ecss.sweep(2)]
    peers = [row.peer for row in rows]
    for peer in (
        "ecss.enabled: false",
        "all experts fetched and updated",
        "speed-up, the paper's",
        "ours, all experts",
    ):
        assert peer in peers
    [absent] = [row for row in rows if row.ratio is None and row.limit is None]
    assert "DeepSpeed" in absent.peer
    assert all(row.ours > 0 for row in rows if row.unit == "ms")
    on_device = [row.ours for row in rows if "on the device" in row.peer]
    assert on_device == pytest.approx([100 / ecss.DOMAINS] * 2), "of float32 weights, and of float16 weights"
    assert all(row.ok for row in rows if "on the device" in row.peer), "as many as are active, and not one more"
