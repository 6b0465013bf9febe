"""A run that goes on with another number of ranks: the same samples, and every number of the checkpoint where it belongs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.chaos.cases import CASE_SECONDS, TRAIN, Case, command, configuration, data
from experiments.chaos.rank_processes import RankProcesses
from experiments.chaos.runs import newest, whole
from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.training.log.metrics import read_metrics

_ONE: dict[str, Any] = {}
TWO_RANKS: dict[str, dict[str, Any]] = {"data": {"data": 2}, "expert": {"expert": 2}}


def cases(work: Path, full: bool) -> Sequence[Case]:
    """1 → 2 → 1 ranks, 2 → 1 → 2, and from one layout of two ranks to the other and back."""
    data_2, expert_2 = TWO_RANKS["data"], TWO_RANKS["expert"]
    ways = {
        "1_data2_1": [_ONE, data_2, _ONE],
        "1_expert2_1": [_ONE, expert_2, _ONE],
        "expert2_1_expert2": [expert_2, _ONE, expert_2],
        "data2_1_data2": [data_2, _ONE, data_2],
        "expert2_data2_expert2": [expert_2, data_2, expert_2],
        "data2_expert2_1": [data_2, expert_2, _ONE],
    }
    chosen = ways if full else {name: ways[name] for name in ("1_expert2_1", "expert2_data2_expert2")}
    return [Case(name, partial(_check, work, layouts)) for name, layouts in chosen.items()]


def _check(work: Path, layouts: list[dict[str, Any]], folder: Path) -> str:
    prepared = data(work)
    straight = folder / "straight"
    straight.mkdir()
    _train(configuration(straight, prepared), straight / "run", 1, straight / "logs")
    for number, parallel in enumerate(layouts):
        steps = 2 * (number + 1)
        here = folder / str(number)
        here.mkdir()
        config = configuration(here, prepared, parallel=parallel, train={"steps": steps})
        before = whole(newest(folder / "run")) if number else {}
        _train(config, folder / "run", 1 if parallel == _ONE else 2, here / "logs")
        if (
            number
        ):  # what it went on from is kept, and was read by the other layout: saving it again must give the same numbers
            again = whole(load_checkpoint(folder / "run" / "checkpoints" / f"step_{steps - 2:08d}"))
            assert all((again[name] == value).all() for name, value in before.items()), (
                "the checkpoint of before was changed"
            )
    found, expected = (
        [(line["step"], line["samples"]) for line in read_metrics(run) if line["kind"] == "step"]
        for run in (folder / "run", straight / "run")
    )
    assert found == expected, f"samples {found}, not {expected}"
    one, other = (whole(newest(run)) for run in (straight / "run", folder / "run"))
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    worst = max(
        float(np.abs(one[name].astype(np.float64) - other[name]).max())
        for name in one
        if not name.endswith("key.bias") and not name.endswith(("moment", "variance"))
    )
    assert worst < 1e-4, f"weights differ by {worst:.1e}"
    return ""


def _train(config: Path, run: Path, ranks: int, logs: Path) -> None:
    if ranks == 1:
        status, said = command([*TRAIN, str(config), "--output", str(run)])
        assert status == 0, said[-600:]
        return
    with RankProcesses(ranks, ["train", str(config), "--output", str(run)], logs) as processes:
        assert processes.wait(CASE_SECONDS) == [0] * ranks, processes.said()[-800:]
