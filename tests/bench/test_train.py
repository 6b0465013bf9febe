"""`bench train` compares models of equal size, and steps that train."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.bench import train


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"LENGTH": 16, "VOCABULARY": 64, "LAYERS": 1, "HIDDEN": 16, "HEADS": 2, "EXPERTS": 4, "INTERMEDIATE": 32}
    for name, value in {**sizes, "SIDE": 64, "RATE": 1e-2}.items():
        monkeypatch.setattr(train, name, value)


def test_every_token_meets_one_expert_and_counts_equally(small: None):
    config, ids_BS = train.make_config(), train.draw_ids()
    table = train.draw_tables(config.routing, 1, 1, train.VOCABULARY, train.EXPERTS, None)
    batch = train.make_batch(config, table, ids_BS)
    assert batch.load(config.experts).sum() == batch.tokens == ids_BS.size
    assert batch.weights_GBS.sum() == pytest.approx(1.0)
    assert np.array_equal(batch.labels_GBS[0, :, :-1], ids_BS[:, 1:])


def test_ours_learns_the_batch(graph_mode: None, small: None):
    step = train.ours(train.make_config(), train.draw_ids())
    losses = [step() for _ in range(9)]
    assert losses[0] == pytest.approx(np.log(train.VOCABULARY), rel=0.1)
    assert losses[-1] < losses[0] - 0.1


def test_mixtral_learns_the_batch_too_and_has_as_many_parameters():
    if not train.has_mixtral():
        pytest.skip("torch and transformers 5 are not installed")
    model, config = train.mixtral("grouped_mm"), train.make_config()
    assert model.num_parameters() == pytest.approx(config.num_params().total, rel=0.01)
    step = train.torch_step(model, train.draw_ids())
    losses = [step() for _ in range(3)]
    assert losses[0] == pytest.approx(np.log(train.VOCABULARY), rel=0.1)
    assert losses[-1] < losses[0]


def test_the_roof_is_the_time_that_the_steps_flops_would_take(small: None):
    config = train.make_config()
    assert train.step_flops(config) == 6 * 64 * (4 * 16**2 + 2 * 16 * 48 + 2 * 16 * 16 + 16 * 64)
    seconds = train.at_sgemm_speed({"ours": [3.0], "sgemm": [1e-3]}, flops=2 * 64**3 * 100)
    assert list(seconds.values()) == [[3.0], [pytest.approx(0.1)]]


def test_rows_have_every_field_and_absent_peers_are_named(
    graph_mode: None, small: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(train, "has_mixtral", lambda: False)
    rows = [row.as_dict() for row in train.run(peers=True)]
    assert [row["ratio"] is None for row in rows] == [False, True, True]
    assert [row["peer"] for row in rows[1:]] == ["HF Mixtral, grouped_mm", "HF Mixtral, eager"]
    assert all(row["ours"] > 0 and row["runs"] >= 9 and row["unit"] == "tokens/s" for row in rows)
