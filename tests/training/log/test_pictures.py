"""What pictures show is what the log has; what it does not have is left out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pangu_sigma.training.log import pictures
from pangu_sigma.training.log.pictures import RunLog


def log(name: str = "a", **kinds: list[dict]) -> RunLog:
    step = {
        "step": 5,
        "per_domain_loss": {"zh": 2.0, "en": None},
        "skipped": 0,
        "learning_rate": 1e-3,
        "loss_scale": 8.0,
    }
    step |= {"gradient_norm": 1.0, "tokens_per_second": None}
    later = {**step, "step": 10, "skipped": 3, "gradient_norm_experts": 0.5}
    empty: dict[str, list[dict]] = {kind: [] for kind in ("evaluations", "loads", "spikes", "changes", "unhealthy")}
    return RunLog(name, ["zh", "en"], 10, [step, later], **(empty | kinds), unigram={"zh": 6.0, "en": None})


def lines_of(axes) -> dict[str, list]:
    return {line.get_label(): [list(line.get_xdata()), list(line.get_ydata())] for line in axes.lines}


def test_load_is_relative_to_the_fair_share_of_its_domain():
    total_NK = np.array([[10, 30, 5, 5, 0, 0]])
    relative = pictures.relative_load(total_NK, domains=3)
    assert np.array_equal(relative, [[0.5, 1.5, 1.0, 1.0, np.nan, np.nan]], equal_nan=True)


def with_segments(segments: list[str], common: int, tokens_NK: list[list[int]]) -> RunLog:
    """A run of two domains with two own experts each."""
    stored = {"own": 4, "common": common}
    return dataclasses.replace(log(loads=[{"tokens_NK": tokens_NK}]), segments=segments, stored=stored)


@pytest.mark.parametrize("common", [3, 6])
def test_own_and_common_segments_have_a_map_each(common):
    """A log has as many columns as the largest segment has experts, and a column of no expert is not drawn."""
    tokens_NK = np.zeros((4, max(4, common)), int)
    tokens_NK[[0, 2], :4] = [[10, 30, 5, 5], [20, 20, 10, 0]]
    tokens_NK[[1, 3], :3] = [[10, 20, 30], [60, 0, 0]]
    figure = pictures.draw_load(with_segments(["own", "common"], common, tokens_NK.tolist()))
    own, shared = (axes for axes in figure.axes if axes.images)
    assert np.array_equal(own.images[0].get_array(), [[0.5, 1.5, 1.0, 1.0], [1.0, 1.0, 2.0, 0.0]])
    assert np.array_equal(shared.images[0].get_array()[0, :3], np.array([10, 20, 30]) / (60 / common))
    assert shared.images[0].get_array().shape == (2, common)
    for axes, places in ((own, ["0.0", "1.0"]), (shared, ["0.1", "1.1"])):
        assert [label.get_text() for label in axes.get_yticklabels()] == places
    (top,) = own.child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["zh", "en"]
    assert not shared.child_axes, "common experts are of no domain"
    assert shared.get_xlabel() == "common expert (number in its segment)"
    assert own.get_title() == "Load of each expert over the run (50 tokens)"


def test_two_own_segments_share_a_map():
    figure = pictures.draw_load(with_segments(["own", "own"], 0, [[10, 30, 5, 5]] * 4))
    (own,) = (axes for axes in figure.axes if axes.images)
    assert [label.get_text() for label in own.get_yticklabels()] == ["0.0", "0.1", "1.0", "1.1"]
    assert own.get_ylabel() == "RRE layer.segment (0 = lowest)"


def test_losses_skipped_steps_spikes_and_the_level_of_counting_are_drawn():
    spike = {"step": 7, "domain": "zh", "loss": 9.0}
    axes = pictures.draw_losses([log(spikes=[spike])]).axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata()), line.get_marker()) for line in axes.lines]
    assert ([5, 10], [2.0, 2.0], "None") in drawn
    assert ([7], [9.0], "^") in drawn
    assert any(xs == [10] and marker == "x" for xs, _, marker in drawn), "the line that had skips"
    assert any(ys == [6.0, 6.0] for _, ys, _ in drawn)


def test_each_part_of_the_norm_is_drawn_where_it_is_known():
    norms = pictures.draw_optimizer([log()]).axes[1]
    drawn = lines_of(norms)
    assert drawn["all gradients"] == [[5, 10], [1.0, 1.0]]
    assert drawn["experts"] == [[10], [0.5]]
    assert "dense parameters" not in drawn


def with_traffic(stall: float) -> RunLog:
    """A run whose steps move the same; `stall` is the wait for the worker in the last step."""
    values = dict(zip((*pictures.TRAFFIC, *pictures.UPDATE), (2.0, 3.0, 1.0, 0.0), strict=True))
    first, last = ({**line, **values} for line in log().steps)
    return dataclasses.replace(log(), steps=[first, last | {"update_stall": stall}])


def test_pictures_of_nothing_are_left_out_and_said_in_a_sentence():
    assert pictures.draw_traffic([with_traffic(0.0002)]) is None
    assert len(pictures.draw_optimizer([log()]).axes) == 2, "the loss scale is the same"
    expected = {"loss scale": 8.0, "MiB fetched": 2.0, "MiB returned": 3.0}
    assert pictures.constants(with_traffic(0.0)) == expected | {"worker busy": 1.0, "wait for updates": 0.0}
    (axes,) = pictures.draw_traffic([with_traffic(0.5)]).axes
    assert lines_of(axes) == {"wait for updates": [[5, 10], [0.0, 0.5]]}
    scaled = dataclasses.replace(log(), steps=[log().steps[0], log().steps[1] | {"loss_scale": 4.0}])
    assert len(pictures.draw_optimizer([scaled]).axes) == 3


@pytest.mark.parametrize("draw", [pictures.draw_speed, pictures.draw_traffic])
def test_without_numbers_there_is_no_picture(draw):
    assert draw([log()]) is None
    assert pictures.draw_load(log()) is None


def test_a_dense_run_with_segments_in_its_configuration_has_no_load():
    """`train sigma_tiny --set model.rre_layers=0` leaves the segments; its load lines are one row of zeros."""
    dense = with_segments(["own", "own", "common", "common"], 3, [[0] * 4])
    assert pictures.draw_load(dense) is None
    assert pictures.segment_loads(dense) == []
