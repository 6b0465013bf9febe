"""One model in every form that is read: the same weights whatever keeps them, and nothing opened that is not asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import foreign_files
from helpers.dense_runs import write_dense_run

from experiments.tiny import tiny_config
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.convert.conversion import convert_model
from pangu_sigma.errors import LayoutError, UserError
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.sealed import DamagedFile
from pangu_sigma.stored.model import weight_shapes
from pangu_sigma.stored.open import kind_of, open_model

OURS = ["run", "checkpoint", "export", "hf"]


@pytest.fixture(scope="module")
def forms(tiny_run, tiny_export, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("forms")
    return {
        "run": tiny_run,
        "checkpoint": max((tiny_run / "checkpoints").glob("step_*")),
        "export": tiny_export,
        "hf": convert_model(tiny_run, folder / "hf", "hf"),
        "alpha": foreign_files.write_release(folder / "alpha", foreign_files.parent(), 2, 2),
    }


@pytest.mark.parametrize("kind", OURS)
def test_every_form_gives_the_same_weights_by_the_same_names_in_the_same_order(
    forms, tiny_run, tiny_data, kind, monkeypatch
):
    monkeypatch.chdir(
        tiny_data.parent
    )  # where a Hugging Face style folder, which has no absolute paths, finds the data
    run, model = open_model(tiny_run, "run"), open_model(forms[kind])
    assert (model.kind, model.layout, kind_of(forms[kind])) == (kind, kind, kind)
    assert model.config == run.config
    assert list(model.tensors) == list(weight_shapes(run.config))
    assert len(model.tensors) == len(weight_shapes(run.config))
    for name, tensor in run.tensors.items():
        found = model.tensors[name]
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        np.testing.assert_array_equal(found.read(), tensor.read(), name)
        np.testing.assert_array_equal(np.concatenate([v.ravel() for v in found.content()]), tensor.read().ravel())
    np.testing.assert_array_equal(model.expert(1, 5, "w2"), model.tensor("layers.2.ffn.experts.5.w2"))


@pytest.mark.parametrize("kind", ["run", "export", "hf"])
def test_every_form_with_a_tokenizer_answers_alike(forms, tiny_run, kind):
    run, model = open_model(tiny_run, "run"), open_model(forms[kind])
    assert (model.tokenizer.hash, model.table.hash) == (run.tokenizer.hash, run.table.hash)
    ids_T = np.flatnonzero(model.tokenizer.row_of[0] >= 0)[300:312]
    rows_T = model.tokenizer.row_of[0, ids_T]
    experts_NT = model.table.route(ids_T, np.zeros_like(ids_T), np.arange(len(ids_T)))
    answers = [
        ExactModel(each.config.model, each, each.config.model.activation).logits(rows_T, experts_NT, np.arange(640))
        for each in (model, run)
    ]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("kind", OURS)
def test_arrays_are_those_of_a_checkpoint_and_only_a_run_has_adams_state(forms, tiny_run, kind):
    run, model = open_model(tiny_run, "run"), open_model(forms[kind])
    for shard, name in (("dense", "embedding"), ("experts_layer_1", "w1"), ("experts_layer_0", "b2")):
        found, wanted = model.array(shard, name), run.array(shard, name)
        np.testing.assert_array_equal(found.read(), wanted.read())
        np.testing.assert_array_equal(found.row(3), wanted.row(3))
    for shard, name in (
        ("dense_optimizer", "embedding.moment"),
        ("experts_layer_0", "w1.variance"),
        ("loss_scale", "value"),
    ):
        assert (model.array(shard, name) is not None) == (kind in ("run", "checkpoint"))
    assert model.array("dense", "nothing") is None
    with pytest.raises(LayoutError, match=r"embedding is of shape .* the model needs shape \(1, 2\)"):
        model.required("dense", "embedding", (1, 2))


def test_files_of_others_give_what_they_were_written_of(forms):
    model = open_model(forms["alpha"])
    model.assume(foreign_files.HEADS, "erf")
    values = foreign_files.parent()
    assert (model.kind, model.layout) == ("alpha", "mindspore")
    assert (model.sizes.heads, model.sizes.activation, model.sizes.layers) == (
        *(foreign_files.HEADS, "erf"),
        foreign_files.LAYERS,
    )
    assert set(model.tensors) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(model.array("dense", name).read(), value, name)


@pytest.mark.parametrize("kind", ["run", "export", "hf"])
def test_what_is_not_asked_for_is_not_opened(forms, tmp_path, kind):
    copy = shutil.copytree(forms[kind], tmp_path / kind)
    whole = open_model(forms[kind])
    (copy / "tokenizer" / "english.model").write_bytes(b"damaged")
    model = open_model(copy)
    assert model.config == whole.config
    if kind != "hf":  # its table is one of its tensors, whose shapes follow from the tokenizer
        assert model.table.hash == whole.table.hash
    with pytest.raises(DamagedFile, match=r"english\.model"):
        _ = model.tokenizer
    shutil.copy(forms[kind] / "tokenizer" / "english.model", copy / "tokenizer")
    files = [*copy.rglob("model*.safetensors"), *copy.rglob("*.mindir"), *copy.rglob("step_00000030/experts*")]
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    model = open_model(copy)
    assert (model.config, model.tokenizer.hash, model.lineage) == (whole.config, whole.tokenizer.hash, None)
    if kind == "run":  # the checkpoint before it is whole
        assert model.step < whole.step
    else:
        with pytest.raises(DamagedFile, match=largest.name):
            model.tensor("embedding")
    assert list(open_model(copy, verified=False).tensors) == list(whole.tensors)


def test_each_kind_is_known_by_a_hash_of_all_that_it_holds(forms):
    found = {kind: open_model(forms[kind]).hash for kind in ("run", "export", "hf")}
    assert all(len(each) == 32 for each in found.values())
    assert len(set(found.values())) == 3
    assert found["run"] == open_model(forms["run"], verified=False).hash


def test_another_kind_than_is_wanted_is_refused_by_its_name(forms, tmp_path, tmp_path_factory):
    file = tmp_path_factory.mktemp("others") / "alpha.ckpt"
    file.touch()
    for path, wanted, message in (
        (forms["export"], ("run",), "is an exported model, not a run folder; name the run that it came from"),
        (forms["run"], ("export",), "is a run folder, not an exported model"),
        (forms["hf"], ("run", "export"), "is a Hugging Face style folder, not a run folder or an exported model"),
        (forms["checkpoint"], ("run",), "is the folder of a checkpoint, not a run folder; name the run that it is in"),
        (tmp_path, ("run",), r"is not a run folder: it has no configuration\.json; pass a folder that `train` wrote"),
        (
            file,
            ("run",),
            "is a PanGu-α in the files of others, not a run folder; `pangu-sigma inherit` makes a run of it",
        ),
        (tmp_path, ("export",), r"has no model\.mindir; pass a folder that `export` wrote"),
        (tmp_path / "nothing", ("export",), "is not an exported model: it is not there; check the path"),
        (forms["export"] / "model.mindir", ("export",), f"it is a file of one; name its folder, {forms['export']}"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_model(path, *wanted)
    with pytest.raises(UserError, match="is in no layout that is read: an empty folder"):
        open_model(tmp_path)


def test_a_run_that_lost_its_configuration_has_that_of_its_newest_checkpoint(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    (copy / "configuration.json").unlink()
    assert open_model(copy, "run").config == open_model(tiny_run, "run").config


def test_a_checkpoint_of_another_configuration_is_refused_when_its_weights_are_asked_for(tiny_run, tiny_data):
    model = open_model(tiny_run, "run")
    model.config = tiny_config(tiny_data, model={"ffn": 16})
    with pytest.raises(LayoutError, match=r"w1 is of shape \(6, 32, 24\) in shard experts_layer_0, the model needs"):
        model.tensor("layers.1.ffn.experts.0.w1")


DEEP = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from pangu_sigma.stored.open import open_model
for path in sys.argv[1:]:
    model = open_model(Path(path))
    tensors = [tensor.read() for tensor in model.tensors.values()]
    print(model.kind, len(tensors), sum(each.size for each in tensors), len(list(Path("/proc/self/fd").iterdir())))
"""


def deep_config(data: Path, layers: int) -> Config:
    return tiny_config(data, model={"hidden": 8, "ffn": 8, "dense_layers": layers // 2, "rre_layers": layers // 2})


@pytest.mark.parametrize("layers", [6, 32, 80])
def test_a_model_holds_a_descriptor_a_file_however_many_arrays_it_has(tiny_data, tmp_path, layers):
    config = deep_config(tiny_data, layers)
    run = write_dense_run(config, tmp_path / "run")
    paths = [run, max((run / "checkpoints").iterdir()), convert_model(run, tmp_path / "hf", "hf")]
    paths.append(foreign_files.write_megatron(tmp_path / "alpha", foreign_files.parent(layers=layers), 2))
    done = subprocess.run(
        [sys.executable, "-c", DEEP, *map(str, paths)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["run", "checkpoint", "hf", "alpha"]
    assert {tuple(line[1:3]) for line in lines[:3]} == {
        (str(len(weight_shapes(config))), str(config.num_params().total)),
    }
    assert max(int(line[3]) for line in lines) < 16 + layers
