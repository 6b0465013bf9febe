from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import tiny_config

from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.model_files import seal_model_files, write_config
from pangu_sigma.checkpoint.parts import SavedArray
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.save import save_checkpoint
from pangu_sigma.config import ConfigError
from pangu_sigma.convert import mindir as module
from pangu_sigma.convert.mindir import ExportError, export_mindir, verify_export
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.graphs import signature
from pangu_sigma.generate.predictor import Predictor
from pangu_sigma.generate.rereading import RereadingDecoder
from pangu_sigma.generate.text import generate
from pangu_sigma.sealed import SEAL, DamagedFile
from pangu_sigma.train.loop import Trainer

pytestmark = pytest.mark.usefixtures("graph_mode")

PROMPTS = [("en", "the cat "), ("zh", "今天天气"), ("code", ""), ("code", "return x")]


def altered(run: Path, copy: Path) -> Path:
    """A run of the same tokenizer and tables whose weights are others."""
    shutil.copytree(run, copy)
    checkpoint = load_checkpoint(copy / "checkpoints")
    dense = checkpoint.files["dense"]
    dense["embedding"] = SavedArray.whole(-dense["embedding"].values)
    step = checkpoint.step + 1
    save_checkpoint(copy / "checkpoints", step, checkpoint.files, checkpoint.state, checkpoint.identity, 1)
    return copy


def test_the_folder_alone_answers_like_the_run(tiny_run, tiny_export, tmp_path, monkeypatch):
    """Moved elsewhere, with run and data out of reach."""
    expected = Predictor.from_run(tiny_run)
    elsewhere = shutil.copytree(tiny_export, tmp_path / "elsewhere" / "model")
    monkeypatch.chdir(tmp_path)
    config = RunFolder.open(tiny_run).config
    assert config.data.path in (elsewhere / "config.yaml").read_text(encoding="utf-8")
    nowhere = config.data.model_copy(update={"path": "no-such-folder"})
    write_config(elsewhere, config.model_copy(update={"data": nowhere}), "export")
    files = [str(file.relative_to(elsewhere)) for file in elsewhere.rglob("*") if file.name != SEAL and file.is_file()]
    seal_model_files(elsewhere, {"signature": signature(config)}, files)
    reloaded = Predictor.from_export(elsewhere)
    answers, those_of_the_run = (
        generate(Engine(RereadingDecoder(model)), PROMPTS, 8) for model in (reloaded, expected)
    )
    assert answers == those_of_the_run
    domains = [domains_of(reloaded.config).named(name) for name, _ in PROMPTS]
    sequences = [answer.ids for answer in answers]
    one, other = (model.next_logits(sequences, domains) for model in (reloaded, expected))
    used = np.isfinite(one)
    assert (used == np.isfinite(other)).all()
    np.testing.assert_allclose(one[used], other[used], rtol=0, atol=1e-5)


def test_it_holds_what_it_needs_and_others_may_read_it(tiny_export):
    names = sorted(path.name for path in tiny_export.iterdir())
    assert names == ["config.yaml", "model.mindir", "routing.npz", "seal.json", "tokenizer"]
    assert (tiny_export / "model.mindir").stat().st_mode & 0o044
    assert [path.name for path in tiny_export.parent.iterdir()] == ["tiny"], "nothing half-written beside it"


def test_verifying_tells_a_model_from_another(tiny_run, tiny_export, tmp_path):
    assert verify_export(tiny_run, tiny_export, 4) >= 3 * 4
    with pytest.raises(ExportError, match=r"greedy tokens of domain \w+ are .* the checkpoint's are .*do not use"):
        verify_export(altered(tiny_run, tmp_path / "other"), tiny_export, 4)


def test_exporting_again_replaces_and_strangers_are_left_alone(tiny_run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    with pytest.raises(ConfigError, match="exists and is not an exported model; choose another folder"):
        export_mindir(tiny_run, tmp_path / "mine")
    old = tmp_path / "old"
    old.mkdir()
    (old / "model.mindir").write_text("of an earlier version")
    (old / "stale").write_text("x")
    assert export_mindir(tiny_run, old) == old
    assert not (old / "stale").exists()
    assert (old / "model.mindir").stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "old"]


def test_a_failure_leaves_nothing_behind(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module.ms, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_mindir(tiny_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_experts_is_exported_too(tiny_data, tmp_path):
    model = tiny_config(tiny_data).model.model_dump() | {"dense_layers": 2, "rre_layers": 0}
    trainer = Trainer(tiny_config(tiny_data, model=model), tmp_path / "run")
    trainer.save()
    export_mindir(tmp_path / "run", tmp_path / "out")
    assert verify_export(tmp_path / "run", tmp_path / "out", 2) >= 3 * 2


@pytest.fixture
def copied(tiny_export, tmp_path) -> Path:
    return shutil.copytree(tiny_export, tmp_path / "copy")


def flipped(file: Path, at: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize("number", range(14))
def test_each_flipped_bit_of_an_exported_graph_is_found_before_use(copied, number):
    file, rng = copied / "model.mindir", np.random.default_rng(number)
    flipped(file, int(rng.integers(file.stat().st_size)), int(rng.integers(8)))
    with pytest.raises(DamagedFile, match=r"model\.mindir: xxh3_128 is .* damaged, run `pangu-sigma export` again"):
        Predictor.open(copied)


@pytest.mark.parametrize("name", ["config.yaml", "routing.npz", "seal.json", "tokenizer/english.model"])
@pytest.mark.parametrize("fault", ["flipped first", "flipped last", "cut", "empty", "gone"])
def test_each_damaged_file_of_an_export_is_named_before_use(copied, name, fault):
    file = copied / name
    if fault.startswith("flipped"):
        flipped(file, 0 if fault == "flipped first" else file.stat().st_size - 1, 0)
    elif fault == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if fault == "cut" else 0])
    with pytest.raises(DamagedFile, match=rf"{name}: .*run `pangu-sigma export` again"):
        Predictor.from_export(copied)


def test_the_signature_of_an_export_says_what_the_graph_takes_and_gives(tiny_export):
    found = json.loads((tiny_export / SEAL).read_text())
    assert found["format"] == 2
    assert found["signature"]["inputs"][0] == {"name": "rows", "axes": "BS", "dtype": "int32"}
    assert [each["name"] for each in found["signature"]["inputs"]] == [
        *("rows", "positions", "documents", "slots", "last", "active", "order", "inverse")
    ]
    assert found["signature"]["outputs"] == [{"name": "logits", "axes": "BR", "dtype": "float32"}]
    assert found["signature"]["fixed"] == {"N": 2, "R": 640}


@pytest.mark.parametrize("output", ["/proc/out", "{}/a/file/out"])
def test_an_output_that_cannot_be_is_refused_before_any_work(tiny_run, tmp_path, monkeypatch, output):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    monkeypatch.setattr(module, "inference_graph", lambda _: pytest.fail("it began to work"))
    with pytest.raises(ExportError, match=r"cannot be written: .*; choose another --output"):
        export_mindir(tiny_run, Path(output.format(tmp_path)))
