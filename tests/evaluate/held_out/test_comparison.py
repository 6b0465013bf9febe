"""Differences between runs are those of the same tokens, with both of their errors, or they are refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.edited import edit_evaluations

from experiments.tiny import SAVED_AT
from pangu_sigma.checkpoint.model_files import write_config
from pangu_sigma.config import ConfigError
from pangu_sigma.evaluate.held_out import comparison
from pangu_sigma.evaluate.held_out.comparison import compare_logs, compare_runs, format_differences
from pangu_sigma.evaluate.held_out.run import evaluate_run
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.losses import HeldOutLoss, losses_of
from pangu_sigma.training.log.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def earlier(tiny_run, tmp_path_factory) -> Path:
    """The run at its first checkpoint."""
    copy = shutil.copytree(tiny_run, tmp_path_factory.mktemp("earlier") / "run")
    shutil.rmtree(copy / "checkpoints")
    name = f"step_{SAVED_AT:08d}"
    shutil.copytree(tiny_run / "checkpoints" / name, copy / "checkpoints" / name)
    return copy


@pytest.fixture(scope="module")
def compared(graph_mode, tiny_run, earlier) -> dict[str, Any]:
    return compare_runs([tiny_run], [earlier], all=True)


def test_both_are_evaluated_on_the_same_tokens_and_paired_by_sample(compared, tiny_run, earlier):
    (pair,) = compared["pairs"]
    assert (pair["run"], pair["against"]) == (str(tiny_run), str(earlier))
    alone = [evaluate_run(path, all=True) for path in (tiny_run, earlier)]
    for name, row in pair["domains"].items():
        difference = row.pop("difference")
        assert row.pop("against") == alone[1][name]
        assert row == alone[0][name]
        gap_U = np.subtract(*(found[name]["per_sample"]["nats"] for found in alone))
        tokens_U, bytes_U = (np.array(row["per_sample"][key]) for key in ("tokens", "bytes"))
        mean = gap_U.sum() / tokens_U.sum()
        assert mean < 0, "it learned"
        error = np.std(gap_U - mean * tokens_U, ddof=1) * math.sqrt(len(gap_U)) / tokens_U.sum()
        assert difference["nats_per_token"] == pytest.approx(mean, abs=1e-5)
        assert difference["se"] == pytest.approx(error, rel=1e-3)
        assert difference["bits_per_byte"] == pytest.approx(gap_U.sum() / math.log(2) / bytes_U.sum(), rel=1e-4)
        mean_of_one = compared["mean"][name]
        assert (mean_of_one["nats_per_token"], mean_of_one["se"]) == (difference["nats_per_token"], None)
        assert mean_of_one["se_of_text"] == pytest.approx(difference["se"])


def test_runs_of_other_batch_sizes_are_compared_in_graphs_of_one_shape(tiny_run, tmp_path):
    """The same weights, so each sample has the same loss bit for bit."""
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    config = open_model(tiny_run, "run").config
    train = config.train.model_copy(update={"batch_size": 6})
    write_config(copy, config.model_copy(update={"train": train}), "run")
    (pair,) = compare_runs([copy], [tiny_run])["pairs"]
    for name, row in pair["domains"].items():
        assert set(row["difference"].values()) == {0.0}, name


def test_over_pairs_the_mean_has_an_error_of_its_own(tiny_run, earlier, monkeypatch):
    """Three seeds: how far they lie apart, and beside it what other text would change in their mean."""
    rng, losses = np.random.default_rng(0), {}
    names = [f"{kind}_{seed}" for kind in ("sparse", "dense") for seed in (1, 2, 3)]
    hard_U = rng.normal(1_500, 200, 50)
    for name in names:
        nats_U = hard_U + rng.normal(-5.0 if name.startswith("sparse") else 0.0, 2.0, 50)
        losses[name] = {"zh": HeldOutLoss(nats_U, np.full(50, 256), np.full(50, 800), 7.0, "d")}
    monkeypatch.setattr(comparison, "open_model", lambda path, kind: SimpleNamespace(path=path, config=None))
    monkeypatch.setattr(comparison, "held_out_batches", lambda run, like: run)
    monkeypatch.setattr(comparison, "samples_read", lambda run, batches, all: 50)
    monkeypatch.setattr(comparison, "_check_same_text", lambda *arguments: None)
    monkeypatch.setattr(comparison, "measure", lambda run, batches, most: losses[str(run.path)])
    paths = [Path(name) for name in names]
    found = compare_runs(paths[:3], paths[3:])
    gaps_PU = np.array(
        [losses[a]["zh"].nats_U - losses[b]["zh"].nats_U for a, b in zip(names, names[3:], strict=False)]
    )
    means_P, mean = gaps_PU.mean(axis=1) / 256, found["mean"]["zh"]
    assert mean["pairs"] == 3
    assert mean["nats_per_token"] == pytest.approx(means_P.mean())
    assert mean["se"] == pytest.approx(np.std(means_P, ddof=1) / math.sqrt(3))
    assert mean["se_of_text"] == pytest.approx(np.std(gaps_PU.mean(axis=0) / 256, ddof=1) / math.sqrt(50))
    assert mean["bits_per_byte"] == pytest.approx(means_P.mean() * 256 / 800 / math.log(2))
    assert mean["bits_per_byte_se"] == pytest.approx(mean["se"] * 256 / 800 / math.log(2))
    lines = format_differences(found).splitlines()
    assert len(lines) == 1 + 3 + 2
    assert lines[4].split()[:7] == ["zh", "mean", "of", "3,", "±", "over", "pairs"]
    assert lines[4].split()[7:9] == [f"{mean['nats_per_token']:.4f}", f"{mean['se']:.4f}"]
    assert lines[5].split()[-2:] == [f"{mean['se_of_text']:.4f}", f"{mean['bits_per_byte_se_of_text']:.4f}"]
    assert len({len(line.rstrip()) for line in lines[1:4]}) == 1


def test_runs_with_other_held_out_text_or_another_tokenizer_are_refused(tiny_run, earlier):
    run, batches = open_model(tiny_run, "run"), comparison.held_out_batches(open_model(tiny_run, "run"))
    comparison._check_same_text(run, run, batches, batches, 8)

    def refuse(match: str, other: Any = run, theirs: Any = batches) -> None:
        with pytest.raises(ConfigError, match=f"cannot be compared token by token: {match}.*the same prepared data"):
            comparison._check_same_text(run, other, batches, theirs, 8)

    tokenizer = SimpleNamespace(hash="another")
    refuse("their tokenizers differ", SimpleNamespace(path="b", tokenizer=tokenizer, config=run.config))
    model = SimpleNamespace(seq_length=16)
    config = SimpleNamespace(model=model)
    refuse("model.seq_length is 32 and 16", SimpleNamespace(path="b", tokenizer=run.tokenizer, config=config))
    theirs = comparison.held_out_batches(run)
    theirs.samples.counts[1] -= 1
    refuse("the held-out text of en in .* differs", theirs=theirs)
    with pytest.raises(ConfigError, match="1 runs against 2; against takes as many as there are runs"):
        compare_runs([tiny_run], [tiny_run, earlier])


def test_a_loss_that_is_not_finite_is_said_and_its_differences_are_dashes():
    row = {"loss": None, "unigram": 7.0, "against": {"loss": 6.0}, "difference": dict.fromkeys(("a", "b", "c", "d"))}
    text = format_differences({"pairs": [{"run": "a", "against": "b", "domains": {"zh": row}}], "mean": {"zh": {}}})
    assert text.splitlines()[1].split() == ["zh", "a", "b", "not", "finite", "6.000", "–", "–", "–", "–", "7.000"]


def lose_more(line: dict) -> None:
    """Half a nat more a token in the samples with an even number, and 1.5 in the others."""
    for name, units in line["per_sample"].items():
        pairs = zip(units["nats"], units["tokens"], strict=True)
        units["nats"] = [nats + (0.5 + number % 2) * tokens for number, (nats, tokens) in enumerate(pairs)]
        line["per_domain_loss"][name] = sum(units["nats"]) / sum(units["tokens"])


def test_a_difference_is_paired_where_both_logs_have_the_samples(tiny_run, tmp_path):
    worse = edit_evaluations(tiny_run, tmp_path / "worse", lose_more)
    found, text = compare_logs(tiny_run, worse)
    for name, loss in losses_of([line for line in read_metrics(tiny_run) if line["kind"] == "evaluation"][-1]).items():
        gap_U = -(0.5 + np.arange(len(loss.tokens_U)) % 2)
        mean = np.average(gap_U, weights=loss.tokens_U)
        residuals_U = loss.tokens_U * (gap_U - mean)
        n, total = len(gap_U), loss.tokens_U.sum()
        assert found[name]["nats_per_token"] == pytest.approx(mean, abs=1e-5)
        assert found[name]["se"] == pytest.approx(math.sqrt(n / (n - 1) * (residuals_U**2).sum()) / total, rel=1e-3)
        assert found[name]["bits_per_byte"] == pytest.approx(mean * total / loss.bytes_U.sum() / math.log(2), rel=1e-4)
    for name in ("zh", "en", "code"):
        cells = next(line for line in text.splitlines() if line.startswith(name)).split()
        assert float(cells[5]) == pytest.approx(found[name]["nats_per_token"], abs=1e-4)
        assert float(cells[6]) == pytest.approx(found[name]["se"], abs=1e-4)
    assert "no difference" not in text


def test_a_difference_that_cannot_be_paired_says_what_measures_it(tiny_run, tmp_path):
    run = edit_evaluations(
        tiny_run, tmp_path / "run", lambda line: line.update(held_out=dict.fromkeys(line["held_out"], "0"))
    )
    found, text = compare_logs(tiny_run, run)
    assert found == {}, "no number"
    assert "no difference for zh, en, code: the logs have no losses of the same samples" in text
    assert f"pangu-sigma evaluate {tiny_run} --against {run} measures both" in text


def test_a_domain_that_one_run_lacks_is_what_is_said(tiny_run, tmp_path):
    def without_zh(line: dict) -> None:
        for values in line.values():
            if isinstance(values, dict):
                values.pop("zh", None)

    run = edit_evaluations(tiny_run, tmp_path / "run", without_zh)
    for one, other in ((tiny_run, run), (run, tiny_run)):
        found, text = compare_logs(one, other)
        assert found.keys() == {"en", "code"} and found["en"]["nats_per_token"] == 0.0
        assert text.splitlines()[-1].startswith("no difference for zh: ")


def test_a_logged_loss_that_is_not_finite_has_no_difference(tiny_run, tmp_path):
    def diverge(line: dict) -> None:
        line["per_sample"]["zh"]["nats"] = [None] * len(line["per_sample"]["zh"]["nats"])

    found, text = compare_logs(tiny_run, edit_evaluations(tiny_run, tmp_path / "run", diverge))
    assert (found["zh"]["nats_per_token"], found["en"]["nats_per_token"]) == (None, 0.0)
    zh = next(line for line in text.splitlines() if line.startswith("zh"))
    assert zh.split()[4:10] == ["not", "finite", *["–"] * 4]
