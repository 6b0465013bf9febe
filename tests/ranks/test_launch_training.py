"""Training, launched: ranks that compute together, a run that goes on after a rank was killed, nodes that must agree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.prepared import change_vocabulary

from experiments.chaos.launched import PATIENCE, free_port
from experiments.tiny import tiny_config, tiny_tree
from pangu_sigma.api import training_facts
from pangu_sigma.cli import main
from pangu_sigma.stored.open import open_model

COMMAND = [sys.executable, "-m", "pangu_sigma", "launch"]


@pytest.fixture
def file(tmp_path, tiny_data) -> Path:
    return write_config(tmp_path, tiny_data, {})


def write_config(folder: Path, data: Path, axes: dict) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree(data) | {"parallel": axes}, allow_unicode=True), encoding="utf-8")
    return path


def test_two_nodes_that_differ_are_refused_quickly(tiny_data, tmp_path):
    """Each has a disk of its own, with everything in the same place."""
    options = ["--nodes", "2", "--master-address", "127.0.0.1", "--master-port", str(free_port()), "--output", "run"]
    for node in range(2):
        shutil.copytree(tiny_data, tmp_path / str(node) / "data")
        tree = tiny_tree(Path("data")) | {"parallel": {"data": 2}}
        tree["train"]["steps"] += node
        (tmp_path / str(node) / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    started = time.monotonic()
    nodes = [
        subprocess.Popen(
            [*COMMAND, "tiny.yaml", *options, "--node-rank", str(node)],
            cwd=tmp_path / str(node),
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    errors = [node.communicate(timeout=PATIENCE)[1] for node in nodes]
    assert time.monotonic() - started < 20
    assert [node.returncode for node in nodes] == [2, 2]
    for error in errors:
        said = [line for line in error.splitlines() if not line.startswith("waiting up to 300 s for node 0 at ")]
        assert len(said) == 1, "one message"
        assert said[0].startswith("error: node 1 (")
        assert "in train.steps (31, on node 0 30)" in said[0]
    assert not list(tmp_path.glob("*/run")), "nothing was started"


def test_facts_name_everything_that_nodes_must_share_and_follow_vocabulary_tables_and_data(tiny_data, tmp_path):
    facts = training_facts(tiny_config(tiny_data), tmp_path)
    assert facts["train.optimizer.beta1"] == "0.8"
    assert facts["domains.1.name"] == "en"
    assert {"vocabulary", "routing tables", "prepared data", "mindspore", "numpy"} <= facts.keys()
    seed = training_facts(tiny_config(tiny_data, routing={"seed": 1}), tmp_path)
    assert differences(facts, seed) == {"routing.seed", "routing tables"}
    copy, short, other = (shutil.copytree(tiny_data, tmp_path / name) for name in ("copy", "short", "other"))
    os.truncate(short / "en" / "train.bin", 100)
    change_vocabulary(other)
    for folder, changed in ((copy, set()), (short, {"prepared data"}), (other, {"vocabulary", "prepared data"})):
        assert differences(facts, training_facts(tiny_config(folder), tmp_path)) == {"data.path"} | changed


def test_a_run_with_a_checkpoint_has_its_own_tables(tiny_run):
    """Tables of an extracted run cannot be drawn again if the file that its parent had them from is gone."""
    run = open_model(tiny_run, "run")
    routing = run.config.routing.model_copy(update={"table": "/gone.npz"})
    facts = training_facts(run.config.model_copy(update={"routing": routing}), tiny_run)
    assert facts["routing tables"] == run.table.hash[:16]


def differences(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "2", "--set", "parallel.data=2"], "--node-rank is missing"),
        (["--nodes", "2", "--node-rank", "0", "--set", "parallel.data=2"], "--master-address is missing"),
        (
            ["--nodes", "2", "--node-rank", "1", "--master-address", "", "--set", "parallel.data=2"],
            "--master-address is missing",
        ),
        (["--set", "parallel.expert=3"], "model.experts_per_domain (2) is not divisible by parallel.expert (3)"),
    ],
)
def test_wrong_launches_are_refused_by_the_command(file, capsys, options, message):
    assert main(["launch", str(file), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_says_that_it_neither_starts_over_nor_goes_back(file, caplog, tmp_path):
    command = ["launch", str(file), "--set", "parallel.data=2", "--output", str(tmp_path / "run"), "--dry-run"]
    for option in (["--start-over"], ["--from-step", "3"]):
        assert main([*command, *option]) == 0
        assert "--start-over, --from-step has no effect: the printed commands go on" in caplog.text
    caplog.clear()
    assert main(command) == 0
    assert not caplog.text


def test_a_dry_run_needs_neither_the_other_nodes_nor_prepared_data(file, capsys, tmp_path):
    sets = ["--set", "parallel.data=2", "--set", f"data.path={tmp_path / 'none'}"]
    assert main(["launch", str(file), "--nodes", "2", *sets, "--output", str(tmp_path / "run"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\nmsrun ") == 2
    assert f"-m pangu_sigma train {file} --output {tmp_path / 'run'} --set parallel.data=2 --set data.path=" in printed
    assert not (tmp_path / "run").exists()
