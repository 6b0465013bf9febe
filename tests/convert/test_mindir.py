"""An exported model is a folder that stands alone: others run it, damage is found, and it answers like its run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.saved import save_checkpoint
from safetensors.numpy import load_file

import pangu_sigma as ps
from experiments.chaos.runs import opened_whole
from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import newest_checkpoint
from pangu_sigma.checkpoint.parts import SavedArray
from pangu_sigma.config import ConfigError
from pangu_sigma.convert import mindir as module
from pangu_sigma.convert.mindir import ExportError, export_mindir, verify_export
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import UserError
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.graph import cached
from pangu_sigma.generate.graph.exported import ExportedGraph
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.text import open_decoder
from pangu_sigma.sealed import SEAL, DamagedFile
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.metrics import read_metrics
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.start import start_run

pytestmark = pytest.mark.usefixtures("graph_mode")


def altered(run: Path, copy: Path) -> Path:
    """A run of the same tokenizer and tables whose weights are others."""
    shutil.copytree(run, copy)
    checkpoint = newest_checkpoint(copy / "checkpoints")
    dense = checkpoint.files["dense"]
    dense["embedding"] = SavedArray.whole(-dense["embedding"].values)
    step = checkpoint.step + 1
    save_checkpoint(copy / "checkpoints", step, checkpoint.files, checkpoint.state, checkpoint.identity, 1)
    return copy


def test_the_program_of_its_readme_runs_without_this_project_and_gives_the_tokens_of_the_run(
    tiny_run, tiny_export, tmp_path
):
    """Moved elsewhere, in a process that cannot import `pangu_sigma`."""
    elsewhere = shutil.copytree(tiny_export, tmp_path / "elsewhere")
    text = (elsewhere / "README.md").read_text(encoding="utf-8")
    program = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert "pangu" not in program.replace("pangu_sigma", "pangu") and len(program.splitlines()) <= 13
    refuse = "import sys; sys.modules['pangu_sigma'] = sys.modules['ascend_ops'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{refuse}exec(compile(open(0).read(), 'program', 'exec'))"],
        cwd=elsewhere,
        input=program,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    decoder = open_decoder(tiny_run)
    domain = domains_of(decoder.config)[0]
    ids = tuple(decoder.tokenizer.prompt(module.OPENINGS[domain.language], domain))
    (answer,) = Engine(decoder).complete([Request(domain, ids, 8, ignore_eot=True)])
    assert json.loads(done.stdout) == [token.id for token in answer.tokens]


def test_it_holds_what_it_needs_and_others_may_read_it(tiny_export):
    names = sorted(path.name for path in tiny_export.iterdir())
    assert names == [
        *(
            "README.md",
            "configuration.json",
            "model.mindir",
            "routing.npz",
            "seal.json",
            "tables.safetensors",
            "tokenizer",
        )
    ]
    assert (tiny_export / "model.mindir").stat().st_mode & 0o044
    assert [path.name for path in tiny_export.parent.iterdir()] == ["tiny"], "nothing half-written beside it"


def test_its_tables_route_and_spell_as_the_run_does(tiny_run, tiny_export):
    tables, run = load_file(tiny_export / "tables.safetensors"), open_model(tiny_run, "run")
    ids, domains = np.arange(run.tokenizer.size), domains_of(run.config)
    for domain in domains:
        np.testing.assert_array_equal(
            tables["tid2eid"][:, domain.index], run.table.route(ids, np.full_like(ids, domain.index), 0 * ids)
        )
        assert tables["slot_of_domain"][domain.index] == domain.slot
    assert (tables["tid2eid_spread"] == 1).all()
    np.testing.assert_array_equal(tables["row_of_id"], run.tokenizer.row_of)
    np.testing.assert_array_equal(tables["id_of_row"], run.tokenizer.slot_rows)


def test_verifying_tells_a_model_from_another(tiny_run, tiny_export, tmp_path):
    assert verify_export(open_model(tiny_run), tiny_export, 4) >= 3 * 4
    with pytest.raises(
        ExportError, match=r"greedy tokens of domain \w+ are .* the checkpoint's are .*nothing was written"
    ):
        verify_export(open_model(altered(tiny_run, tmp_path / "other")), tiny_export, 4)


@pytest.mark.parametrize("format", ["mindir", "hf"])
def test_export_over_another_models_export_is_refused(tiny_run, tiny_export, tmp_path, format):
    """Also over one of the same model, a file, or anything else: one rule for every format and every command."""
    other, file = tmp_path / "other", tmp_path / "file"
    shutil.copytree(tiny_export, other)
    file.write_text("of another model")
    for output in (other, file):
        with pytest.raises(UserError, match=rf"{output.name} exists; choose another path with output, or remove it"):
            ps.load(tiny_run).export(output, format=format)
    opened_whole(other, "export")
    assert file.read_text() == "of another model"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["other", file.name])


def test_a_failure_leaves_nothing_behind(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("mindspore.export", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_mindir(tiny_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_experts_is_exported_too_and_a_large_one_in_several_files(tiny_data, tmp_path, monkeypatch):
    """MindSpore writes values beside the graph when there is more than 1 GiB of them."""
    monkeypatch.setattr("mindspore.train.serialization.TOTAL_SAVE", 0)
    model = tiny_config(tiny_data).model.model_dump() | {"dense_layers": 2, "rre_layers": 0}
    trainer = Trainer(start_run(tmp_path / "run", tiny_config(tiny_data, model=model)))
    trainer.save()
    export_mindir(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "model.mindir").stat().st_size < (tmp_path / "out/model_variables/data_0").stat().st_size
    assert verify_export(open_model(tmp_path / "run"), tmp_path / "out", 2) >= 3 * 2
    run, export = (ps.load(tmp_path / name) for name in ("run", "out"))
    assert run.generate(["the cat", "今天"], ["en", "zh"], 2) == export.generate(["the cat", "今天"], ["en", "zh"], 2)


@pytest.mark.parametrize(
    "name", ["model.mindir", "configuration.json", "routing.npz", "seal.json", "tables.safetensors"]
)
def test_a_damaged_file_of_an_export_is_named_before_use(tiny_export, tmp_path, name):
    """Of any file flipped, cut, emptied or gone: tests/test_sealed.py."""
    copy = shutil.copytree(tiny_export, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"{name}: .*run `pangu-sigma export` again"):
        ExportedGraph.load(open_model(copy, "export")) if name == "model.mindir" else opened_whole(copy, "export")


def test_an_edited_readme_of_an_export_is_no_damage(tiny_export, tmp_path):
    copy = shutil.copytree(tiny_export, tmp_path / "copy")
    (copy / "README.md").write_text("my own words")
    assert open_model(copy, "export").facts["weights"] == "float32"


def test_the_signature_of_an_export_says_what_the_graph_takes_and_gives(tiny_export):
    found = json.loads((tiny_export / SEAL).read_text())
    assert (found["format"], found["weights"]) == (4, "float32")
    assert found["signature"]["inputs"][0] == {"name": "ids", "axes": "BC", "dtype": "int32"}
    names = [each["name"] for each in found["signature"]["inputs"]]
    assert names == ["ids", "lengths", "start", "lane", "domain", "wanted"]
    assert [each["name"] for each in found["signature"]["outputs"]] == ["logits", "token"]
    assert found["signature"]["fixed"] == {"R": 640}
    readme = (tiny_export / "README.md").read_text(encoding="utf-8")
    for name in (*names, "logits", "token", "zh", "en", "code"):
        assert f"`{name}`" in readme


def test_the_inputs_of_the_graph_have_these_names_and_nothing_has_long_ones(tiny_export):
    from mindspore.train.mind_ir_pb2 import ModelProto

    content = (tiny_export / "model.mindir").read_bytes()
    model = ModelProto.FromString(content)
    assert [each.name for each in model.graph.input] == ["ids", "lengths", "start", "lane", "domain", "wanted"]
    assert b"construct" not in content


@pytest.mark.parametrize("output", ["/proc/out", "{}/a/file/out"])
def test_an_output_that_cannot_be_is_refused_before_any_work(tiny_run, tmp_path, monkeypatch, output):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    monkeypatch.setattr(cached, "cached_graph", lambda *_: pytest.fail("it began to work"))
    with pytest.raises(ConfigError, match=r"cannot be written: .*; choose another folder"):
        export_mindir(tiny_run, Path(output.format(tmp_path)))


def logits_of(decoder, domain, ids) -> np.ndarray:
    decoder.begin(0, domain)
    return decoder.read([Chunk(0, ids, len(ids))])[0]


@pytest.mark.parametrize(
    "at_rest", ["float32", *(pytest.param(t, marks=pytest.mark.slow) for t in ("int8", "float16"))]
)
def test_a_graph_with_own_and_common_segments_computes_as_its_run(drawn_segmented_run, tmp_path, at_rest):
    """Against the decoder without MindSpore, and against sums of one accumulator over all segments (exact.py)."""
    folder = export_mindir(drawn_segmented_run, tmp_path / "out", at_rest)
    export, run = open_model(folder, "export"), open_model(drawn_segmented_run, "run")
    of_segment = [name for name in export.arrays if name.startswith("experts.3.") and not name.endswith(".scale")]
    assert sorted(of_segment) == ["experts.3.b1", "experts.3.w1", "experts.3.w2"], "only the first segment has b2"
    assert (export.arrays["experts.4.w1"].shape, export.arrays["experts.7.w1"].shape) == ((6, 8, 24), (3, 8, 24))
    graph, exact = ExportedGraph.load(export), ExactModel(run.config.model, export, run.config.model.activation)
    tables, every = load_file(folder / "tables.safetensors")["tid2eid"], np.arange(run.tokenizer.size)
    for domain in domains_of(run.config):
        routed_NV = run.table.route(every, np.full_like(every, domain.index), 0 * every)
        np.testing.assert_array_equal(tables[:, :, domain.index].reshape(routed_NV.shape), routed_NV)
        ids = run.tokenizer.prompt("the cat 今天", domain)
        experts_NT = run.table.route(np.array(ids), np.full(len(ids), domain.index), np.arange(len(ids)))
        first = domain.slot * run.config.model.slot_rows
        rows_T = first + run.tokenizer.row_of[domain.slot, ids]
        found, _ = graph.read(domain, ids)
        expected = exact.logits(rows_T, experts_NT, first + np.arange(run.config.model.slot_rows))
        is_used = np.isfinite(found)
        np.testing.assert_allclose(found[is_used], expected[is_used], rtol=0, atol=2e-4)


@pytest.fixture(scope="module", params=["float32", pytest.param("int8", marks=pytest.mark.slow)])
def rows_export(graph_mode, rows_run, tmp_path_factory, request) -> Path:
    return export_mindir(rows_run, tmp_path_factory.mktemp("rows") / "out", request.param)


def test_an_export_has_the_rows_of_its_run_in_float32(rows_run, rows_export):
    export, run = open_model(rows_export, "export"), open_model(rows_run, "run")
    for entry, configured in enumerate(run.config.model.rows):
        assert 0 < len(run.rows(entry)[0]) < run.config.stored_rows(configured)
        for found, expected in zip(export.rows(entry), run.rows(entry), strict=True):
            np.testing.assert_array_equal(found, expected)
    *_, trained = (line for line in read_metrics(rows_run) if line["kind"] == "evaluation")
    tolerance = 1e-5 if export.facts["weights"] == "float32" else 0.02
    assert ps.evaluate(rows_export)["zh"]["loss"] == pytest.approx(trained["per_domain_loss"]["zh"], rel=tolerance)


@pytest.mark.slow
def test_a_graph_with_rows_computes_as_its_run(rows_run, rows_export):
    """A lane that held another text is read on from the middle of a document."""
    assert verify_export(open_model(rows_run), rows_export, 4) >= 3 * 4
    run = open_model(rows_run, "run")
    assert '(".keys", ".values", ".ended", ".before")' in (rows_export / "README.md").read_text(encoding="utf-8")
    graph, decoder = ExportedGraph.load(open_model(rows_export, "export")), open_decoder(rows_export, 1)
    for domain in domains_of(run.config):
        ids, eot = run.tokenizer.prompt("the cat sees 今天天气", domain), run.tokenizer.eot
        text = [*ids[:2], eot, *ids, eot, *ids[:3]]
        found = np.concatenate([graph.read(domain, text[:6])[0], graph.read(domain, text[6:], 6)[0]])
        expected = logits_of(decoder, domain, text)
        some = np.isfinite(expected)
        np.testing.assert_allclose(found[some], expected[some], rtol=0, atol=2e-5)
