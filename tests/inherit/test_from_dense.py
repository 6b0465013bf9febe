from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from helpers.tiny import tiny_config, tiny_tree

from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.state import load_trained
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.inherit.from_dense import inherit, parent_ids, parent_slot
from pangu_sigma.train.loop import train

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def parent(tiny_data, tmp_path_factory):
    """A dense run of three layers that has learned a little."""
    path = tmp_path_factory.mktemp("parent") / "dense"
    dense = {"dense_layers": 3, "rre_layers": 0}
    train(tiny_config(tiny_data, model=dense, train={"steps": 4, "eval_interval": 4, "checkpoint_interval": 4}), path)
    return path


@pytest.fixture(scope="module")
def child(parent, tiny_data, tmp_path_factory):
    """Folder and receipt of the sparse run that inherits it."""
    path = tmp_path_factory.mktemp("child") / "sparse"
    receipt = inherit(parent, tiny_config(tiny_data), path)
    return SimpleNamespace(path=path, receipt=receipt, config=tiny_config(tiny_data))


def arrays(path) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    network, store = load_trained(RunFolder.open(path))
    return {n: p.asnumpy() for n, p in network.parameters_and_names()}, [w.asnumpy() for w in store.weights]


def test_every_tensor_of_the_child_is_its_parents_bit_for_bit(parent, child):
    (old, _), (new, experts) = arrays(parent), arrays(child.path)
    used = RunFolder.open(child.path).tokenizer.slot_rows.ravel() >= 0
    for name, value in new.items():
        rows = used if name == "embedding" else slice(None)  # rows without a token are nobody's
        assert (value[rows] == old[name][rows]).all(), name
    assert len(experts) == 2 * 4
    for i, value in enumerate(experts):
        name = f"layers.{1 + i // 4}.ffn.{('w1', 'b1', 'w2', 'b2')[i % 4]}"
        assert value.shape[0] == 6
        assert (value == old[name]).all(), "each of the six experts is the parent's FFN"
    assert any(np.ptp(value) > 0 for value in experts), "and the comparison is not of zeros"


def test_the_child_answers_as_its_parent(child):
    assert set(child.receipt.logit_difference) == {"zh", "en", "code"}
    assert max(child.receipt.logit_difference.values()) < 1e-5


def test_the_receipt_accounts_for_every_parameter_and_is_kept(parent, child):
    receipt, count = child.receipt, child.config.num_params()
    new = sum(s.new for s in receipt.slots)
    unused = 2 * child.config.model.slot_rows - sum(s.rows for s in receipt.slots)
    hidden = child.config.model.hidden
    assert receipt.copied + (new + unused) * hidden == count.dense + count.embeddings
    assert receipt.replicated * receipt.copies == count.experts
    assert new == 0, "parent and child have one vocabulary"
    kept = json.loads((child.path / "lineage.json").read_text(encoding="utf-8"))
    assert kept["parent"] == str(parent)
    assert kept["parent_step"] == 4
    assert kept["logit_difference"] == receipt.logit_difference


def test_training_goes_on_from_step_0_of_the_child(child, tmp_path):
    path = shutil.copytree(child.path, tmp_path / "run")
    config = child.config.model_copy(
        update={"train": child.config.train.model_copy(update={"steps": 2, "eval_interval": 2})}
    )
    trainer = train(config, path)
    assert trainer.progress.step == 2
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["kind"] == "evaluation"
    assert lines[1]["step"] == 0


def test_what_cannot_be_inherited_is_refused_by_key_and_leaves_nothing(parent, child, tiny_data, tmp_path):
    cases = (
        ({"hidden": 12}, r"model\.hidden is 12, the parent's is 24"),
        ({"dense_layers": 2}, r"dense_layers \+ rre_layers is 4, the parent's is 3"),
        ({"heads": 4}, r"model\.heads is 4"),
    )
    for model, message in cases:
        with pytest.raises(ConfigError, match=message):
            inherit(parent, tiny_config(tiny_data, model=model), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"rre_layers=2; only a dense run"):
        inherit(child.path, child.config, tmp_path / "run")
    tree = tiny_tree(tiny_data)
    tree["domains"][0]["slot"] = "law"
    with pytest.raises(ConfigError, match=r"slot 'law' has no parent: the parent's slots are zh, en"):
        inherit(parent, parse_config(tree), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="exists; choose another folder"):
        inherit(parent, child.config, child.path)


def test_the_command_prints_the_receipt_of_the_same_run(parent, child, tiny_data, tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_tree(tiny_data), allow_unicode=True), encoding="utf-8")
    options = ["--config", str(config), "--run", str(tmp_path / "run")]
    assert main(["inherit", str(parent), *options, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == asdict(child.receipt)
    for (name, mine), its in zip(arrays(child.path)[0].items(), arrays(tmp_path / "run")[0].values(), strict=True):
        assert (mine == its).all(), name
    assert main(["inherit", str(parent), *options]) == 2
    assert "exists; choose another folder with --run" in capsys.readouterr().err


def test_a_slot_comes_from_the_parents_of_that_name_or_from_its_only_one():
    assert parent_slot("en", ["zh", "en"]) == 1
    assert parent_slot("law", ["zh"]) == 0
    with pytest.raises(ConfigError, match=r"slot 'law' has no parent: the parent's slots are zh, en"):
        parent_slot("law", ["zh", "en"])


def test_english_pieces_are_matched_by_what_they_stand_for():
    shared = [b""] * 40_260
    parent = SimpleNamespace(surfaces=[*shared, b"the", b"cat"])
    child = SimpleNamespace(surfaces=[*shared, b"cat", b"dog", b"the"])
    ids = parent_ids(parent, child)
    assert ids[:40_260].tolist() == list(range(40_260))
    assert ids[40_260:].tolist() == [40_261, -1, 40_260]
