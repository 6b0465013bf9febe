"""A trained run is evaluated to the losses that its training measured at its end, and is left as it was."""

from __future__ import annotations

import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.edited import edit_config
from helpers.prepared import change_vocabulary

from experiments.tiny import STEPS
from pangu_sigma.config import ConfigError
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.text import open_decoder
from pangu_sigma.held_out.compare import compare_runs
from pangu_sigma.held_out.losses import FIGURES, format_losses
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("graph_mode")


def held_out_ids(tiny_data: Path, name: str, length: int) -> np.ndarray:
    """The tokens of all samples, and the one that the last of them predicts."""
    file = PreparedData(tiny_data).tokens(name, "held_out", 1 << 31)
    return file.read(0, (file.tokens - 1) // length * length + 1)


def test_it_gives_the_losses_of_the_end_of_training_with_all_that_was_logged(run_losses, tiny_run):
    (last,) = (line for line in read_metrics(tiny_run) if line["kind"] == "evaluation" and line["step"] == STEPS)
    assert {name: values["loss"] for name, values in run_losses.items()} == last["per_domain_loss"]
    assert list(run_losses) == ["zh", "en", "code"]
    for name, values in run_losses.items():
        assert values.keys() == {"loss", "perplexity", *FIGURES}
        assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
        assert all(values[key] == last[key][name] for key in FIGURES)
        assert values["samples"] == 8, "train.eval_batches · train.batch_size"


def test_all_counts_every_held_out_token_once_and_unigram_and_bytes_are_of_those(all_losses, tiny_run, tiny_data):
    run = open_model(tiny_run, "run")
    frequencies_DV, length = PreparedData(tiny_data).frequencies(), run.config.model.seq_length
    for domain in domains_of(run.config):
        ids, found = held_out_ids(tiny_data, domain.name, length), all_losses[domain.name]
        predicted = ids[1:][ids[:-1] != run.tokenizer.eot]  # what follows the end of a document is not predicted
        assert found["samples"] == len(ids) // length > 8
        assert found["tokens"] == len(predicted) == sum(found["per_sample"]["tokens"])
        rows = run.tokenizer.slot_rows[domain.slot]
        smoothed = frequencies_DV[domain.index] + 0.5
        expected = -np.log(smoothed[predicted] / smoothed[rows[rows >= 0]].sum()).mean()
        assert found["unigram"] == pytest.approx(expected, rel=1e-6)
        assert found["bytes"] == len(run.tokenizer.decode(predicted).encode()) == sum(found["per_sample"]["bytes"])
        nats = found["loss"] * found["tokens"]
        assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"])


def test_the_loss_of_a_sample_is_that_of_its_documents(all_losses, tiny_run, tiny_data):
    """Against the model that answers: each document of a sample is scored alone. Every row of the slot of zh is in use:
    the answering model knows that other rows cannot be drawn, and the loss does not."""
    decoder, run = open_decoder(tiny_run), open_model(tiny_run, "run")
    length, domain = run.config.model.seq_length, domains_of(run.config).named("zh")
    ids = held_out_ids(tiny_data, "zh", length)
    for number in (0, 3):
        sample, nats = ids[number * length : (number + 1) * length + 1], 0.0
        ends = [-1, *np.flatnonzero(sample[:-1] == run.tokenizer.eot).tolist(), length]
        for start, end in pairwise(ends):
            document = sample[start + 1 : end + 1].tolist()
            decoder.begin(0, domain)
            chunks = [Chunk(0, document[:-1], len(document) - 1)] if len(document) > 1 else []
            logits_SR = [logits_R for each in decoder.read(chunks) for logits_R in each.astype(float)]
            for logits_R, token in zip(logits_SR, document[1:], strict=True):
                nats += np.log(np.exp(logits_R).sum()) - logits_R[run.tokenizer.row_of[domain.slot, token]]
        assert all_losses["zh"]["per_sample"]["nats"][number] == pytest.approx(nats, rel=1e-4)


def test_a_run_whose_text_is_gone_says_how_to_get_it_back(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    data = open_model(run, "run").config.data.path
    edit_config(run, {str(data): str(tmp_path / "gone")})
    with pytest.raises(
        DataError, match=r"gone is not there; run prepare-data first, or, if it was moved, set data\.path$"
    ):
        evaluate_run(run)


def test_text_that_was_prepared_again_with_another_vocabulary_is_refused(all_losses, moved_run, tiny_run, tmp_path):
    """Two tokens have each other's row: every number would be another one, and nothing else would show it."""
    run, data = shutil.copytree(moved_run[0], tmp_path / "run"), shutil.copytree(moved_run[1], tmp_path / "data")
    edit_config(run, {str(moved_run[1]): str(data)})
    change_vocabulary(data)
    for refused in (lambda: evaluate_run(run), lambda: compare_runs([tiny_run], [run])):
        with pytest.raises(
            ConfigError, match=r"data was prepared with another vocabulary than .*run has.*prepare-data"
        ):
            refused()


def test_the_table_has_a_line_for_each_domain():
    sizes = {"tokens": 16_384, "samples": 64}
    text = format_losses(
        {
            "zh": {"loss": 6.2694, "se": 0.0213, "unigram": 7.2371, "bits_per_byte": 1.8124, "perplexity": 528.16}
            | sizes,
            "en": {"loss": None, "se": None, "unigram": 6.0, "bits_per_byte": None, "perplexity": None} | sizes,
        }
    )
    assert text.splitlines() == [
        "domain        loss      ±  perplexity  unigram  bits/byte  tokens  samples   held-out, nats per token",
        "zh           6.269  0.021      528.16    7.237      1.812  16,384       64",
        "en      not finite      –           –    6.000          –  16,384       64",
    ]
