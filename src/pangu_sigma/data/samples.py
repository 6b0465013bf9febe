"""Samples of one split of prepared data: each domain's tokens, cut one after another into sequences of equal length.

Shape suffixes: S sequence length, D domains, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.errors import DataError


class Samples:
    """Samples of every domain of a configuration, in file order.

    files: token files, one per domain. counts: number of samples of each domain. Sample n of a domain is its tokens n·S … n·S + S:
    a sequence and the token after it, because each token predicts the next. weights: sampling weight of each domain; None: the
    weights of the configuration.
    """

    def __init__(self, config: Config, prepared: PreparedData, split: str, vocabulary: int):
        """vocabulary: number of ids V. Raises DataError for a missing file, and for a domain with fewer tokens than one sample."""
        self._prepared, self._length = prepared, config.model.seq_length
        self.files = files = [prepared.tokens(domain.name, split, vocabulary) for domain in config.domains]
        self.weights: list[float] | None = None
        self.counts = [(file.tokens - 1) // self._length for file in files]
        for domain, count, file in zip(config.domains, self.counts, files, strict=True):
            if count < 1:
                raise DataError(
                    f"domain {domain.name}: the {split} split has {file.tokens} tokens, fewer than one sample of "
                    f"{self._length + 1}; prepare more text, or lower model.seq_length"
                )

    def read(self, domain: int, number: int) -> np.ndarray:
        """Return the token ids of one sample, int32 [S + 1]."""
        return self.files[domain].read(number * self._length, self._length + 1)

    def counted(self, domain: int, number: int) -> np.ndarray:
        """Return the loss mask of a sample, bool [S]: all True. Position s stands for the prediction of token s + 1."""
        return np.ones(self._length, bool)

    def frequencies(self) -> np.ndarray:
        """Return the token counts [D, V] of the training text. Raises DataError if they are damaged."""
        return self._prepared.frequencies()


def open_samples(config: Config, folder: Path, split: str, vocabulary: int) -> Samples:
    """Open the samples of one split of a prepared data folder. vocabulary: number of ids V.

    Raises ConfigError for a domain that is not there, DataError for a missing or damaged file, and for a domain with fewer tokens
    than one sample.
    """
    return Samples(config, PreparedData(folder, [domain.name for domain in config.domains]), split, vocabulary)
