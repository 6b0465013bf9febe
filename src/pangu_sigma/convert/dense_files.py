from pathlib import Path

from pangu_sigma.convert.dense_model import Activation, DenseModel, LayoutError


def open_dense_model(path: Path, *, heads: int | None = None, activation: Activation | None = None) -> DenseModel:
    raise LayoutError("not yet")
