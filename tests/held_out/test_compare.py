"""Differences between runs are those of the same tokens, with both of their errors, or they are refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.tiny import SAVED_AT
from pangu_sigma.checkpoint.model_files import write_config
from pangu_sigma.config import ConfigError
from pangu_sigma.held_out import compare
from pangu_sigma.held_out.compare import compare_runs, format_differences
from pangu_sigma.held_out.losses import HeldOutLoss
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.stored.open import open_model

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


def test_both_are_evaluated_on_the_same_tokens_and_paired_by_sample(compared, all_losses, tiny_run, earlier):
    (pair,) = compared["pairs"]
    assert (pair["run"], pair["against"]) == (str(tiny_run), str(earlier))
    alone = [all_losses, evaluate_run(earlier, all=True)]
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
    monkeypatch.setattr(compare, "open_model", lambda path, kind: SimpleNamespace(path=path, config=None))
    monkeypatch.setattr(compare, "held_out_batches", lambda run, like: run)
    monkeypatch.setattr(compare, "samples_of_evaluation", lambda config, all: 50)
    monkeypatch.setattr(compare, "left_out", lambda *arguments: {})
    monkeypatch.setattr(compare, "measure", lambda run, batches, most: losses[str(run.path)])
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


def test_domains_without_the_same_tokens_are_left_out_with_the_reason_and_runs_without_any_are_refused(
    tiny_run, earlier
):
    run, batches = open_model(tiny_run, "run"), compare.held_out_batches(open_model(tiny_run, "run"))

    def apart(other: Any = run, **changed: Any) -> dict[str, str]:
        """What is left out if batches of the other run have these attributes."""
        theirs = compare.held_out_batches(run)
        vars(theirs).update(changed)
        return compare.left_out([run, other], [batches, theirs], 8)

    assert apart() == {}
    counts = [count - (number == 1) for number, count in enumerate(batches.samples.counts)]
    fewer = SimpleNamespace(counts=counts, read=batches.samples.read)
    differs = f"its held-out text in {run.config.data.path} and {run.config.data.path} differs"
    assert apart(samples=fewer) == {"en": differs}
    assert apart(domains=list(batches.domains)[:2]) == {"code": f"{tiny_run} has no such domain"}

    def refuse(why: str, **other: Any) -> None:
        vocabulary = SimpleNamespace(pieces=[f"another {piece}" for piece in run.tokenizer.vocabulary.pieces])
        theirs = SimpleNamespace(path="b", **{"tokenizer": run.tokenizer, "config": run.config} | other)
        refused = f"{tiny_run}, b cannot be compared token by token: zh, en, code: {why}.*the same prepared data"
        with pytest.raises(ConfigError, match=refused):
            apart(theirs, tokenizer=SimpleNamespace(vocabulary=vocabulary))

    refuse("their tokenizers differ", tokenizer=SimpleNamespace(hash="another"))
    shorter = SimpleNamespace(model=SimpleNamespace(seq_length=16), data=run.config.data)
    refuse("model.seq_length is 32 and 16", config=shorter)
    refuse(differs)
    with pytest.raises(ConfigError, match="1 runs against 2; against takes as many as runs"):
        compare_runs([tiny_run], [tiny_run, earlier])


def test_a_loss_that_is_not_finite_is_said_and_its_differences_are_dashes():
    row = {"loss": None, "unigram": 7.0, "against": {"loss": 6.0}, "difference": dict.fromkeys(("a", "b", "c", "d"))}
    pairs = [{"run": "a", "against": "b", "domains": {"zh": row}}]
    why = {"en": "b has no such domain", "law": "b has no such domain", "code": "their tokenizers differ"}
    text = format_differences({"pairs": pairs, "mean": {"zh": {}}, "left_out": why}).splitlines()
    assert text[1].split() == ["zh", "a", "b", "not", "finite", "6.000", "–", "–", "–", "–", "7.000"]
    assert text[2:] == ["not compared: en, law: b has no such domain", "not compared: code: their tokenizers differ"]
