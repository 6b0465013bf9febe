"""A run in phases: experts of a domain that a phase leaves out keep every bit, and the run stops and goes on in any phase."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers.grown import saved_arrays

from experiments.tiny import tiny_tree
from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.start import start_run

pytestmark = pytest.mark.usefixtures("graph_mode")

PHASES = [{"from_step": 0, "weights": {"zh": 1.0, "en": 1.0}}, {"from_step": 4}]


def phased(data) -> Config:
    tree = tiny_tree(data)
    tree["data"]["phases"] = PHASES
    tree["model"] |= {"dense_layers": 0, "rre_layers": 1}
    tree["train"] |= {
        "steps": 8,
        "checkpoint_interval": 1,
        "keep_checkpoints": 1,
        "eval_interval": 1000,
        "log_interval": 1,
    }
    return parse_config(tree)


def experts(run) -> dict[str, np.ndarray]:
    return {name: values for name, values in saved_arrays(run).items() if name.startswith("experts_layer_")}


def test_experts_of_a_domain_outside_the_phase_keep_their_bits_and_a_stopped_run_ends_in_the_same_ones(
    tiny_data, tmp_path
):
    whole = Trainer(start_run(tmp_path / "whole", phased(tiny_data)))
    whole.save()
    drawn = experts(tmp_path / "whole")
    steps = [whole.metrics(*whole.advance()) for _ in range(3)]
    whole.save()
    for name, values in experts(tmp_path / "whole").items():
        assert values[4:].tobytes() == drawn[name][4:].tobytes(), f"{name}: code is not in the phase"
        assert values[:4].tobytes() != drawn[name][:4].tobytes(), name
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    again = Trainer(start_run(tmp_path / "stopped", phased(tiny_data)))  # in the first phase; a step before the second
    for _ in range(3):
        again.advance()
    again.save()
    last = Trainer(start_run(tmp_path / "stopped", phased(tiny_data)))
    while not last.finished:  # in the second
        last.advance()
    last.save()
    while not whole.finished:
        steps.append(whole.metrics(*whole.advance()))
    whole.save()
    assert last.progress == whole.progress
    one, other = (saved_arrays(tmp_path / name) for name in ("stopped", "whole"))
    assert all(one[name].tobytes() == values.tobytes() for name, values in other.items())
    assert experts(tmp_path / "whole")["experts_layer_0 w1.moment"][4:].any(), "code is in the second phase"
    epochs = [{name: step[f"epochs/{name}"] for name in ("zh", "en", "code")} for step in steps]
    counts = whole.batches.samples.counts
    assert epochs[3] == {"zh": 8 / counts[0], "en": 8 / counts[1], "code": 0.0}
    assert epochs[-1] == {
        name: taken / count
        for name, taken, count in zip(("zh", "en", "code"), whole.progress.cursor.taken, counts, strict=True)
    }
    second = np.array(whole.progress.cursor.taken) - [8, 8, 0]
    assert sorted(second.tolist()) == [4, 6, 6], "8 blocks of 2 samples for three domains alike"
