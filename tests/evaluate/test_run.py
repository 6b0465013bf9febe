"""A trained run is evaluated to the losses that its training measured at its end, and is left as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.tiny import STEPS

from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.run import evaluate_run, format_losses
from pangu_sigma.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("graph_mode")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_it_gives_the_losses_of_the_end_of_training_beside_those_of_counting(tiny_run, tiny_data):
    before = files_of(tiny_run)
    found = evaluate_run(tiny_run)
    (last,) = (line for line in read_metrics(tiny_run) if line["kind"] == "evaluation" and line["step"] == STEPS)
    assert {name: values["loss"] for name, values in found.items()} == last["per_domain_loss"]
    records = load_manifest(tiny_data).domains
    assert list(found) == ["zh", "en", "code"]
    for name, values in found.items():
        assert values.keys() == {"loss", "unigram"}
        assert values["unigram"] == records[name].unigram_entropy > 0
    assert files_of(tiny_run) == before


def test_a_run_whose_text_is_gone_says_how_to_get_it_back(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    data = RunFolder.open(run).config.data.path
    config = run / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(str(data), str(tmp_path / "gone")), encoding="utf-8")
    with pytest.raises(DataError, match=r"gone.*prepare-data"):
        evaluate_run(run)


def test_the_table_has_a_line_for_each_domain():
    text = format_losses({"zh": {"loss": 6.2694, "unigram": 7.2371}, "en": {"loss": 5.4, "unigram": 6.0}})
    assert text.splitlines() == [
        "domain           loss  unigram   held-out, nats per token",
        "zh              6.269    7.237",
        "en              5.400    6.000",
    ]
