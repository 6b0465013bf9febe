"""What pictures show is what the log has; what it does not have is left out."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.train.log import pictures
from pangu_sigma.train.log.pictures import RunLog


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


def test_runs_have_their_own_kind_of_line_and_are_named():
    axes = pictures.draw_losses([log("a"), log("b")]).axes[0]
    assert {line.get_linestyle() for line in axes.lines} >= {"-", "--"}
    assert "- a, -- b" in axes.get_title()


@pytest.mark.parametrize("draw", [pictures.draw_speed, pictures.draw_traffic])
def test_without_numbers_there_is_no_picture(draw):
    assert draw([log()]) is None
    assert pictures.draw_load(log()) is None
