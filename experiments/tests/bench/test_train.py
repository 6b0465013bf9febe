"""`bench train` compares models of equal size, and steps that train."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from experiments.bench import train
from experiments.bench.synthetic import FIRST, SyntheticRun
from experiments.peers import Worker, peers_python


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "GPT_LENGTH": 16,
        "GPT_VOCABULARY": 64,
        "GPT_LAYERS": 1,
        "GPT_HIDDEN": 16,
        "GPT_HEADS": 2,
        "GPT_EXPERTS": 4,
        "GPT_INTERMEDIATE": 32,
    }
    for name, value in {**sizes, "SIDE": 64}.items():
        monkeypatch.setattr(train, name, value)


@pytest.fixture
def grouped_mm() -> Iterator[Worker]:
    """The peer of the size of the bench."""
    python = peers_python()
    if python is None:
        pytest.skip("the environment of the peers is not installed")
    with train.mixtral(python, "grouped_mm") as worker:
        yield worker


def test_ours_trains_on_every_token(graph_mode: None, small: None):
    run = SyntheticRun(train.make_config())
    losses = [run.advance() for _ in range(3)]
    assert run.batch().tokens == train.GPT_BATCH * train.GPT_LENGTH
    assert losses == pytest.approx([np.log(train.GPT_VOCABULARY)] * 3, rel=0.1)
    assert len(set(losses)) == 3


def test_mixtral_learns_which_ids_are_never_drawn_and_has_as_many_parameters_as_ours(grouped_mm: Worker):
    assert grouped_mm.started["parameters"] == pytest.approx(train.make_config().num_params().total, rel=0.01)
    losses = [grouped_mm.step()["loss"] for _ in range(3)]
    assert losses == pytest.approx([np.log(train.GPT_VOCABULARY - FIRST)] * 3, rel=0.1)
    assert len(set(losses)) == 3


def test_the_roof_is_the_time_that_the_steps_flops_would_take(small: None):
    config = train.make_config()
    assert train.step_flops(config) == 6 * 64 * (4 * 16**2 + 2 * 16 * 48 + 2 * 16 * 16 + 16 * 64)
    seconds = train.at_sgemm_speed({"ours": [3.0], "NumPy": [2e-3], "MindSpore": [1e-3]}, flops=2 * 64**3 * 100)
    assert list(seconds.values()) == [[3.0], [pytest.approx(0.1)]]
    assert "MindSpore's" in list(seconds)[1]


def test_the_libraries_whose_speed_is_compared_give_one_product(graph_mode: None, small: None):
    numpy_product, mindspore_product = (product() for product in train.products().values())
    np.testing.assert_allclose(mindspore_product, numpy_product, atol=1e-4)


def test_rows_have_every_field_and_absent_peers_are_named(
    graph_mode: None, small: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PANGU_SIGMA_PEERS", "/absent/python")
    rows = [row.as_dict() for row in train.run(peers=True)]
    assert [row["ratio"] is None for row in rows] == [False, True, True]
    assert [row["peer"] for row in rows[1:]] == ["HF Mixtral, grouped_mm", "HF Mixtral, eager"]
    assert all(row["ours"] > 0 and row["runs"] >= 9 and row["unit"] == "tokens/s" for row in rows)
