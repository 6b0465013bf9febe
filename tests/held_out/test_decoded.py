"""The held-out loss of an export, and of a folder, is that of its run."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.convert.conversion import convert_model
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.held_out.decoded import measure_decoded
from pangu_sigma.held_out.run import evaluate_run, held_out_batches
from pangu_sigma.stored.open import open_model

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_where_every_row_has_a_token_it_is_the_loss_of_the_run(tiny_run, tiny_graph):
    """Samples hold several documents. In the slot of zh every row is in use; in that of en some are not, and there an export loses
    less: it knows that they cannot be drawn."""
    run, expected = open_model(tiny_run, "run"), evaluate_run(tiny_run)
    found = measure_decoded(Engine(tiny_graph), held_out_batches(run), 8)
    for domain in domains_of(run.config):
        mine, of_run = found[domain.name].figures(), expected[domain.name]
        assert [mine[key] for key in ("tokens", "bytes", "samples", "held_out")] == [
            of_run[key] for key in ("tokens", "bytes", "samples", "held_out")
        ]
        assert mine["unigram"] == pytest.approx(of_run["unigram"], rel=1e-6)
        full = (run.tokenizer.slot_rows[domain.slot] >= 0).all()
        assert mine["loss"] == pytest.approx(of_run["loss"], rel=1e-5) if full else mine["loss"] < of_run["loss"]
        assert np.isfinite(mine["loss"])


@pytest.mark.parametrize("kind", ["hf", "export"])
def test_so_it_is_for_folders_whose_graph_nobody_runs(tiny_run, tiny_export, tiny_data, tmp_path, monkeypatch, kind):
    """A graph may name a shared library (a Custom operator of kind aot), which MindSpore loads from the working folder."""
    monkeypatch.setattr("mindspore.load", lambda *_: pytest.fail("the graph is run"))
    run = evaluate_run(tiny_run)
    monkeypatch.chdir(tiny_data.parent)  # a folder for other machines has no path of this one
    found = evaluate_run(tiny_export if kind == "export" else convert_model(tiny_run, tmp_path / "hf", "hf"))
    assert [each["tokens"] for each in found.values()] == [each["tokens"] for each in run.values()]
    assert found["zh"]["loss"] == pytest.approx(run["zh"]["loss"], rel=1e-5)
    assert found["en"]["loss"] < run["en"]["loss"], "rows without a token cannot be drawn"
