"""What an earlier version wrote still loads and gives the same answers.

`first_format.tar.xz` holds a run of 20 steps and its export, written before the code moved into its present folders, and what both
answered then. PanGu-α's own model file is left out of it and comes from the package.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.state import load_trained
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import load_config
from pangu_sigma.data.sentencepieces import alpha_model
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.data.vocabulary import UNK
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.exported import open_export
from pangu_sigma.generate.graph.decoder import GraphDecoder
from pangu_sigma.generate.graph.predictor import Predictor
from pangu_sigma.generate.graph.rereading import RereadingDecoder
from pangu_sigma.generate.text import generate, open_engine

ARCHIVE = Path(__file__).parent / "checkpoint" / "written_before" / "first_format.tar.xz"

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first_format")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for kind in ("run", "export"):
        (folder / kind / "tokenizer" / "pangu_alpha.model").write_bytes(alpha_model())
    return folder


@pytest.mark.parametrize("kind", ["run", "export"])
def test_it_gives_the_tokens_and_logits_of_then(written, kind):
    then = json.loads((written / "answers.json").read_text(encoding="utf-8"))
    folder = written / kind
    predictor = Predictor.from_run(folder) if kind == "run" else Predictor.of_old_export(open_export(folder))
    prompts = [(domain, text) for domain, text in then["prompts"]]
    assert [answer.ids for answer in generate(Engine(RereadingDecoder(predictor)), prompts, 8)] == then[kind]
    for (name, text), logits_R in zip(prompts, then[f"{kind}_logits"], strict=True):
        domain = domains_of(predictor.config).named(name)
        found_BR = predictor.next_logits([predictor.tokenizer.prompt(text, domain)], [domain])
        np.testing.assert_allclose(found_BR[0, : len(logits_R)], logits_R, atol=1e-5)


def test_an_export_without_a_cache_answers_with_a_warning_and_is_no_graph_with_one(written, caplog):
    engine = open_engine(written / "export")
    assert isinstance(engine.decoder, RereadingDecoder)
    assert "was exported before there was a cache" in caplog.text
    with pytest.raises(ConfigError, match=r"has no cache; run `pangu-sigma export` on its run again"):
        GraphDecoder(written / "export")
    with pytest.raises(ConfigError, match="answers in float32 only, not int8; run `pangu-sigma export` again"):
        open_engine(written / "export", weights="int8")


@pytest.mark.parametrize("kind", ["run", "export"])
def test_its_tokenizer_is_still_the_one_it_was(written, kind, tmp_path):
    """No byte fallback: other ids would have no rows. What it does not know is <unk> or vanishes, as it was."""
    folder = written / kind / "tokenizer"
    tokenizer = Tokenizer.load(folder)
    said = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    assert (said["format"], tokenizer.byte_fallback, tokenizer.hash) == (1, False, said["hash"])
    tokenizer.save(tmp_path)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    zh = domains_of(load_config(written / kind / "config.yaml")).named("zh")
    ids = tokenizer.encode("今天\t🙂\u3000", zh)
    assert ids[-1] == UNK and "".join(tokenizer.vocabulary.pieces[i] for i in ids[:-1]).replace("▁", "") == "今天"


def test_every_array_of_its_checkpoint_is_read(written):
    network, store = load_trained(RunFolder.open(written / "run"))
    values = [*(p.asnumpy() for p in network.trainable_params()), *(w.asnumpy() for w in store.weights)]
    assert len(values) == 3 + 3 * 12 + 4 + 2 + 2 * 4
    assert all(np.isfinite(value).all() and np.abs(value).sum() > 0 for value in values)


@pytest.mark.parametrize("kind", ["run", "export"])
def test_one_warning_names_what_could_not_be_checked(written, tmp_path, kind, caplog):
    copy = shutil.copytree(written / kind, tmp_path / kind)
    for _ in range(2):
        RunFolder.open(copy) if kind == "run" else open_export(copy)
    warnings = [record.message for record in caplog.records if "files had hashes" in record.message]
    assert len(warnings) == 1
    assert f"{copy} was written before" in warnings[0]
    assert warnings[0].endswith("damage of its config.yaml, tokenizer/ and routing.npz could not be checked")
