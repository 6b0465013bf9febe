"""What a release wrote is read by the code as it is: prepared data, a run, an export and a Hugging Face style folder."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from reference.measure import losses as logged
from stored.releases.write import PIECES, STEPS, losses

import pangu_sigma as ps
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.graph.decoder import GraphDecoder
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.sentencepieces import alpha_model

ARCHIVES = sorted((Path(__file__).parent / "releases").glob("*.tar.xz"))

pytestmark = pytest.mark.usefixtures("graph_mode", "unpacked")


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"), scope="module")
def release(request, tmp_path_factory) -> Path:
    """The folder of what a release wrote."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    for tokenizer in folder.glob("*/tokenizer"):
        (tokenizer / PIECES).write_bytes(alpha_model())
    return folder


@pytest.fixture
def unpacked(release, monkeypatch) -> None:
    monkeypatch.chdir(release)


@pytest.mark.parametrize("model", ["run", "export", "hf"])
def test_losses_are_those_of_then(model):
    assert losses(model) == pytest.approx(json.loads(Path("losses.json").read_text()), rel=1e-5)


def test_the_graph_answers_as_the_run_does():
    graph, run = Engine(GraphDecoder.of(open_model(Path("export"), "export"))), ps.load("run")
    for domain in run.domains:
        ids = run.ids("x", domain.name)
        np.testing.assert_allclose(graph.logits(domain, ids, 1)[0], run.logits(ids, domain.name), atol=2e-5)


def test_a_run_goes_on_and_is_exported(tmp_path):
    shutil.copytree("run", tmp_path / "run")
    more = {"data.path": "prepared", "train.steps": STEPS + 2, "train.eval_interval": STEPS + 2}
    trained = ps.train(ps.load_config("run/config.yaml", more), tmp_path / "run")
    assert all(after < before for *_, before, after in logged(tmp_path / "run").values())
    trained.export(tmp_path / "again", format="hf")


def test_a_folder_of_huggingface_s_form_comes_back_as_the_run(tmp_path):
    ps.load("hf").export(tmp_path / "back", format="run")
    one, other = open_model(Path("run"), "run"), open_model(tmp_path / "back", "run")
    for name in ("embedding", "layers.2.attention.output.weight"):
        np.testing.assert_array_equal(one.tensor(name), other.tensor(name))
