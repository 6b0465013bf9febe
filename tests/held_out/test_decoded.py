"""The held-out loss of an export, and of a folder, is that of its run."""

from __future__ import annotations

import pytest

from pangu_sigma.convert.conversion import convert_model
from pangu_sigma.held_out.run import evaluate_run

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.mark.parametrize("kind", ["hf", "export"])
def test_it_is_the_loss_of_the_run_and_nobody_runs_the_graph(
    run_losses, tiny_run, tiny_export, tiny_data, tmp_path, monkeypatch, kind
):
    """A graph may name a shared library (a Custom operator of kind aot), which MindSpore loads from the working folder.

    In the slot of zh every row is in use; in that of en some are not, and there the loss is less: they cannot be drawn."""
    monkeypatch.setattr("mindspore.load", lambda *_: pytest.fail("the graph is run"))
    monkeypatch.chdir(tiny_data.parent)  # a folder for other machines has no path of this one
    losses = evaluate_run(tiny_export if kind == "export" else convert_model(tiny_run, tmp_path / "hf", "hf"))
    for name, expected in run_losses.items():
        keys = ("tokens", "bytes", "samples", "held_out")
        assert [losses[name][key] for key in keys] == [expected[key] for key in keys]
        assert losses[name]["unigram"] == pytest.approx(expected["unigram"], rel=1e-6)
    assert losses["zh"]["loss"] == pytest.approx(run_losses["zh"]["loss"], rel=1e-5)
    assert 0 < losses["en"]["loss"] < run_losses["en"]["loss"]
