"""The decoder of a model in a folder."""

from __future__ import annotations

from pathlib import Path

from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.generate.host_decoder import HostDecoder, Precision
from pangu_sigma.generate.weights import SavedWeights


def open_decoder(path: Path, lanes: int = 4, weights: Precision = "float32") -> HostDecoder:
    """The decoder of the newest intact checkpoint of a run folder, on the CPU."""
    run = RunFolder.open(path)
    saved = SavedWeights(load_checkpoint(run.checkpoints, run.identity))
    return HostDecoder(run.config, run.tokenizer, run.table, saved, lanes, weights)
