from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import tiny_config

from pangu_sigma.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from pangu_sigma.checkpoint.parts import SavedArray
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.config import ConfigError
from pangu_sigma.convert.mindir import ExportError, export_mindir, verify_export
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.predictor import Predictor
from pangu_sigma.generate.text import generate
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
    file = elsewhere / "config.yaml"
    text, data = file.read_text(encoding="utf-8"), RunFolder.open(tiny_run).config.data.path
    assert data in text
    file.write_text(text.replace(data, "no-such-folder"), encoding="utf-8")
    reloaded = Predictor.from_export(elsewhere)
    answers = generate(reloaded, PROMPTS, 8)
    assert answers == generate(expected, PROMPTS, 8)
    domains = [domains_of(reloaded.config).named(name) for name, _ in PROMPTS]
    sequences = [answer.ids for answer in answers]
    one, other = (model.next_logits(sequences, domains) for model in (reloaded, expected))
    used = np.isfinite(one)
    assert (used == np.isfinite(other)).all()
    np.testing.assert_allclose(one[used], other[used], rtol=0, atol=1e-5)


def test_it_holds_what_it_needs_and_others_may_read_it(tiny_export):
    names = sorted(path.name for path in tiny_export.iterdir())
    assert names == ["config.yaml", "model.mindir", "routing.npz", "tokenizer"]
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
    monkeypatch.setattr("pangu_sigma.convert.mindir.ms.export", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_mindir(tiny_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_experts_is_exported_too(tiny_data, tmp_path):
    model = tiny_config(tiny_data).model.model_dump() | {"dense_layers": 2, "rre_layers": 0}
    trainer = Trainer(tiny_config(tiny_data, model=model), tmp_path / "run")
    trainer.save()
    export_mindir(tmp_path / "run", tmp_path / "out")
    assert verify_export(tmp_path / "run", tmp_path / "out", 2) >= 3 * 2
