from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from helpers.grown import saved_arrays

from experiments.tiny import tiny_config, tiny_tree
from pangu_sigma.checkpoint.model_files import write_config
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.generate.graph.exported import ExportedGraph
from pangu_sigma.inherit import child
from pangu_sigma.inherit.extract import extract_domains, extracted_config
from pangu_sigma.inherit.receipt import RowCount
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.loop import train

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_every_array_is_the_domains_part_of_the_parents_bit_for_bit(tiny_run, extracted):
    """zh is the first of three domains of two experts, and the first of two slots."""
    old, new = saved_arrays(tiny_run), saved_arrays(extracted)
    assert old.keys() == new.keys()
    for name, values in new.items():
        whole = old[name]
        if name.startswith("experts_layer_"):
            whole = whole[:2]
        elif " embedding" in name:
            whole = whole[:640]
        assert values.tobytes() == whole.tobytes(), name
    assert new["dense_optimizer step"] == 30, "Adam goes on warm"
    assert (new["experts_layer_0 step"] > 0).all()
    assert np.ptp(new["experts_layer_1 w1.variance"]) > 0
    whole, mine = open_model(tiny_run, "run").table, open_model(extracted, "run").table
    assert (mine.first_NDV == whole.first_NDV[:, :1]).all()


def test_the_domain_answers_as_before_bit_for_bit(extracted, tiny_run, tiny_data):
    receipt = json.loads((extracted / "lineage.json").read_text(encoding="utf-8"))
    assert receipt["kind"] == "extract"
    assert receipt["agreement"].keys() == {"zh"}
    assert receipt["agreement"]["zh"]["exact"] == 0.0
    assert receipt["domains"] == {"zh": "as it was", "en": "left away", "code": "left away"}
    assert receipt["parent_parameters"] == tiny_config(tiny_data).num_params().total
    assert sum(receipt["parameters"].values()) == open_model(extracted, "run").config.num_params().total
    assert "counted from 0" in receipt["notes"][0]


@pytest.mark.parametrize("kept", [["en"], ["code"], ["zh", "code"], ["en", "code"]])
def test_any_domains_answer_as_before_bit_for_bit(tiny_run, tmp_path, kept):
    receipt = extract_domains(tiny_run, tmp_path / "run", kept)
    assert {name: each.exact for name, each in receipt.agreement.items()} == dict.fromkeys(kept, 0.0)
    run = open_model(tmp_path / "run", "run")
    assert [each.name for each in run.config.domains] == kept
    assert run.tokenizer.slot_rows.shape == (run.config.slots, 640)
    dropped = [name for name in ("zh", "en", "code") if name not in kept]
    extract_domains(tiny_run, tmp_path / "again", dropped=dropped)
    one, other = saved_arrays(tmp_path / "run"), saved_arrays(tmp_path / "again")
    assert all(one[name].tobytes() == other[name].tobytes() for name in one), "--drop is the complement"


@pytest.mark.parametrize("kept", [["en"], ["zh", "code"]], ids=len)
def test_common_segments_are_taken_whole_and_own_ones_by_domain_bit_for_bit(segmented_run, tmp_path, kept):
    receipt = extract_domains(segmented_run, tmp_path / "run", kept)
    assert {name: each.exact for name, each in receipt.agreement.items()} == dict.fromkeys(kept, 0.0)
    rows = np.array([2 * ("zh", "en", "code").index(name) + i for name in kept for i in range(2)])
    old, new = saved_arrays(segmented_run), saved_arrays(tmp_path / "run")
    assert old.keys() == new.keys()
    for name, values in new.items():
        if name.startswith("experts_layer_"):
            own = int(name.split()[0].rpartition("_")[2]) % 4 < 2
            assert values.tobytes() == (old[name][rows] if own else old[name]).tobytes(), name
    whole, mine = (open_model(path, "run").table for path in (segmented_run, tmp_path / "run"))
    assert mine.first_NDV.tobytes() == whole.first_NDV[:, rows[::2] // 2].tobytes()
    assert mine.common_N.tolist() == [0, 0, 3, 3] * 2
    assert mine.common_spread_V.tobytes() == whole.common_spread_V.tobytes()
    assert any("common segments are copied whole" in note for note in receipt.notes)
    config = open_model(tmp_path / "run", "run").config
    assert sum(receipt.parameters.values()) == config.num_params().total
    assert receipt.parameters["experts copied"] == len(kept) * 4 * (2 * (2 * 24 * 8 + 8) + 24)


@pytest.mark.parametrize("kept", [["en"], ["zh", "code"]], ids=len)
def test_own_rows_leave_with_their_domains_and_common_ones_whole_bit_for_bit(rows_run, tmp_path, kept):
    receipt = extract_domains(rows_run, tmp_path / "run", kept)
    assert {name: each.exact for name, each in receipt.agreement.items()} == dict.fromkeys(kept, 0.0)
    old, new = saved_arrays(rows_run), saved_arrays(tmp_path / "run")
    assert old.keys() == new.keys()
    numbers, keys = [("zh", "en", "code").index(name) for name in kept], old["rows_2 keys"]
    mine = np.isin(keys // 700, numbers)
    assert 0 < mine.sum() < len(keys)
    for name, values in new.items():
        if name.startswith(("rows_0", "rows_1")):
            assert values.tobytes() == old[name].tobytes(), name
        elif name.startswith("rows_2") and not name.endswith("keys"):
            assert values.tobytes() == old[name][mine].tobytes(), name
    assert (new["rows_2 keys"] == keys[mine] % 700 + 700 * np.searchsorted(numbers, keys[mine] // 700)).all()
    whole, its = (open_model(path, "run").table for path in (rows_run, tmp_path / "run"))
    assert its.row_EV.tobytes() == whole.row_EV.tobytes()
    assert its.before_EV1.tobytes() == whole.before_EV1.tobytes()
    common = len(old["rows_0 keys"]) + len(old["rows_1 keys"])
    assert receipt.rows == {
        "common": RowCount(common, common, 32 * common),
        "own": RowCount(int(mine.sum()), len(keys), 32 * int(mine.sum())),
    }
    assert f"{mine.sum()} of {len(keys)} rows that were met, {32 * mine.sum():,} bytes of weights" in str(receipt)
    assert sum(receipt.parameters.values()) == open_model(tmp_path / "run", "run").config.num_params().total


def test_exports_answer_alike_bit_for_bit(tiny_run, tiny_export, tiny_graph, tmp_path):
    receipt = extract_domains(tiny_run, tmp_path / "run", ["zh"], export=True)
    assert not any("Adam" in note for note in receipt.notes), "an export has no optimizer"
    assert receipt.agreement["zh"].exact == 0.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    parent, child = open_model(tiny_export, "export"), open_model(tmp_path / "run", "export")
    logits, texts = [], []
    for export, graph in ((parent, tiny_graph), (child, ExportedGraph.load(child))):
        domain = domains_of(export.config).named("zh")
        texts.append(export.tokenizer.prompt("今天天气不错我们去公园看花", domain))
        logits.append(graph.read(domain, texts[-1])[0])
    assert texts[0] == texts[1]
    assert logits[0].tobytes() == logits[1].tobytes()
    assert json.loads((tmp_path / "run" / "lineage.json").read_text(encoding="utf-8"))["kind"] == "extract"


def test_it_trains_on_from_exactly_the_loss_that_the_parent_had(tiny_run, extracted, tmp_path):
    """Held-out loss of the new run at step 0 is that of the parent at its last step; then Adam goes on with its moments."""
    path = shutil.copytree(extracted, tmp_path / "run")
    config = open_model(path, "run").config
    train_config = config.train.model_copy(update={"steps": 1, "eval_interval": 1})
    trainer = train(config.model_copy(update={"train": train_config}), path)
    assert trainer.progress.step == 1
    first, last = evaluations(path)[0], evaluations(tiny_run)[-1]
    assert (first["step"], last["step"]) == (0, 30)
    for key in ("per_sample", "per_domain_loss", "unigram"):
        assert first[key]["zh"] == last[key]["zh"], key
    assert saved_arrays(path)["dense_optimizer step"] == 31


def evaluations(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "evaluation"]


def test_what_stands_in_the_way_is_refused_and_left_as_it_is(tiny_run, extracted, tiny_export, tmp_path):
    with pytest.raises(ConfigError, match="exists; choose another path with output"):
        extract_domains(tiny_run, extracted, ["zh"])
    with pytest.raises(ConfigError, match="exists; choose another path with output"):
        extract_domains(tiny_run, tiny_export, ["zh"], export=True)
    with pytest.raises(ConfigError, match="is not a run folder"):
        extract_domains(tmp_path, tmp_path / "run", ["zh"])
    with pytest.raises(ConfigError, match="is an exported model, not a run folder"):
        extract_domains(tiny_export, tmp_path / "run", ["zh"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_interrupted_leaves_nothing(tiny_run, tmp_path, monkeypatch):
    def interrupt(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "compare", interrupt)  # everything is written by then
    with pytest.raises(KeyboardInterrupt):
        extract_domains(tiny_run, tmp_path / "run", ["zh"])
    with pytest.raises(KeyboardInterrupt):
        extract_domains(tiny_run, tmp_path / "export", ["zh"], export=True)
    assert list(tmp_path.iterdir()) == []


def test_without_its_text_it_is_made_all_the_same_and_said(tiny_run, tiny_data, tmp_path, caplog):
    run, data = shutil.copytree(tiny_run, tmp_path / "moved"), tmp_path / "elsewhere"
    config = tmp_path / "moved" / "configuration.json"
    opened = open_model(run, "run").config
    changed = opened.model_copy(update={"data": opened.data.model_copy(update={"path": str(data)})})
    write_config(config.parent, changed, "run")
    receipt = extract_domains(run, tmp_path / "without", ["zh"])
    assert receipt.agreement["zh"].exact == 0.0
    assert "cannot be trained; to have it, name the text with data" in caplog.text
    assert open_model(tmp_path / "without", "run").data_hash is None
    extract_domains(run, tmp_path / "with", ["zh"], data=tiny_data)
    extracted = open_model(tmp_path / "with", "run")
    assert extracted.config.data.path == str(tiny_data)
    assert extracted.data_hash == load_manifest(tiny_data, ["zh"]).content_hash
    with pytest.raises(DataError, match="is not the prepared text of"):
        extract_domains(run, tmp_path / "other", ["zh"], data=tmp_path)


def test_keys_that_fewer_domains_do_not_allow_are_lowered_and_said(tiny_data, tmp_path, caplog):
    tree = tiny_tree(tiny_data)
    tree["ecss"] = {"store": "file", "path": "experts"}
    tree["parallel"] = {"data": 2}
    config = parse_config(tree)
    fewer = extracted_config(config, ["code"], tmp_path / "data")
    assert fewer.data.domains_per_step == 1
    assert fewer.data.path == str(tmp_path / "data")
    assert fewer.train.batch_size == config.train.batch_size
    assert fewer.parallel.ranks == 1 and "parallel.data: 2 → 1, because the run is of one process" in caplog.text
    assert fewer.ecss.path == str(Path("experts").absolute()), "stores share no file"
    assert "ecss.path" not in caplog.text
    assert "data.domains_per_step: 2 → 1, because the run has 1 of 3 domains" in caplog.text


def test_the_command_prints_the_receipt(tiny_run, tmp_path, capsys):
    options = ["--keep", "en"]
    assert main(["extract", str(tiny_run), *options, "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "domain zh             left away" in printed
    assert "largest |Δlogit| 0; 16 tokens" in printed
    assert main(["extract", str(tiny_run), *options, "--output", str(tmp_path / "two"), "--json", "-"]) == 0
    receipt = extract_domains(tiny_run, tmp_path / "three", ["en"])
    assert json.loads(capsys.readouterr().out) == asdict(receipt)
    assert main(["extract", str(tiny_run), *options, "--output", str(tmp_path / "run")]) == 2
