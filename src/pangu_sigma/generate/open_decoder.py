"""The decoder of a model in a folder."""

from __future__ import annotations

from pathlib import Path

from ascend_ops.few_rows import Precision
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.generate.host.decoder import HostDecoder
from pangu_sigma.stored.export import StoredExport
from pangu_sigma.stored.model import Kind
from pangu_sigma.stored.open import open_model


def open_decoder(
    path: Path, lanes: int = 4, weights: Precision | None = None, kinds: tuple[Kind, ...] = ("run", "export")
) -> Decoder:
    """The decoder, on the CPU, of a run folder or an exported model.

    weights: how it has matrices in memory; None as they are: float32 of a run, what an export keeps. Raises as `open_model`.
    """
    model = open_model(path, *kinds)
    precision = weights or (model.precision if isinstance(model, StoredExport) else "float32")
    return HostDecoder(model.config, model.tokenizer, model.table, model, lanes, precision)
