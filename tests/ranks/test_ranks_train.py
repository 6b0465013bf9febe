"""One run on one process and on several: the same samples, the same losses, the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.edited import stopped_at

from experiments.chaos.rank_processes import RankProcesses
from experiments.chaos.runs import whole
from experiments.tiny import tiny_tree
from pangu_sigma.checkpoint.checkpoint import load_checkpoint, newest_checkpoint
from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.checkpoint.state import EXPERTS
from pangu_sigma.cli import main
from pangu_sigma.config_file import load_config
from pangu_sigma.data.manifest import read_manifest
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.model.pangu_sigma import FFN_TENSORS
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.metrics import read_metrics
from pangu_sigma.training.loop import train

pytestmark = pytest.mark.usefixtures("graph_mode")

STEPS, SAVED_AT = 20, 10
WAIT = 600.0
"""Seconds that a run of seconds may take on a busy machine."""

ONE: dict[str, int] = {}
DATA, EXPERT, MIXED = {"data": 2}, {"expert": 2}, {"groups": 2, "expert": 2}
RANKS = [f".{rank:05d}" for rank in range(4)]
LAYOUTS = [EXPERT, *(pytest.param(p, marks=pytest.mark.slow) for p in (DATA, MIXED))]
MORE_LAYOUTS = [{"groups": 2}, {"data": 2, "expert": 2}, {"groups": 2, "data": 2}, {"data": 4}]


@pytest.fixture(scope="module")
def four_domains(tiny_data, tmp_path_factory) -> Path:
    """The tiny data with a fourth domain, whose text is that of the second."""
    folder = shutil.copytree(tiny_data, tmp_path_factory.mktemp("four") / "prepared")
    shutil.copytree(folder / "en", folder / "more")
    en = read_manifest(folder / "en")
    settings = [["more", *en.settings("en")[1:]]]
    changes = {"domains": {"more": en.domains["en"]}, "config": en.config | {"domains": settings}}
    en.model_copy(update=changes).save(folder)
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
    tree["model"] |= {"expert_init": "independent", "dense_layers": 0}
    tree["model"] |= {"segments": ["own", "common"], "common_experts": 6}
    tree["domains"].append({"name": "more", "language": "en", "slot": "en"})
    tree["data"] |= {"domain_sets": 2}
    tree["parallel"] = parallel
    tree["train"] |= {"steps": STEPS, "batch_size": 8, "eval_interval": STEPS, "log_interval": 1}
    tree["train"] |= {"checkpoint_interval": 1, "keep_checkpoints": STEPS}
    # at twice the rate the loss jumps once, and that step shows the rounding of the others fifty-fold
    tree["train"]["optimizer"] |= {"peak_lr": 5e-3}
    for name, keys in sections.items():
        tree[name] = tree.get(name, {}) | keys
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return file


def start_run(file: Path, folder: Path) -> Path:
    config = load_config(file)
    if config.parallel.ranks == 1:
        train(config, folder)
    else:
        with RankProcesses(
            config.parallel.ranks, ["train", str(file), "--output", str(folder)], folder.parent / "logs"
        ) as ranks:
            assert ranks.wait(WAIT) == [0] * config.parallel.ranks, ranks.said()
    return folder


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder) if line["kind"] == kind]


def assert_same_run(actual: Path, expected: Path) -> None:
    one, other = lines(expected, "step"), lines(actual, "step")
    assert [line["samples"] for line in one] == [line["samples"] for line in other]
    assert len({line["samples"] for line in one}) == STEPS
    for a, b in zip(one, other, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), a["step"]
        losses = ({name: loss for name, loss in line.items() if name.startswith("loss/")} for line in (a, b))
        assert next(losses) == pytest.approx(next(losses), rel=1e-5), a["step"]
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4), a["step"]
        assert (b["tokens"], b["load_max_over_mean"], b["dropped"]) == (a["tokens"], a["load_max_over_mean"], 0)
    for a, b in zip(lines(expected, "evaluation"), lines(actual, "evaluation"), strict=True):
        assert b["per_domain_loss"] == pytest.approx(a["per_domain_loss"], rel=1e-5)
        for key in ("held_out", "samples", "tokens", "bytes", "unigram"):
            assert b[key] == a[key], key
        for name, units in a["per_sample"].items():
            assert b["per_sample"][name]["tokens"] == units["tokens"]
            assert b["per_sample"][name]["nats"] == pytest.approx(units["nats"], rel=1e-5)
    assert lines(expected, "load") == lines(actual, "load")


def assert_same_weights(actual: Path, expected: Path, tolerance: float) -> None:
    one, other = (whole(load_checkpoint(path)) for path in (expected, actual))
    assert one.keys() == other.keys()
    for name in one:
        if name.endswith("step"):
            assert (one[name] == other[name]).all(), name
        elif not name.endswith(("moment", "variance", "key.bias")):  # the loss does not depend on biases of keys
            np.testing.assert_allclose(other[name], one[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    "parallel", [*LAYOUTS, *(pytest.param(p, marks=pytest.mark.slow) for p in MORE_LAYOUTS)], ids=str
)
def test_losses_and_samples_do_not_depend_on_the_ranks(run, parallel):
    assert_same_run(run(parallel), run(ONE))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"dropout": 0.1}},
        {"train": {"accumulation": 2}},
        {"ecss": {"enabled": False}},
        {"ecss": {"store": "file"}},
        {"model": {"segments": ["own"], "common_experts": 0}},
        {"model": {"segments": ["own", "own", "common", "common"]}},
        {"model": {"rre_layers": 1, "dense_layers": 2, "expert_init": "replicated"}},
    ],
    ids=str,
)
def test_nor_do_they_with_other_options(run, sections):
    assert_same_run(run(MIXED, **sections), run(ONE, **sections))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [DATA, MIXED], ids=str)
def test_every_rank_updates_all_rows_by_the_gradients_of_all(run, parallel):
    entries = [{"order": 1, "rows": 900, "width": 8}, {"order": 2, "rows": 4_000, "width": 16, "kind": "own"}]
    sections = {"model": {"rows": entries}, "train": {"accumulation": 2}}
    actual, alone, step = run(parallel, **sections), run(ONE, **sections), f"checkpoints/step_{SAVED_AT:08d}"
    assert_same_run(actual, alone)
    assert_same_weights(actual / step, alone / step, 2e-4)
    assert (actual / step / "rows_1.safetensors").exists(), "one rank writes them"


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_ranks_save_the_weights_of_one_process(run, parallel):
    step = f"checkpoints/step_{SAVED_AT:08d}"
    assert_same_weights(run(parallel) / step, run(ONE) / step, 1e-4)
    writers = {str(DATA): ([""], [""]), str(EXPERT): (RANKS[:2], RANKS[:2]), str(MIXED): (RANKS, RANKS[:2])}
    for number, ranks in enumerate(writers[str(parallel)]):  # of own experts, and of common ones, in one copy
        names = sorted(path.name for path in (run(parallel) / step).glob(f"{EXPERTS}{number}*"))
        assert names == [f"{EXPERTS}{number}{rank}.safetensors" for rank in ranks]


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_one_process_evaluates_what_ranks_trained(run, parallel):
    last = lines(run(parallel), "evaluation")[-1]["per_domain_loss"]
    actual = {name: values["loss"] for name, values in evaluate_run(run(parallel)).items()}
    assert actual == pytest.approx(last, rel=1e-5)


def test_an_expert_without_tokens_keeps_every_bit(run):
    """Weights, moments, variances and step count."""
    folder = run(EXPERT)
    loads = {line["step"]: np.array(line["tokens_NK"]) for line in lines(folder, "load")}
    before = whole(load_checkpoint(folder / "checkpoints" / f"step_{1:08d}"))
    resting = 0
    for step in range(2, STEPS + 1):
        after = whole(load_checkpoint(folder / "checkpoints" / f"step_{step:08d}"))
        for number, load_K in enumerate(loads[step]):
            for name in (name for name in after if name.startswith(f"{EXPERTS}{number}/")):
                load = load_K[: len(after[name])]  # a log has as many columns as the largest segment
                changed = (before[name] != after[name]).reshape(len(load), -1).any(axis=1)
                assert not changed[load == 0].any(), name
                assert changed[load > 0].all() or not name.endswith("step"), name
            resting += (load == 0).sum()
        before = after
    assert resting > STEPS


def resumed(run, start: dict[str, int], parallel: dict[str, int], copy: Path, **sections: dict[str, Any]) -> Path:
    """A run as it was after SAVED_AT, which goes on in another layout."""
    stopped_at(run(start, **sections), SAVED_AT, copy)
    data = Path(run_config(copy).data.path)
    file = write_config(copy.parent / "config.yaml", data, parallel, **sections)
    return start_run(file, copy)


@pytest.mark.parametrize(
    ("start", "parallel"),
    [
        (EXPERT, ONE),
        pytest.param(EXPERT, MIXED, marks=pytest.mark.slow),
        pytest.param(ONE, EXPERT, marks=pytest.mark.slow),
        pytest.param(MIXED, DATA, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_goes_on_in_another_layout(run, start, parallel, tmp_path):
    assert_same_run(resumed(run, start, parallel, tmp_path / "run"), run(ONE))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_a_run_goes_on_in_its_layout_to_the_same_bits(run, parallel, tmp_path):
    copy, step = resumed(run, parallel, parallel, tmp_path / "run"), f"checkpoints/step_{STEPS:08d}"
    one, other = (whole(load_checkpoint(path / step)) for path in (run(parallel), copy))
    assert {name: a.tobytes() for name, a in one.items()} == {name: a.tobytes() for name, a in other.items()}


def test_an_exported_folder_holds_the_weights_of_all_ranks(run, tmp_path):
    folder = tmp_path / "hf"
    assert main(["export", str(run(EXPERT)), "--format", "hf", "--output", str(folder)]) == 0
    model, names = open_model(folder, "hf"), []
    for name, array in whole(newest_checkpoint(run(EXPERT) / "checkpoints")).items():
        shard, _, tensor = name.partition("/")
        if shard == "dense" or (shard.startswith(EXPERTS) and tensor in FFN_TENSORS):
            assert np.array_equal(model.array(shard, tensor).read(), array), name
            names.append(name)
    assert sum(model.array(*name.split("/")).size for name in names) == model.config.num_params().total
    assert model.config.model == run_config(run(EXPERT)).model
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
