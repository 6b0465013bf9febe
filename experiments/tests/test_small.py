"""Configurations of comparisons: later changes win, and a dense model has the active size of the Σ."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.small import SMALL, SMALL_DENSE, add_options, drawn, evaluated, schedule, tiny


def test_later_changes_win_in_both_forms():
    config = tiny(SMALL, schedule(200, 2e-3, 0.0), ["train.steps=40", "train.steps=30"], evaluated(30, 2, 15))
    assert (config.model.hidden, config.train.steps, config.train.eval_interval) == (128, 30, 30)
    assert (config.train.optimizer.warmup_steps, config.train.optimizer.decay_steps) == (20, 180)
    assert tiny(["train.steps=40"], {"train.steps": 50}).train.steps == 50


def test_the_dense_model_has_as_many_layers():
    sparse, dense = tiny(SMALL), tiny(SMALL, SMALL_DENSE)
    assert (dense.model.layers, dense.model.rre_layers, dense.slots) == (sparse.model.layers, 0, sparse.slots)


def test_seeds_share_no_table_if_each_needs_several():
    assert drawn(1) == {"seed": 1, "routing.seed": 0}
    assert [drawn(seed, 2)["routing.seed"] for seed in (1, 2, 3)] == [0, 2, 4]


def test_options_are_lists_and_rates_stay_as_they_were_written():
    parser = argparse.ArgumentParser()
    add_options(parser, "c", ("7e-4", "2e-3"))
    options = vars(parser.parse_args(["--seeds", "1", "4", "--set", "a=b", "--set", "c=d"]))
    assert options == {"seeds": [1, 4], "rates": ["7e-4", "2e-3"], "folder": Path("runs/c"), "set": ["a=b", "c=d"]}
