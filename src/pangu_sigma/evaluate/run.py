"""The held-out loss of a trained run."""

from __future__ import annotations

from pathlib import Path

from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.state import load_trained
from pangu_sigma.data.batches import Batches
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.device import use_cpu
from pangu_sigma.train.held_out import EvaluationStep, Evaluator


def evaluate_run(path: Path) -> dict[str, dict[str, float]]:
    """Held-out losses of a trained run: {"loss": …, "unigram": …} in nats per token for each domain.

    unigram is the loss that counting tokens achieves.
    """
    run = RunFolder.open(path)
    use_cpu()
    network, store = load_trained(run)
    config, data = run.config.on_one_rank(), Path(run.config.data.path)
    batches = Batches(config, data, run.tokenizer, run.table, "held_out")
    losses = Evaluator(config, batches, EvaluationStep(network, store), network).losses()
    manifest = load_manifest(data)
    return {name: {"loss": loss, "unigram": manifest.domains[name].unigram_entropy} for name, loss in losses.items()}


def format_losses(losses: dict[str, dict[str, float]]) -> str:
    """The table that `pangu-sigma evaluate` prints."""
    rows = [f"{name:12} {d['loss']:8.3f} {d['unigram']:8.3f}" for name, d in losses.items()]
    return "\n".join([f"{'domain':12} {'loss':>8} {'unigram':>8}   held-out, nats per token", *rows])
