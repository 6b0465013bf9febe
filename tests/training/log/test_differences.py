"""Two runs differ by the first minus the second, by sample, or there is no number but a reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.edited import edit_config, edit_evaluations

from experiments.tiny import STEPS
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log import differences
from pangu_sigma.training.log.differences import evaluation_of, loss_differences
from pangu_sigma.training.log.losses import losses_of
from pangu_sigma.training.log.metrics import read_metrics
from pangu_sigma.training.log.summary import format_comparison, summarise


def lose_more(line: dict) -> None:
    """Half a nat more a token in the samples with an even number, and 1.5 in the others."""
    for name, units in line["per_sample"].items():
        pairs = zip(units["nats"], units["tokens"], strict=True)
        units["nats"] = [nats + (0.5 + number % 2) * tokens for number, (nats, tokens) in enumerate(pairs)]
        line["per_domain_loss"][name] = sum(units["nats"]) / sum(units["tokens"])


def test_a_difference_is_paired_where_both_logs_have_the_samples(tiny_run, tmp_path):
    worse = edit_evaluations(tiny_run, tmp_path / "worse", lose_more)
    found = loss_differences(tiny_run, worse)
    for name, loss in losses_of([line for line in read_metrics(tiny_run) if line["kind"] == "evaluation"][-1]).items():
        gap_U = -(0.5 + np.arange(len(loss.tokens_U)) % 2)
        mean = np.average(gap_U, weights=loss.tokens_U)
        residuals_U = loss.tokens_U * (gap_U - mean)
        n, total = len(gap_U), loss.tokens_U.sum()
        assert found[name]["nats_per_token"] == pytest.approx(mean, abs=1e-5)
        assert found[name]["se"] == pytest.approx(math.sqrt(n / (n - 1) * (residuals_U**2).sum()) / total, rel=1e-3)
        assert found[name]["bits_per_byte"] == pytest.approx(mean * total / loss.bytes_U.sum() / math.log(2), rel=1e-4)
        assert "none" not in found[name]
    text = format_comparison(summarise(tiny_run), summarise(worse) | {"differences": found})
    for name in ("zh", "en", "code"):
        cells = next(line for line in text.splitlines() if line.startswith(name)).split()
        assert float(cells[3]) == pytest.approx(found[name]["nats_per_token"], abs=1e-3)
        assert float(cells[4]) == pytest.approx(found[name]["se"], abs=1e-3)
    assert "no difference" not in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({'"eval_batches": 2': '"eval_batches": 3'}, "train.eval_batches · train.batch_size is 8 and 12 samples"),
        ({'"seq_length": 32': '"seq_length": 16'}, "model.seq_length is 32 and 16, so the samples are not the same"),
        ({'"name": "tiny"': '"name": "other"'}, "the held-out text differs"),
    ],
    ids=str,
)
def test_a_difference_that_cannot_be_paired_says_why(tiny_run, tmp_path, changes, reason):
    def other_text(line: dict) -> None:
        line["held_out"] = dict.fromkeys(line["held_out"], "0")

    run = edit_evaluations(tiny_run, tmp_path / "run", other_text)
    edit_config(run, changes)
    found = loss_differences(tiny_run, run)
    for values in found.values():
        assert [*values] == ["none"], "no number"
        assert reason in values["none"]
    text = format_comparison(summarise(tiny_run), summarise(run) | {"differences": found})
    assert f"no difference for zh, en, code: {found['zh']['none']}" in text


def test_two_tokenizers_have_no_difference(tiny_run, tmp_path, monkeypatch):
    run = edit_evaluations(
        tiny_run, tmp_path / "run", lambda line: line.update(held_out=dict.fromkeys(line["held_out"], "0"))
    )
    monkeypatch.setattr(differences, "why_incomparable", lambda run, other: "their tokenizers differ")
    found = loss_differences(tiny_run, run)
    assert found.keys() == {"zh", "en", "code"}
    assert {values["none"] for values in found.values()} == {"their tokenizers differ, so the samples are not the same"}


def test_a_domain_that_one_run_lacks_is_what_is_said(tiny_run, tmp_path):
    def without_zh(line: dict) -> None:
        for values in line.values():
            if isinstance(values, dict):
                values.pop("zh", None)

    run = edit_evaluations(tiny_run, tmp_path / "run", without_zh)
    for one, other in ((tiny_run, run), (run, tiny_run)):
        found = loss_differences(one, other)
        assert found["zh"] == {"none": f"{run} has no held-out loss of it"}
        assert found["en"]["nats_per_token"] == 0.0
    text = format_comparison(summarise(run), summarise(tiny_run) | {"differences": found})
    assert text.splitlines()[-1] == f"no difference for zh: {run} has no held-out loss of it"


def test_the_difference_is_of_the_checkpoints_that_are_there(tiny_run, tmp_path):
    """A tuned run keeps its best checkpoint, after which the log goes on."""
    lines = [{"kind": "evaluation", "step": step} for step in (0, 2, STEPS, STEPS + 5)]
    run = open_model(tiny_run, "run")
    assert evaluation_of(run, lines)["step"] == STEPS
    assert evaluation_of(run, lines[:2])["step"] == 2
    assert evaluation_of(run, [{"kind": "step", "step": STEPS}]) is None
