"""What files hold is told from their headers; values are read only to verify them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.dense_runs import write_dense_run
from helpers.foreign_files import WORDS, FakeTensor, in_huggingface, parent, torch_zip, write_huggingface

from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import DamagedCheckpoint
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.model_files import write_config
from pangu_sigma.cli import main
from pangu_sigma.convert.conversion import convert_model
from pangu_sigma.errors import DataError, LayoutError
from pangu_sigma.foreign.dense_model import DenseModel, tensor_shapes
from pangu_sigma.inspection.inspect_files import format_file_inspection, inspect_files
from pangu_sigma.sealed import add_to_seal, sealed, unsealed
from pangu_sigma.stored import alpha as module
from pangu_sigma.stored.open import open_model

STEP = "step_00000000"


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> Path:
    return write_dense_run(tiny_config(tiny_data), tmp_path_factory.mktemp("run") / "sparse")


@pytest.fixture(scope="module")
def forms(run, tmp_path_factory) -> dict[str, Path]:
    """One model as a run, a checkpoint and a folder."""
    folder = tmp_path_factory.mktemp("forms")
    return {
        "run": run,
        "checkpoint": run / "checkpoints" / STEP,
        "hf": convert_model(run, folder / "hf", "hf"),
    }


def test_segments_are_named_with_their_experts(drawn_segmented_run):
    found = inspect_files(drawn_segmented_run)
    assert found.roles["experts"]["parameters"] == found.config.num_params().experts
    assert "experts in the segments of an RRE layer: own 6, own 6, common 3, common 3" in format_file_inspection(found)


@pytest.mark.parametrize("kind", ["run", "checkpoint", "hf"])
def test_the_roles_add_up_to_the_configuration_whatever_holds_them(forms, kind):
    found, count = inspect_files(forms[kind]), open_model(forms["run"], "run").config.num_params()
    roles = {role: counts["parameters"] for role, counts in found.roles.items()}
    assert found.kind == kind
    assert roles["experts"] == count.experts
    assert roles["word tables"] + roles["positions"] == count.embeddings
    assert roles["attention"] + roles["LayerNorm"] + roles["dense FFN"] == count.dense
    assert found.roles["experts"]["types"] == ["float32"]
    assert found.roles["experts"]["bytes"] == 4 * count.experts
    assert f"parameters {count.total:,}" in " ".join(format_file_inspection(found).split())
    assert ("Adam state" in roles) == (kind in ("run", "checkpoint"))
    assert found.refusal is not None
    assert json.loads(json.dumps(found.as_dict()))["config"] == "tiny"


def test_a_run_and_its_folder_have_the_same_hashes_and_a_checkpoint_too(forms):
    run, checkpoint, folder = (inspect_files(forms[kind]).hashes for kind in ("run", "checkpoint", "hf"))
    assert run["tokenizer"] == checkpoint["tokenizer"] == folder["tokenizer"]
    assert run["routing table"] == checkpoint["routing table"] == folder["routing table"]
    assert checkpoint["data"] == folder["data"]


@pytest.mark.parametrize("kind", ["run", "checkpoint", "hf"])
def test_a_flipped_value_is_found_with_verification_and_only_then(forms, tmp_path, capsys, kind):
    copy = tmp_path / forms[kind].name
    shutil.copytree(forms[kind], copy)
    file = max(copy.rglob("*.safetensors"), key=lambda each: each.stat().st_size)
    assert inspect_files(copy, verify=True).verified != inspect_files(copy).verified
    content = bytearray(file.read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 5] ^= 1  # a value of the first array
    file.write_bytes(content)
    assert inspect_files(copy).roles == inspect_files(forms[kind]).roles
    (message,) = inspect_files(copy, verify=True).damaged
    assert file.name in message
    capsys.readouterr()
    assert main(["inspect", str(copy), "--verify", "--json", str(tmp_path / "found.json")]) == 1
    table = capsys.readouterr().out
    assert f"{copy}: {kind}\n  DAMAGED  " in table
    assert file.name in table
    assert "inherit" not in table
    assert json.loads((tmp_path / "found.json").read_text())["damaged"] == [message]


def test_a_damaged_checkpoint_is_told_also_where_an_older_one_is_whole(forms, tmp_path, capsys):
    copy = shutil.copytree(forms["run"], tmp_path / "run")
    assert inspect_files(copy, verify=True).damaged == []
    shutil.copytree(copy / "checkpoints" / STEP, copy / "checkpoints" / "step_00000004")
    newer = copy / "checkpoints" / "step_00000004"
    (newer / "state.json").write_bytes((newer / "state.json").read_bytes().replace(b'"step": 0', b'"step": 4'))
    add_to_seal(newer, "state.json")
    file = newer / "dense.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert main(["inspect", str(copy), "--verify"]) == 1
    head, damaged, *rows = capsys.readouterr().out.splitlines()
    assert head == f"{copy}: run, step 0"
    assert damaged.split()[:2] == ["DAMAGED", f"{file}:"]
    assert any("tokenizer, routing table, lineage, checkpoint" in row for row in rows)


def test_a_flipped_bit_in_any_file_of_a_run_is_damage(forms, tmp_path):
    copy = shutil.copytree(forms["run"], tmp_path / "run")
    (copy / "lineage.json").write_bytes(sealed({"kind": "inherit", "parent": "/alpha"}, record=True))
    assert inspect_files(copy, verify=True).damaged == []
    files = [file for file in copy.rglob("*") if file.is_file() and file.name != "LOCK"]
    assert len(files) > 8
    for file in files:
        content = file.read_bytes()
        at = len(content) // 2
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        (message,) = inspect_files(copy, verify=True).damaged
        assert file.name in message, file
        file.write_bytes(content)


def test_a_missing_record_of_the_origin_is_damage(forms, tmp_path):
    copy = shutil.copytree(forms["run"], tmp_path / "run")
    (copy / "lineage.json").write_bytes(sealed({"kind": "inherit", "parent": "/alpha"}, record=True))
    add_to_seal(copy, "lineage.json")
    assert inspect_files(copy, verify=True).damaged == []
    (copy / "lineage.json").unlink()
    (message,) = inspect_files(copy, verify=True).damaged
    assert message.startswith(f"{copy / 'lineage.json'}: No such file") and "make the model again" in message


def test_a_checkpoint_that_lacks_an_array_is_not_verified(forms, tmp_path):
    """Its hashes are right: a rank was missing when it was sealed."""
    copy = shutil.copytree(forms["checkpoint"], tmp_path / STEP)
    body = unsealed(copy / "seal.json", "")
    del body["files"]["experts_layer_1.safetensors"]
    (copy / "seal.json").write_bytes(sealed(body))
    (message,) = inspect_files(copy, verify=True).damaged
    assert "the checkpoint of step 0 lacks 13 of " in message
    assert "such as b1 of shard experts_layer_1" in message
    with pytest.raises(DamagedCheckpoint, match="of shard experts_layer_1"):
        inspect_files(copy)


def test_what_inherit_would_refuse_is_told_for_each_kind(forms, tiny_data, tmp_path):
    said = {kind: inspect_files(path).refusal or "" for kind, path in forms.items()}
    assert "model.rre_layers=2" in said["run"]
    assert "model.rre_layers=2" in said["hf"]
    assert "name the run folder" in said["checkpoint"]
    dense = write_dense_run(tiny_config(tiny_data, model={"dense_layers": 3, "rre_layers": 0}), tmp_path / "dense")
    assert inspect_files(dense).refusal is None
    assert inspect_files(convert_model(dense, tmp_path / "hf", "hf")).refusal is None
    assert "inherit" in format_file_inspection(inspect_files(dense)).splitlines()[-1]
    (tmp_path / "export").mkdir()
    write_config(tmp_path / "export", tiny_config(tiny_data), "export")
    (tmp_path / "export" / "model.mindir").touch()
    assert "inside of its graph" in (inspect_files(tmp_path / "export").refusal or "")


def test_a_foreign_model_says_its_sizes_and_what_it_does_not_say(tmp_path, monkeypatch):
    shapes = tensor_shapes(8, 32, 2, 4, 40_000)
    tensors = {name: LazyArray.zeros(shape, np.dtype(np.float16)) for name, shape in shapes.items()}
    model = DenseModel(
        *(tmp_path, "megatron", 8, 32, None, 2, 4, 40_000, "fast_gelu", False, tensors),
        kinds=dict.fromkeys(shapes, "float16"),
        unused={"rng_state": "random state"},
    )
    monkeypatch.setattr(module, "open_dense_model", lambda path, **_: model)
    found = inspect_files(tmp_path, verify=True)
    text = format_file_inspection(found)
    assert found.refusal is None
    assert found.roles["word tables"] == {"tensors": 1, "parameters": 320_000, "bytes": 640_000, "types": ["float16"]}
    for said in (
        "megatron",
        "an unknown number of heads",
        "assumed",
        "rng_state (random state)",
        "`inherit` needs heads",
        "no hashes",
    ):
        assert said in text
    other = DenseModel(*(tmp_path, "megatron", 8, 32, 2, 2, 4, 50_000, "erf", True, {}))
    monkeypatch.setattr(module, "open_dense_model", lambda path, **_: other)
    assert "has 50000 rows" in (inspect_files(tmp_path).refusal or "")


def test_inspect_of_a_bfloat16_file_says_bfloat16_and_its_bytes(tmp_path):
    short = {name: FakeTensor(v.astype(np.float16), "BFloat16") for name, v in in_huggingface(parent()).items()}
    folder = write_huggingface(tmp_path / "a", {}, "bin")
    (folder / "pytorch_model.bin").write_bytes(torch_zip(short))
    roles = inspect_files(folder).roles
    assert roles["word tables"] == {"tensors": 1, "parameters": 640, "bytes": 1_280, "types": ["bfloat16"]}


def test_inspect_of_an_untied_head_does_not_promise_that_inherit_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ALPHA_SIZE", WORDS)
    values = parent()
    for name, head in (("tied", values["embedding"]), ("untied", values["embedding"] + 1)):
        write_huggingface(tmp_path / name, {**in_huggingface(values), "lm_head.weight": head}, "safetensors")
    told = format_file_inspection(inspect_files(tmp_path / "untied"))
    assert told.endswith("takes it, as far as headers tell (verify: all values)")
    assert format_file_inspection(inspect_files(tmp_path / "tied", verify=True)).endswith("takes it")
    with pytest.raises(LayoutError, match=r"lm_head\.weight is not equal to transformer\.wte\.weight"):
        inspect_files(tmp_path / "untied", verify=True)


def test_the_command_takes_what_it_finds(forms, capsys):
    assert main(["inspect", str(forms["run"]), "--keep", "zh", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["step"], found["extract"]["domains"]) == ("run", 0, ["zh"])
    assert main(["inspect", str(forms["hf"])]) == 0
    assert "hf" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["routing.npz", "tokenizer/vocabulary.json"])
def test_a_hashed_file_that_cannot_be_read_is_damage(forms, tmp_path, name):
    copy = shutil.copytree(forms["run"], tmp_path / "run")
    (copy / name).write_bytes(b"no table")
    add_to_seal(copy, name)
    (message,) = inspect_files(copy, verify=True).damaged
    assert str(copy / name.partition("/")[0]) in message
    with pytest.raises(DataError):
        inspect_files(copy)
