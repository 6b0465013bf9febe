"""A run on Ascend as far as a machine without one can tell: its loop as one rank on the CPU, and who writes which numbers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.small_clusters import by_hand

from experiments.tiny import tiny_config
from pangu_sigma.config import Config
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.inspection.inspect_files import format_file_inspection, inspect_files
from pangu_sigma.npu import backend as ascend
from pangu_sigma.npu.backend import AscendBackend
from pangu_sigma.npu.cuts import HOST, _dense_array, _expert_array
from pangu_sigma.npu.saved_parts import is_writer, part_of
from pangu_sigma.process import use_cpu
from pangu_sigma.ranks.layout import share_of
from pangu_sigma.sections import ParallelConfig
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.metrics import read_metrics
from pangu_sigma.training.loop import train

pytestmark = pytest.mark.usefixtures("graph_mode")

LAYOUTS = [
    {"groups": 2, "expert": 2, "tensor": 2},
    {"groups": 2, "expert": 2, "tensor": 2, "optimizer": False},
    {"expert": 2, "data": 2, "tensor": 2},
    {"data": 4},
    {"stages": 2, "expert": 2, "tensor": 2},
]


def configured(axes: dict) -> Config:
    """Eight own experts of two domains, and four common ones."""
    groups = axes.get("groups", 1)
    return by_hand(
        model={"experts_per_domain": 4, "segments": ["own", "common"], "common_experts": 4},
        data={"domain_sets": groups, "domains_per_step": groups},
        train={"batch_size": 8, "accumulation": 2},
        parallel={"expert": 1, "tensor": 1} | axes,
    )


def last_stage(parallel: ParallelConfig) -> range:
    """Ranks that hold the same layer."""
    return range(parallel.ranks - parallel.stage_ranks, parallel.ranks)


@pytest.mark.parametrize("axes", LAYOUTS, ids=str)
def test_ranks_together_write_every_number_once(axes: dict):
    """Of dense parameters, and of own and common experts."""
    config = configured(axes)
    parallel = config.parallel
    for name, shape in (
        ("layers.0.attention.query.weight", (16, 8)),  # cut by columns
        ("layers.0.attention.output.weight", (16, 8)),  # cut by rows
        ("whole", (16, 8)),
        ("layers.0.attention.query.bias", (16,)),
        ("layers.0.attention_norm.gain", (16,)),  # whole
    ):
        dense, written = _dense_array(config, 1, name, shape), np.zeros(shape, int)
        for rank in last_stage(parallel):
            part = part_of(dense, parallel, rank)
            assert part.whole == shape
            columns = slice(part.offset[0], part.offset[0] + dense.computed[1]) if part.offset else ...
            if is_writer(dense, config, rank):
                written[part.numbers(), columns] += 1
        assert (written == 1).all(), name
    tensors = [("w1", (8, 6)), ("b1.moment", (8,)), ("b2", (6,)), ("step", ())]
    for (number, experts), (name, shape) in itertools.product([(0, 8), (1, 4)], tensors):
        divided = parallel.tensor if name[:2] in ("w1", "b1") else 1
        array = _expert_array(config, 1, number, name.split(".")[0], (experts, *shape), HOST)
        own = (shape[0] // divided, *shape[1:]) if shape else ()
        written = np.zeros((experts, *shape), int)
        for rank in last_stage(parallel):
            held = share_of(config, rank).routed[number].held
            part = part_of(array, parallel, rank, held)
            assert array.kept == (len(held), *own)
            assert part.whole == (experts, *shape)
            columns = slice(part.offset[0], part.offset[0] + own[0]) if shape else ...
            if is_writer(array, config, rank):
                written[part.numbers(), columns] += 1
        assert (written == 1).all(), (number, name)


@pytest.fixture(scope="module")
def runs(graph_mode, tiny_data: Path, tiny_run: Path, tmp_path_factory) -> SimpleNamespace:
    """The tiny run by both backends, alone on the CPU, which has no capacity; the Ascend one stops in the middle and goes on."""
    folder = tmp_path_factory.mktemp("ascend")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ascend, "use_ascend", lambda config: use_cpu(config.seed))
        config = tiny_config(tiny_data, parallel={"capacity_factor": 4.0})
        half = config.model_copy(update={"train": config.train.model_copy(update={"steps": config.train.steps // 2})})
        train(half, folder / "ascend", AscendBackend())
        ascend_run = train(config, folder / "ascend", AscendBackend())
    return SimpleNamespace(ascend=folder / "ascend", cpu=tiny_run, config=config, step=ascend_run.step)


def test_it_trains_and_resumes_like_any_other_run(runs: SimpleNamespace):
    def losses(run: Path) -> list[float]:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [row["loss"] for row in map(json.loads, lines) if "loss" in row]

    ours, theirs = losses(runs.ascend), losses(runs.cpu)
    assert len(ours) == len(theirs) == runs.config.train.steps // runs.config.train.log_interval
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
def test_rows_are_those_of_a_run_on_the_cpu_and_survive_a_stop(graph_mode, tiny_data: Path, tmp_path: Path):
    rows = [{"order": 1, "rows": 2_000, "width": 8}, {"order": 2, "rows": 900, "width": 16, "kind": "own"}]
    model, steps = {"rows": rows}, {"steps": 8, "checkpoint_interval": 4, "eval_interval": 8, "log_interval": 2}
    config = tiny_config(tiny_data, model=model, train=steps, parallel={"capacity_factor": 4.0})
    half = config.model_copy(update={"train": config.train.model_copy(update={"steps": 4})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ascend, "use_ascend", lambda config: use_cpu(config.seed))
        train(half, tmp_path / "ascend", AscendBackend())
        train(config, tmp_path / "ascend", AscendBackend())
    train(config, tmp_path / "cpu")
    ours, theirs = (open_model(tmp_path / name, "run") for name in ("ascend", "cpu"))
    for e in range(2):
        (keys, weight), (same, expected) = ours.rows(e), theirs.rows(e)
        assert np.array_equal(keys, same) and len(keys) > 50
        # a first step of Adam is as large as the rate, whatever the gradient: where that is nearly 0, its sign may differ
        off = np.abs(weight - expected) > 1e-3 * np.abs(expected).max()
        assert off.mean() < 1e-3 and np.abs(expected).max() > 0
    lines = [line for line in read_metrics(tmp_path / "ascend") if line["kind"] == "rows"]
    assert [line["step"] for line in lines] == [0, 4, 8] and lines[0]["entries"]["0"]["met"] == 0
    assert lines[2]["entries"]["1"] | {"collisions": 0} == {"met": len(keys), "stored": 2700, "collisions": 0}
    text = format_file_inspection(inspect_files(tmp_path / "ascend"))
    assert f"rows, entry 1: {len(keys):,} of 2,700 met ({len(keys) / 2700:.2%}), order 2, own, width 16, " in text
    assert f"scale of rows in front of each layer: {lines[2]['scales']['0']:.4g}, " in text
    assert len(lines[2]["scales"]) == config.model.layers and 0.1 not in lines[2]["scales"].values()


def test_evaluation_and_training_are_one_graph_and_its_checkpoint_is_read_on_the_cpu(runs: SimpleNamespace):
    assert runs.step.training
    assert len(runs.step.compile_cache) == 1
    theirs = [line for line in read_metrics(runs.cpu) if line["kind"] == "evaluation"][-1]["per_domain_loss"]
    ours = {domain: figures["loss"] for domain, figures in evaluate_run(runs.ascend).items()}
    assert ours == pytest.approx(theirs, rel=1e-4)
