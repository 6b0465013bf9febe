"""Held-out loss of a trained run, an exported model or a Hugging Face style folder."""

from __future__ import annotations

from pathlib import Path

from ascend_ops.few_rows import Precision
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.batches import BatchLoader, open_samples
from pangu_sigma.data.prepared import encodes, read_prepared_tokenizer
from pangu_sigma.foreign.dense_files import is_dense_model
from pangu_sigma.generate.text import open_engine
from pangu_sigma.held_out.batches import samples_of_evaluation
from pangu_sigma.held_out.decoded import measure_decoded
from pangu_sigma.held_out.losses import DomainFigures, HeldOutLoss
from pangu_sigma.held_out.passages import passages_of
from pangu_sigma.process import use_cpu
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.stored.open import KIND_NAMES, kind_of, open_model


def evaluate_run(path: Path, all: bool = False, passages: int = 0, weights: Precision | None = None) -> DomainFigures:
    """Measure the held-out losses of a run, an exported model or a Hugging Face style folder. Returns `HeldOutLoss.figures` by
    domain.

    all: True to read all held-out samples, False for as many as training evaluates. passages: number of passages to continue in
    each domain; they are added as "passages" (`passages_of`). weights: precision of the matrices in memory, with which the CPU's
    decoder measures; None for an export's own; None or float32 for a run: the network of training. Raises ConfigError or DataError.
    """
    if kind_of(path) == "alpha" and is_dense_model(path):
        raise ConfigError(
            f"{path} is {KIND_NAMES['alpha']}, without held-out text; `pangu-sigma evaluate {path} --input FILE --domain zh` "
            "measures it on any other text, `pangu-sigma benchmark` on tasks"
        )
    model = open_model(path, "run", "export", "hf")
    batches = held_out_batches(model)
    limit = samples_of_evaluation(model.config, all)
    is_decoded = model.kind != "run" or weights not in (None, "float32")
    engine = open_engine(model, 1, weights) if is_decoded or passages else None
    losses = measure_decoded(engine, batches, limit) if engine and is_decoded else measure(model, batches, limit)
    figures = {name: loss.figures() for name, loss in losses.items()}
    if engine and passages:
        for name in figures:
            figures[name]["passages"] = passages_of(engine, name, passages)
    return figures


def held_out_batches(run: StoredModel, batches_like: Config | None = None) -> BatchLoader:
    """Open the held-out batches of a model for one process. batches_like: configuration that decides the shape of the batches; None
    for the model's own.

    Raises DataError if the prepared text is missing, ConfigError if it was prepared again with another vocabulary.
    """
    folder, prepared = Path(run.config.data.path), read_prepared_tokenizer(run.config)
    if not encodes(run.tokenizer, prepared):
        raise ConfigError(
            f"data.path={folder} was prepared with another vocabulary than {run.path} has (hash {prepared.hash[:12]}…, "
            f"not {run.tokenizer.hash[:12]}…): its token ids mean other text; put back the data that the run was trained on, or "
            f"prepare them there again as they were: pangu-sigma prepare-data {run.path}, with the same --input"
        )
    config = run.config.on_one_rank() if batches_like is None else run.config.with_batches_of(batches_like)
    return BatchLoader(config, open_samples(config, folder, "held_out", run.tokenizer.size), run.tokenizer, run.table)


def measure(run: StoredModel, batches: BatchLoader, sample_limit: int) -> dict[str, HeldOutLoss]:
    """Measure the loss of each domain on at most `sample_limit` held-out samples, with the newest checkpoint of a run."""
    from pangu_sigma.held_out.evaluator import EvaluationStep, Evaluator
    from pangu_sigma.stored.network import build_network

    use_cpu()
    network, store = build_network(run)
    return Evaluator(batches, sample_limit, EvaluationStep(network, store), network).losses()
