"""Held-out loss of a trained run, an exported model or a Hugging Face style folder."""

from __future__ import annotations

from pathlib import Path

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.batches import BatchLoader
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


def evaluate_run(path: Path, all: bool = False, passages: int = 0) -> DomainFigures:
    """Measure the held-out losses of a run, an exported model or a Hugging Face style folder. Returns `HeldOutLoss.figures` by
    domain.

    all: True to read all held-out samples, False for those that training evaluates. passages: number of passages that are continued
    in each domain; they are added as "passages". Raises ConfigError or DataError.
    """
    if kind_of(path) == "alpha" and is_dense_model(path):
        raise ConfigError(
            f"{path} is {KIND_NAMES['alpha']}, without held-out text; `pangu-sigma evaluate {path} --input FILE --domain zh` "
            "measures it on any other text, `pangu-sigma benchmark` on tasks"
        )
    model = open_model(path, "run", "export", "hf")
    batches = held_out_batches(model)
    most = samples_read(model, batches, all)
    decoded = model.kind != "run"
    engine = open_engine(model, 1) if decoded or passages else None
    losses = measure_decoded(engine, batches, most) if engine and decoded else measure(model, batches, most)
    more = {name: {"passages": passages_of(engine, name, passages)} for name in losses} if engine and passages else {}
    return {name: loss.figures() | more.get(name, {}) for name, loss in losses.items()}


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
    from pangu_sigma.held_out.evaluator import EvaluationStep, Evaluator
    from pangu_sigma.stored.network import build_network

    use_cpu()
    network, store = build_network(run)
    return Evaluator(batches, most, EvaluationStep(network, store), network).losses()
