"""One run on one process and on several: the same samples, the same losses, the same weights."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from launched import Launched
from tiny import tiny_tree

from pangu_sigma.config import load_config
from pangu_sigma.evaluate import evaluate_run
from pangu_sigma.train.checkpoint import Checkpoint, load_checkpoint
from pangu_sigma.train.loop import train
from pangu_sigma.train.metrics import read_metrics
from pangu_sigma.train.parts import Part, copy_part
from pangu_sigma.train.state import EXPERTS

pytestmark = pytest.mark.usefixtures("graph_mode")

STEPS, SAVED_AT = 20, 10
WAIT = 240.0
"""Seconds that a run of seconds may take on a busy machine."""

ONE: dict[str, int] = {}
DATA, EXPERT, MIXED = {"data": 2}, {"expert": 2}, {"groups": 2, "expert": 2}
LAYOUTS = [DATA, EXPERT, MIXED]
SLOW_LAYOUTS = [{"groups": 2}, {"data": 2, "expert": 2}, {"groups": 2, "data": 2}, {"data": 4}]


@pytest.fixture(scope="module")
def four_domains(tiny_data, tmp_path_factory) -> Path:
    """The tiny data with a fourth domain, whose text is that of the second."""
    folder = shutil.copytree(tiny_data, tmp_path_factory.mktemp("four") / "prepared")
    for file in list(folder.glob("en.*")):
        shutil.copy(file, folder / file.name.replace("en.", "more.", 1))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["domains"]["more"] = manifest["domains"]["en"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(four_domains, tmp_path_factory):
    """run(parallel, **sections) -> run folder, trained on that many ranks; each once for all tests."""
    made: dict[str, Path] = {}

    def trained(parallel: dict[str, int], start: Path | None = None, **sections: dict[str, Any]) -> Path:
        key = repr((parallel, start, sections))
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            if start is not None:
                shutil.copytree(start, folder / "run")
            file = write_config(folder / "config.yaml", four_domains, parallel, **sections)
            made[key] = start_run(file, folder / "run")
        return made[key]

    return trained


def write_config(file: Path, data: Path, parallel: dict[str, int], **sections: dict[str, Any]) -> Path:
    tree = tiny_tree(data)
    tree["model"] |= {"expert_init": "independent"}
    tree["domains"].append({"name": "more", "language": "en", "slot": "en"})
    tree["data"] |= {"domain_sets": 2}
    tree["parallel"] = {**parallel, "capacity_factor": 4.0}
    tree["train"] |= {"steps": STEPS, "batch_size": 8, "checkpoint_interval": SAVED_AT, "eval_interval": STEPS, "log_interval": 1}
    for name, keys in sections.items():
        tree[name] = tree.get(name, {}) | keys
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return file


def start_run(file: Path, folder: Path) -> Path:
    config = load_config(file)
    if config.parallel.ranks == 1:
        train(config, folder)
    else:
        with Launched(config.parallel.ranks, ["train", str(file), "--run", str(folder)], folder.parent / "logs") as ranks:
            assert set(ranks.wait(WAIT)) == {0}, ranks.said()
    return folder


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder) if line["kind"] == kind]


def whole(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, put together."""
    found = {}
    for shard in {stem.partition(".")[0] for stem in checkpoint.shards}:
        for name, pieces in checkpoint.pieces(shard).items():
            target = np.zeros(pieces[0][0].whole, pieces[0][1].dtype)
            copied = sum(copy_part(value, part, target, Part.everything(target.shape)) for part, value in pieces)
            assert copied == target.size
            found[f"{shard}/{name}"] = target
    return found


def assert_same_run(found: Path, expected: Path) -> None:
    one, other = lines(expected, "step"), lines(found, "step")
    assert [line["samples"] for line in one] == [line["samples"] for line in other]
    assert len({line["samples"] for line in one}) == STEPS
    for a, b in zip(one, other, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), a["step"]
        assert b["per_domain_loss"] == pytest.approx(a["per_domain_loss"], rel=1e-5), a["step"]
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4), a["step"]
        assert (b["tokens"], b["load_max_over_mean"], b["dropped"]) == (a["tokens"], a["load_max_over_mean"], 0)
    for a, b in zip(lines(expected, "evaluation"), lines(found, "evaluation"), strict=True):
        assert b["per_domain_loss"] == pytest.approx(a["per_domain_loss"], rel=1e-5)
    assert lines(expected, "load") == lines(found, "load")


def assert_same_weights(found: Path, expected: Path, tolerance: float) -> None:
    one, other = (whole(load_checkpoint(path)) for path in (expected, found))
    assert one.keys() == other.keys()
    for name in one:
        if name.endswith("step"):
            assert (one[name] == other[name]).all(), name
        elif not name.endswith(("moment", "variance", "key.bias")):  # the loss does not depend on biases of keys
            np.testing.assert_allclose(other[name], one[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("parallel", [*LAYOUTS, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW_LAYOUTS)], ids=str)
def test_losses_and_samples_do_not_depend_on_the_ranks(run, parallel):
    assert_same_run(run(parallel), run(ONE))


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_ranks_save_the_weights_of_one_process(run, parallel):
    step = f"checkpoints/step_{SAVED_AT:08d}"
    assert_same_weights(run(parallel) / step, run(ONE) / step, 1e-4)
    names = sorted(path.name for path in (run(parallel) / step).glob(f"{EXPERTS}0*"))
    writers = {str(DATA): [""], str(EXPERT): [".00000", ".00001"], str(MIXED): [f".{r:05d}" for r in range(4)]}
    assert names == [f"{EXPERTS}0{rank}.safetensors" for rank in writers[str(parallel)]]


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_one_process_evaluates_what_ranks_trained(run, parallel):
    last = lines(run(parallel), "evaluation")[-1]["per_domain_loss"]
    found = {name: values["loss"] for name, values in evaluate_run(run(parallel)).items()}
    assert found == pytest.approx(last, rel=1e-5)
