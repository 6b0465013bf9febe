"""Held-out loss of a trained run, an exported model or a Hugging Face style folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.data.held_out import samples_of_evaluation
from pangu_sigma.data.prepared import encodes, read_prepared_tokenizer
from pangu_sigma.device import use_cpu
from pangu_sigma.foreign.dense_files import is_dense_model
from pangu_sigma.results import aligned
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import KIND_NAMES, kind_of, open_model
from pangu_sigma.training.log.losses import HeldOutLoss, finite_or_none, format_number

DomainFigures = dict[str, dict[str, Any]]
"""Held-out metrics by domain, as values for JSON."""


def evaluate_run(path: Path, all: bool = False) -> DomainFigures:
    """Measure the held-out losses of a run, an exported model or a Hugging Face style folder. Returns `HeldOutLoss.figures` and
    perplexity by domain.

    all: True to read all held-out samples, False for those that training evaluates. Raises ConfigError or DataError.
    """
    if kind_of(path) == "alpha" and is_dense_model(path):
        raise ConfigError(
            f"{path} is {KIND_NAMES['alpha']}, without held-out text; `pangu-sigma evaluate {path} --input FILE --domain zh` "
            "measures it on any other text, `pangu-sigma benchmark` on tasks"
        )
    model = open_model(path, "run", "export", "hf")
    batches = held_out_batches(model)
    from pangu_sigma.evaluate.held_out.decoded import measure_decoded

    measure_kind = measure if model.kind == "run" else measure_decoded
    losses = measure_kind(model, batches, samples_read(model, batches, all))
    return {name: figures_with_perplexity(loss) for name, loss in losses.items()}


def figures_with_perplexity(loss: HeldOutLoss) -> dict[str, Any]:
    """Return `HeldOutLoss.figures` with the perplexity, exp(nats per token); None if it is not finite."""
    nats = loss.nats_per_token.mean
    return loss.figures() | {"perplexity": finite_or_none(math.exp(nats)) if nats < 700 else None}


def held_out_batches(run: StoredModel, like: Config | None = None) -> BatchLoader:
    """Open the held-out batches of a model for one process. like: configuration whose shape of batches they have; None: its own.

    Raises DataError if the prepared text is missing, ConfigError if it was prepared again with another vocabulary.
    """
    folder = Path(run.config.data.path)
    prepared = read_prepared_tokenizer(run.config)
    if not encodes(run.tokenizer, prepared):
        raise ConfigError(
            f"data.path={folder} was prepared with another vocabulary than {run.path} has (hash {prepared.hash[:12]}…, "
            f"not {run.tokenizer.hash[:12]}…): its token ids mean other text; put back the data that the run was trained on, or "
            f"prepare them there again as they were: pangu-sigma prepare-data {run.path}, with the same --input"
        )
    config = run.config.on_one_rank() if like is None else run.config.with_batches_of(like)
    return BatchLoader(config, folder, run.tokenizer, run.table, "held_out")


def samples_read(run: StoredModel, batches: BatchLoader, all: bool) -> int:
    """Return the maximum number of held-out samples that an evaluation reads of each domain."""
    return max(batches.samples.counts) if all else samples_of_evaluation(run.config)


def measure(run: StoredModel, batches: BatchLoader, most: int) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on at most `most` held-out samples, with the newest checkpoint of a run."""
    from pangu_sigma.stored.network import build_network
    from pangu_sigma.training.evaluator import EvaluationStep, Evaluator

    use_cpu()
    network, store = build_network(run)
    return Evaluator(batches, most, EvaluationStep(network, store), network).losses()


def format_losses(losses: Mapping[str, Mapping[str, Any]], unit: str = "held-out, nats per token") -> str:
    """Format losses as the table that `pangu-sigma evaluate` prints. unit: of what text, and in what unit."""
    rows = [["domain", "loss", "±", "perplexity", "unigram", "bits/byte", "tokens", "samples"]]
    for name, d in losses.items():
        figures = [d["loss"], d["se"], d["perplexity"], d["unigram"], d["bits_per_byte"]]
        cells = [format_number(value, 1, digits) for value, digits in zip(figures, (3, 3, 2, 3, 3), strict=True)]
        cells[:1] = ["not finite"] if d["loss"] is None else cells[:1]
        rows.append([name, *cells, f"{d['tokens']:,}", f"{d['samples']:,}"])
    head, *lines = aligned(rows, "<>")
    return "\n".join([f"{head}   {unit}", *lines])
