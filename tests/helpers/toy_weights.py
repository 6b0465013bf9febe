"""Weights of a model of any configuration, drawn when they are asked for; the same ones every time."""

from __future__ import annotations

import zlib

import numpy as np

from pangu_sigma.config import Config


class ToyWeights:
    """`Weights` whose matrices are large enough for every layer to matter."""

    def __init__(self, config: Config):
        model = config.model
        self._hidden, self._ffn, self._segments = model.hidden, model.ffn, len(model.segments)
        self._tables = {"embedding": config.slots * model.slot_rows}
        self._positions = model.seq_length
        self._rows = [(config.stored_rows(entry), entry.width) for entry in model.rows]

    def tensor(self, name: str) -> np.ndarray:
        *_, cell, kind = f".{name}".rsplit(".", 2)
        if kind in ("embedding", "positions", "query_positions"):
            return self._drawn(name, self._tables.get(kind, self._positions), self._hidden)
        if cell == "ffn":
            return self._of_ffn(name, kind, self._ffn)
        if kind == "row_scale":
            return self._drawn(name, 1)
        if kind == "weight":
            return self._drawn(name, self._hidden, self._hidden)
        return self._drawn(name, self._hidden) + np.float32(kind == "gain")

    def expert(self, layer: int, number: int, name: str) -> np.ndarray:
        return self._of_ffn(f"{layer} {number} {name}", name, self._ffn // self._segments)

    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        """Every third row was met by no token."""
        rows, width = self._rows[entry]
        keys_U = np.flatnonzero(np.arange(rows) % 3)
        return keys_U, self._drawn(f"rows {entry}", len(keys_U), width)

    def _of_ffn(self, seed: str, name: str, units: int) -> np.ndarray:
        shapes = {"b1": (units,), "b2": (self._hidden,)}
        return self._drawn(seed, *shapes.get(name, (units, self._hidden)))

    def _drawn(self, name: str, *shape: int) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return 0.3 * rng.standard_normal(shape, np.float32)


class NumberedRows(ToyWeights):
    """The same weights, and of each row, all of which were met, its number."""

    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        rows, width = self._rows[entry]
        return np.arange(rows), np.repeat(np.arange(rows, dtype=np.float32)[:, None], width, axis=1)


class OneBrokenExpert(ToyWeights):
    """The same weights, but that one unit of one expert of the first segment reads with this value."""

    def __init__(self, config: Config, number: int, value: float):
        super().__init__(config)
        self._broken, self._value = number, value

    def expert(self, layer: int, number: int, name: str) -> np.ndarray:
        values = super().expert(layer, number, name)
        if (layer, number, name) == (0, self._broken, "w1"):
            values[0] = self._value
        return values
