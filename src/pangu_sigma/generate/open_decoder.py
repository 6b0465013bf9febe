"""The decoder of a model in a folder."""

from __future__ import annotations

from pathlib import Path

from ascend_ops.few_rows import Precision
from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.generate.exported import GRAPH_FILE, ExportedWeights, open_export
from pangu_sigma.generate.host.decoder import HostDecoder
from pangu_sigma.generate.weights import SavedWeights


def open_decoder(path: Path, lanes: int = 4, weights: Precision | None = None) -> Decoder:
    """The decoder, on the CPU, of the newest intact checkpoint of a run folder, or of an exported model.

    weights: how it has matrices in memory; None as they are: float32 of a run, what an export keeps. Raises ConfigError when the
    folder is neither, and as `open_export`.
    """
    if (path / GRAPH_FILE).exists():
        export, kept = open_export(path), ExportedWeights(path)
        return HostDecoder(export.config, export.tokenizer, export.table, kept, lanes, weights or kept.precision)
    run = RunFolder.open(path)
    saved = SavedWeights(load_checkpoint(run.checkpoints, run.identity))
    return HostDecoder(run.config, run.tokenizer, run.table, saved, lanes, weights or "float32")
