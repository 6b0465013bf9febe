"""Matrices that are kept in fewer bits: near the weights, and the graph computes with just them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pangu_sigma.convert.mindir import export_mindir
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.graph.exported import ExportedGraph
from pangu_sigma.generate.graph.weights_at_rest import rows_in_int8
from pangu_sigma.generate.text import open_decoder
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_int8_rows_are_half_a_step_away_at_most_and_zeros_stay():
    values = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    values[1, 2] = 0
    kept, scale = rows_in_int8(values)
    assert (kept.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (3, 5))
    assert (np.abs(kept * scale[..., None] - values) <= 0.5001 * scale[..., None]).all()
    assert (np.abs(kept).max(axis=-1) == np.where(np.abs(values).max(axis=-1) > 0, 127, 0)).all()


@pytest.mark.parametrize(
    ("at_rest", "nearest"), [pytest.param("float16", 1e-3, marks=pytest.mark.slow), ("int8", 2e-2)]
)
def test_the_graph_computes_with_the_weights_that_its_file_has(tiny_run, tmp_path, at_rest, nearest):
    """Against the decoder that reads them without MindSpore; and they are near those of the run, so is the loss."""
    folder = export_mindir(tiny_run, tmp_path / "out", at_rest)
    run, weights = open_model(tiny_run, "run"), open_model(folder, "export")
    for name in ("embedding", "layers.1.attention.key.weight", "layers.0.ffn.w2"):
        assert weights.arrays[name].dtype == at_rest
        assert 0 < np.abs(weights.tensor(name) - run.tensor(name)).max() < nearest * np.abs(run.tensor(name)).max()
    assert weights.arrays["experts.1.w1"].dtype == at_rest
    assert 0 < np.abs(weights.expert(1, 3, "w1") - run.expert(1, 3, "w1")).max() < nearest
    graph, host = ExportedGraph.load(open_model(folder, "export")), open_decoder(folder, 1)
    for domain in domains_of(run.config):
        ids = run.tokenizer.prompt("the cat 今天 x", domain)
        found, _ = graph.read(domain, ids)
        np.testing.assert_allclose(found[np.isfinite(found)], _logits(host, domain, ids), rtol=0, atol=2e-5)
    *_, trained = (line for line in read_metrics(tiny_run) if line["kind"] == "evaluation")
    of_export = evaluate_run(folder)["zh"]
    assert of_export["samples"] == trained["samples"]["zh"]
    assert of_export["loss"] == pytest.approx(trained["per_domain_loss"]["zh"], abs=5e-3)

    _answers_from_the_kept(folder, tiny_run, weights, at_rest)


def _answers_from_the_kept(folder, run, weights, at_rest) -> None:
    """An export has the bits of its run with such weights, and in memory what its file has and no more."""
    kept, rounded = open_decoder(folder, 1), open_decoder(run, 1, at_rest)
    for domain in domains_of(kept.config):
        ids = kept.tokenizer.prompt("the cat 今天 x", domain)
        np.testing.assert_array_equal(_logits(kept, domain, ids), _logits(rounded, domain, ids))
    wide = open_decoder(folder, 1, "float32")
    of_kept, of_rounded, of_wide = (each.resident_bytes - each.cache_bytes for each in (kept, rounded, wide))
    inside = re.compile(r"(plan|words|lanes)\.|.*\.attention\.(keys|values)$")  # tables and caches of the graph
    assert (
        of_kept == of_rounded == sum(weights.arrays[name].nbytes for name in weights.arrays if not inside.match(name))
    )
    assert of_kept < {"float16": 0.6, "int8": 0.4}[at_rest] * of_wide
    assert np.abs(_logits(kept, domain, ids) - _logits(wide, domain, ids)).max() < 2e-5


def _logits(decoder, domain, ids) -> np.ndarray:
    decoder.begin(0, domain)
    found = decoder.read([Chunk(0, ids, len(ids))])[0]
    return found[np.isfinite(found)]
