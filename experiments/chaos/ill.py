"""Runs that become ill: values that are not finite, an overflow without end, a spike. They stop by name, or go on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.chaos.cases import (
    TRAIN,
    Case,
    assert_no_traceback,
    assert_same,
    command,
    configuration,
    data,
    end_of,
    once,
)
from experiments.chaos.runs import newest
from pangu_sigma.training.log.metrics import read_metrics

_TRAIN: dict[str, Any] = {"steps": 12, "checkpoint_interval": 4, "keep_checkpoints": 3}
_ILL_AT = 6
"""The step before which the fault comes; 4 is saved then."""
_SPIKES = {"window": 4, "factor": 8.0}
_SPIKE_AT = 30
"""The step with a spike; before it the model has learned enough to be surprised."""

NAMED: dict[str, tuple[str, ...]] = {
    "nan_in_expert_of_zh": ("domain zh", "layer 0", "expert 0", "w1"),
    "nan_in_expert_of_en": ("domain en", "layer 0", "expert 2", "w1"),
    "nan_in_expert_of_code": ("domain code", "layer 0", "expert 4", "w1"),
    "inf_in_expert_of_en": ("domain en", "layer 0", "expert 2", "w1"),
    "nan_in_dense": ("dense: norm.gain",),
    "inf_in_moment_of_expert": ("experts_layer_0", "w1.variance", "2 of domain en"),
    "inf_in_moment_of_dense": ("dense_optimizer", "norm.gain.variance"),
    "overflow_without_end": ("train.max_skipped_steps",),
}
"""Faults that stop a run, and what the message names."""
SPIKES = ("spike", "spike_skipped")
"""Faults that a run goes on after."""


def cases(work: Path, full: bool) -> Sequence[Case]:
    """Each of them once."""
    chosen = (
        [*NAMED, *SPIKES]
        if full
        else ["nan_in_expert_of_en", "inf_in_moment_of_expert", "overflow_without_end", "spike_skipped"]
    )
    return [Case(what, partial(_spikes if what in SPIKES else _stops, work, what)) for what in chosen]


def _reference(work: Path, folder: Path) -> None:
    status, said = command(
        [*TRAIN, str(configuration(folder, data(work), train=_TRAIN)), "--output", str(folder / "run")]
    )
    assert status == 0, said


def _ill(config: Path, run: Path, what: str) -> tuple[int, str]:
    return command([sys.executable, "-m", "experiments.chaos.ill", str(config), str(run), what])


def _stops(work: Path, what: str, folder: Path) -> str:
    reference, run = once(work, "ill", partial(_reference, work)), folder / "run"
    endless = {"max_skipped_steps": 4, "compute_dtype": "float16", "loss_scale": {"initial": 2.0**96}}
    changed = endless if what == "overflow_without_end" else {}
    config = configuration(folder, data(work), train=_TRAIN | changed)
    status, said = _ill(config, run, what)
    assert status == 2, f"status {status}: {said[-600:]}"
    assert_no_traceback(said)
    message = said.rpartition("error: ")[2]
    missing = [word for word in NAMED[what] if word not in message]
    assert not missing, f"{missing} not named in {message[:500]!r}"
    if what == "overflow_without_end":
        return ""
    saved = newest(run)
    values = (array.values for arrays in saved.files.values() for array in arrays.values())
    assert all(np.isfinite(each).all() for each in values), "the newest checkpoint is not healthy"
    assert saved.step == 4, f"the newest checkpoint is of step {saved.step}"
    status, said = command([*TRAIN, str(config), "--output", str(run)])
    assert status == 0, f"it cannot go on: {said[-400:]}"
    assert_same(end_of(run), end_of(reference / "run"))
    return ""


def _spikes(work: Path, what: str, folder: Path) -> str:
    run, skip = folder / "run", what == "spike_skipped"
    config = configuration(
        folder, data(work), train=_TRAIN | {"steps": 32, "log_interval": 1, "spikes": {**_SPIKES, "skip": skip}}
    )
    status, said = _ill(config, run, what)
    assert status == 0, f"status {status}: {said[-600:]}"
    lines = read_metrics(run)
    spikes = [line for line in lines if line["kind"] == "spike" and line["step"] == _SPIKE_AT]
    assert spikes, f"no spike was logged: {[line for line in lines if line['kind'] == 'spike']}"
    assert all(spike["skipped"] is skip and spike["loss"] > spike["limit"] for spike in spikes), str(spikes)
    step = next(line for line in lines if line["kind"] == "step" and line["step"] == _SPIKE_AT)
    assert step["skipped"] == int(skip), str(step)
    assert f"step {_SPIKE_AT}: the loss of domain" in said, said[-400:]
    return ""


def _train_ill(config: Path, run: Path, what: str) -> int:
    """`pangu-sigma train`, with a fault before one of its steps."""
    from pangu_sigma.cli import main
    from pangu_sigma.training.loop import Trainer

    advance = Trainer.advance

    def advance_ill(trainer: Trainer) -> Any:
        if trainer.progress.step + 1 == (_SPIKE_AT if what in SPIKES else _ILL_AT):
            _do(trainer, what)
        return advance(trainer)

    Trainer.advance = advance_ill  # type: ignore[method-assign, assignment]
    return main(["train", str(config), "--output", str(run)])


def _do(trainer: Any, what: str) -> None:
    dense = {id(p): i for i, p in enumerate(trainer.step.dense.weights)}
    first = {"zh": 0, "en": 2, "code": 4}
    if what in SPIKES:
        take = trainer.feed.take

        def other_labels() -> Any:
            """Labels that nobody expects."""
            trainer.feed.take = take
            fed = take()
            return fed._replace(batch=replace(fed.batch, labels_GBS=np.full_like(fed.batch.labels_GBS, 639)))

        trainer.feed.take = other_labels
    elif what == "nan_in_dense":
        trainer.network.norm.gain.asnumpy()[3] = np.nan
    elif what == "inf_in_moment_of_dense":
        trainer.step.dense.variances[dense[id(trainer.network.norm.gain)]].asnumpy()[3] = np.inf
    elif what == "inf_in_moment_of_expert":
        trainer.setup.shards["experts_layer_0"]["w1.variance"].asnumpy()[first["en"], 0, 0] = np.inf
    elif what != "overflow_without_end":
        value = np.nan if what.startswith("nan") else np.inf
        trainer.setup.shards["experts_layer_0"]["w1"].asnumpy()[first[what.rpartition("_")[2]]] = value


if __name__ == "__main__":
    sys.exit(_train_ill(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
