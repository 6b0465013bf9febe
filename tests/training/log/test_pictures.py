"""What pictures show is what the log has; what it does not have is left out."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.training.log import pictures
from pangu_sigma.training.log.pictures import RunLog, is_constant, numbers


def log(name: str = "a", config: dict | None = None, later: dict | None = None, **lines: list[dict]) -> RunLog:
    step = {"step": 5, "loss/zh": 2.0, "skipped": 0, "learning_rate": 1e-3, "loss_scale": 8.0, "gradient_norm": 1.0}
    lines |= {"step": [step, {**step, "step": 10, "skipped": 3, "gradient_norm/experts": 0.5, **(later or {})}]}
    lines |= {"run": [{"domains": ["zh", "en"]}]}
    return RunLog(name, lines, config or {}, unigram={"zh": 6.0, "en": None})


def panels(runs: list[RunLog]) -> dict[str, dict[str, list]]:
    """Lines of each panel of the figure of numbers, by title and label."""
    figure = pictures.draw_numbers(runs)
    lines = {axes.get_title(): axes.lines for axes in figure.axes} if figure else {}
    return {
        title: {line.get_label(): [*map(list, line.get_data())] for line in drawn} for title, drawn in lines.items()
    }


def test_load_is_relative_to_the_fair_share_of_its_domain():
    total_NK = np.array([[10, 30, 5, 5, 0, 0]])
    relative = pictures.relative_load(total_NK, domains=3)
    assert np.array_equal(relative, [[0.5, 1.5, 1.0, 1.0, np.nan, np.nan]], equal_nan=True)


def with_segments(segments: list[str], common: int, tokens_NK: list[list[int]]) -> RunLog:
    """A run of two domains with two own experts each."""
    config = {f"model.segments.{n}": kind for n, kind in enumerate(segments)}
    config |= {"model.experts_per_domain": 2, "model.common_experts": common}
    return log(config=config, load=[{"tokens_NK": tokens_NK}])


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
    axes = pictures.draw_losses([log(spike=[spike])]).axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata()), line.get_marker()) for line in axes.lines]
    assert ([5, 10], [2.0, 2.0], "None") in drawn
    assert ([7], [9.0], "^") in drawn
    assert any(xs == [10] and marker == "x" for xs, _, marker in drawn), "the line that had skips"
    assert any(ys == [6.0, 6.0] for _, ys, _ in drawn)


def test_each_part_of_the_norm_is_drawn_where_it_is_known():
    drawn = panels([log(later={"gradient_norm": 2.0, "gradient_norm/experts": 0.5})] * 2)["gradient norm"]
    assert drawn == {"a all": [[5, 10], [1.0, 2.0]]}, "the part of experts is known once, which is no change"
    run = log(later={"gradient_norm": 2.0})
    run.steps["gradient_norm/experts"] = np.array([0.25, 0.5])
    assert panels([run])["gradient norm"]["experts"] == [[5, 10], [0.25, 0.5]]
    assert "dense" not in panels([run])["gradient norm"]


ECSS = {"fetched_mib": 2.0, "returned_mib": 3.0, "update_busy": 1.0, "update_stall": 0.0}


def with_traffic(stall: float) -> RunLog:
    """A run whose steps move the same; `stall` is the wait for the worker in the last step."""
    run = log(later={"skipped": 0})
    run.steps.update({name: np.array([value, value]) for name, value in ECSS.items()})
    run.steps["update_stall"][1] = stall
    return run


def test_pictures_of_nothing_are_left_out_and_said_in_a_sentence():
    assert panels([with_traffic(0.0002)]) == {}
    run = with_traffic(0.0)
    assert {*ECSS, "loss_scale", "learning_rate"} < {name for name in numbers(run) if is_constant(run, name)}
    assert panels([with_traffic(0.5)]) == {"update stall": {"all": [[5, 10], [0.0, 0.5]]}}
    assert {*panels([log(later={"loss_scale": 4.0})])} == {"skipped", "loss scale"}
    assert {*panels([log(later={"learning_rate": 9e-4})])} == {"skipped", "learning rate"}, "small, and it changes"


def test_a_new_number_has_a_panel_by_its_name_and_several_runs_share_it():
    runs = [log("a"), log("b")]
    for run in runs:
        run.steps["new_one/x"] = np.array([1.0, 2.0])
    assert panels(runs)["new one"] == {label: [[5, 10], [1.0, 2.0]] for label in ("a x", "b x")}


def test_without_numbers_there_is_no_picture():
    assert pictures.draw_numbers([log(later={"skipped": 0})]) is None
    assert pictures.draw_load(log()) is None


def test_a_dense_run_with_segments_in_its_configuration_has_no_load():
    """`train sigma_tiny --set model.rre_layers=0` leaves the segments; its load lines are one row of zeros."""
    dense = with_segments(["own", "own", "common", "common"], 3, [[0] * 4])
    assert pictures.draw_load(dense) is None
    assert pictures.segment_loads(dense) == []
