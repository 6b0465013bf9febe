"""The text of one split as samples: each domain's tokens, cut one after another into sequences of equal length.

Shape suffix: S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.errors import DataError


class Text(Protocol):
    """The tokens of a domain; `TokenFile` is one."""

    tokens: int

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start … start + length - 1, int32."""


class Samples:
    """The samples of every domain of a configuration, in file order.

    files: the text of each domain. counts: number of samples of each. Sample n of a domain is its tokens n·S … n·S + S: one more
    than the sequence, because each token predicts the next. weights: of each domain in the order of training, relative to the
    others'.
    Raises DataError when a domain has less text than one sample.
    """

    def __init__(self, config: Config, files: Sequence[Text], split: str):
        """split: name of the split, for the error."""
        self.files = files
        self._length = config.model.seq_length
        self.weights = [domain.weight for domain in config.domains]
        self.counts = [(file.tokens - 1) // self._length for file in files]
        for domain, count, file in zip(config.domains, self.counts, files, strict=True):
            if count < 1:
                raise DataError(
                    f"domain {domain.name}: the {split} split has {file.tokens} tokens, fewer than one sample of "
                    f"{self._length + 1}; prepare more text, or lower model.seq_length"
                )

    def read(self, domain: int, number: int) -> np.ndarray:
        """Ids of one sample, int32 [S + 1]."""
        return self.files[domain].read(number * self._length, self._length + 1)

    def counted(self, domain: int, number: int) -> np.ndarray:
        """True for the positions of a sample whose successor counts in the loss, bool [S]: all of them."""
        return np.ones(self._length, bool)


def open_samples(config: Config, folder: Path, split: str, vocabulary: int) -> Samples:
    """The samples of a split in a folder that `prepare-data` wrote. vocabulary: V.

    Raises DataError as `PreparedData.tokens` and `Samples`.
    """
    prepared = PreparedData(folder)
    return Samples(config, [prepared.tokens(domain.name, split, vocabulary) for domain in config.domains], split)
