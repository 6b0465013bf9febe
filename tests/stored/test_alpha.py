"""PanGu-α's files in the layouts of others answer, are served and measured as they are, without a corpus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import foreign_files as foreign
from helpers.benchmark_files import json_lines
from helpers.served import client_of

import pangu_sigma as ps
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import LayoutError
from pangu_sigma.evaluate.benchmarks import BenchmarkRequest, run_benchmarks
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.generate.text import generate, open_decoder, open_engine
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.stored.alpha import PUBLISHED_HEADS
from pangu_sigma.stored.open import open_model

WORDS, LENGTH = 40_000, 64


def huggingface(folder: Path, values: dict[str, np.ndarray]) -> Path:
    foreign.write_huggingface(folder, foreign.in_huggingface(values), "safetensors")
    (folder / "config.json").write_text(json.dumps(foreign.huggingface_config(vocab_size=WORDS)))
    return folder


LAYOUTS: dict[str, Callable[[Path, dict[str, np.ndarray]], Path]] = {
    "megatron": lambda folder, values: foreign.write_megatron(folder, values, 2),
    "mindspore": lambda folder, values: foreign.write_release(folder, values, 2, 2),
    "huggingface": huggingface,
}


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "LENGTH", LENGTH)
        return {name: value * np.float32(0.2) for name, value in foreign.parent(words=WORDS).items()}


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """The writers' sizes, and the heads of this small model, as if it had been published."""
    monkeypatch.setattr(foreign, "WORDS", WORDS)
    monkeypatch.setattr(foreign, "LENGTH", LENGTH)
    monkeypatch.setitem(PUBLISHED_HEADS, foreign.HIDDEN, foreign.HEADS)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    (folder / "ocnli").mkdir()
    rows = [{"sentence1": "今天天气", "sentence2": "不错", "label": label} for label in ("neutral", "entailment")]
    (folder / "ocnli" / "dev.json").write_text(json_lines(*rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_every_layout_answer_are_served_and_measured(layout, values, task, tmp_path):
    path = LAYOUTS[layout](tmp_path / "alpha", values)
    model = open_model(path)
    assert (model.kind, model.layout) == ("alpha", layout)
    engine = open_engine(path, lanes=2)
    (domain,) = domains_of(engine.decoder.config)
    ids = engine.decoder.tokenizer.prompt("今天天气不错", domain)
    exact = ExactModel(model.config.model, model, model.sizes.activation)
    wanted_TR = exact.logits(np.array(ids), np.empty((0, len(ids)), np.int32), np.arange(WORDS))
    np.testing.assert_allclose(engine.logits(domain, ids)[-1], wanted_TR[-1], rtol=1e-3, atol=1e-3)
    targets = np.array([*ids[1:], engine.decoder.tokenizer.eot])
    nats = np.log(np.exp(wanted_TR).sum(axis=1)) - wanted_TR[np.arange(len(ids)), targets]
    assert ps.load(path).evaluate("今天天气不错", "zh")["zh"]["loss"] == pytest.approx(nats.mean(), abs=1e-3)
    (answer,) = generate(engine, [("zh", "今天天气不错")], 5)
    assert answer.ids[: len(ids)] == ids and len(answer.ids) == len(ids) + 5
    with client_of(open_decoder(path, 2)) as client:
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["sigma-zh"]
        body = {"model": "sigma-zh", "prompt": "今天天气不错", "max_tokens": 5, "temperature": 0}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == answer.text
        body |= {"structured_outputs": {"choice": ["好", "不好"]}}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] in ("好", "不好")
    result = run_benchmarks(path, BenchmarkRequest(("ocnli",), str(task)))["ocnli"]
    assert result["n"] == 2


def test_the_commands_take_them(values, tmp_path, capsys):
    path = huggingface(tmp_path / "alpha", values)
    assert main(["generate", str(path), "--domain", "zh", "--prompt", "今天", "--max-new-tokens", "2"]) == 0
    (tmp_path / "any.jsonl").write_text(json.dumps({"text": "今天天气不错，我们去公园。"}) + "\n")
    assert main(["evaluate", str(path), "--input", str(tmp_path / "any.jsonl"), "--domain", "zh"]) == 0
    assert "nats per token" in capsys.readouterr().out
    assert main(["evaluate", str(path)]) != 0
    assert f"pangu-sigma evaluate {path} --input FILE" in capsys.readouterr().err


def test_an_activation_that_nothing_states_is_told(values, tmp_path, caplog):
    assert not open_model(foreign.write_release(tmp_path / "alpha", values, 1, 1)).activation_known
    open_decoder(tmp_path / "alpha", 1)
    assert "does not state its activation; tanh is assumed" in caplog.text


def test_what_is_refused_names_the_command(values, forms_of_no_use, tmp_path, monkeypatch):
    for path, reason in forms_of_no_use.items():
        with pytest.raises(ConfigError, match=reason):
            open_engine(path)
    with pytest.raises(ConfigError, match=r"pangu-sigma evaluate .* --input FILE --domain zh` measures it"):
        evaluate_run(huggingface(tmp_path / "alpha", values))
    path = foreign.write_release(tmp_path / "heads", values, 1, 1)
    monkeypatch.delitem(PUBLISHED_HEADS, foreign.HIDDEN)
    with pytest.raises(LayoutError, match=r"pangu-sigma inherit .* CONFIG --heads N"):
        open_engine(path)


@pytest.fixture
def forms_of_no_use(tiny_run, tmp_path) -> dict[Path, str]:
    """Paths that answer nothing, and what is said."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "some.txt").write_text("text")
    (tmp_path / "c.yaml").write_text("name: c")
    return {
        max((tiny_run / "checkpoints").glob("step_*")): "name the run that it is in",
        tmp_path / "empty": "it has no configuration.json .* pass a folder that `train` or `export`",
        tmp_path / "some.txt": "pass a folder that `train`",
        tmp_path / "c.yaml": r"`pangu-sigma train .*c\.yaml` makes a run of it",
        tmp_path / "none": "it is not there; check the path",
    }


def test_another_vocabulary_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "WORDS", 48)
    path = foreign.write_release(tmp_path / "alpha", foreign.parent(words=48), 1, 1)
    with pytest.raises(LayoutError, match="its word table has 48 rows, PanGu-α's vocabulary has 40000"):
        open_engine(path)


def test_the_hash_tells_files_apart(values, tmp_path):
    path = huggingface(tmp_path / "alpha", values)
    before = open_model(path).hash
    assert open_model(path).hash == before
    (path / "config.json").write_text((path / "config.json").read_text() + "\n")
    assert open_model(path).hash != before
