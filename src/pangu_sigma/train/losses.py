"""The held-out loss of a domain as a mean over samples: its standard error, bits per byte, and the difference between runs.

A mean is Σ nats ÷ Σ tokens over the samples. Its standard error is that of a ratio, clustered by sample:

    √( n/(n-1) · Σ (nats_i - mean · tokens_i)² ) ÷ Σ tokens

It says how far the mean would move on other samples of such text, and takes samples to be independent, which those of one document
are not: where documents are longer than model.seq_length it is too small. A difference of two runs on the same samples is the same
with nats_i the difference on sample i, so what makes a sample hard for both cancels.

Shape suffix: U units, which are samples, or blocks of samples on Ascend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean and its standard error; NaN for what is not known: an error of a single sample, or anything of losses that are NaN."""

    mean: float
    error: float


class Difference(NamedTuple):
    """How much more the one loses than the other, on the same samples; negative: the one is better."""

    nats: Estimate
    """In nats per token."""
    bits: Estimate
    """In bits per byte."""

    def figures(self) -> dict[str, float | None]:
        """The difference as values for JSON; None for what is not finite."""
        return dict(zip(DIFFERENCE_FIGURES, map(known, (*self.nats, *self.bits)), strict=True))


DIFFERENCE_FIGURES = ("nats_per_token", "se", "bits_per_byte", "bits_per_byte_se")
"""Keys of a difference in JSON."""


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss of a domain on the tokens of some held-out samples.

    nats_U, tokens_U, bytes_U: loss, number of tokens that count, and bytes of their text, of each unit.
    unigram: nats per token that the frequencies of the training text need for the same tokens.
    digest: a hash over the samples; two losses with the same one are of the same units.
    """

    nats_U: np.ndarray
    tokens_U: np.ndarray
    bytes_U: np.ndarray
    unigram: float
    digest: str

    @property
    def nats_per_token(self) -> Estimate:
        return ratio(self.nats_U, self.tokens_U)

    @property
    def bits_per_byte(self) -> Estimate:
        """Comparable between tokenizers and slots, which nats per token are not."""
        return ratio(self.nats_U / math.log(2), self.bytes_U)

    def minus(self, other: HeldOutLoss) -> Difference:
        """The difference to the loss of another run on the same units. Raises ValueError if they are others."""
        if self.digest != other.digest:
            raise ValueError(f"losses of other samples: {self.digest} and {other.digest}")
        nats_U = self.nats_U - other.nats_U
        return Difference(ratio(nats_U, self.tokens_U), ratio(nats_U / math.log(2), self.bytes_U))

    def figures(self) -> dict[str, Any]:
        """The loss as values for JSON; None for what is not finite. `per_sample` has its units."""
        nats, bits = self.nats_per_token, self.bits_per_byte
        return {
            "loss": known(nats.mean),
            "se": known(nats.error),
            "unigram": known(self.unigram),
            "bits_per_byte": known(bits.mean),
            "bits_per_byte_se": known(bits.error),
            "tokens": int(self.tokens_U.sum()),
            "bytes": int(self.bytes_U.sum()),
            "samples": len(self.tokens_U),
            "held_out": self.digest,
            "per_sample": {
                "nats": [known(round(nats, _DIGITS)) for nats in self.nats_U.tolist()],
                "tokens": self.tokens_U.astype(int).tolist(),
                "bytes": self.bytes_U.astype(int).tolist(),
            },
        }


FIGURES = ("se", "unigram", "bits_per_byte", "bits_per_byte_se", "tokens", "bytes", "samples", "held_out", "per_sample")
"""Keys of an `evaluation` line beside `per_domain_loss`, each by domain."""

_DIGITS = 4
"""Decimals of the nats of a sample in JSON; a sample has hundreds of tokens."""


def ratio(values_U: np.ndarray, weights_U: np.ndarray) -> Estimate:
    """Σ values ÷ Σ weights with its standard error, over units that are drawn independently."""
    units, total = len(values_U), float(weights_U.sum())
    if not total:
        return Estimate(math.nan, math.nan)
    mean = float(values_U.sum()) / total
    if units < 2:
        return Estimate(mean, math.nan)
    residuals_U = values_U - mean * weights_U
    return Estimate(mean, math.sqrt(units / (units - 1) * float((residuals_U**2).sum())) / total)


def mean_of(values: list[float]) -> Estimate:
    """The mean of some numbers, each of which counts the same, with its standard error: s ÷ √n."""
    return ratio(np.array(values), np.ones(len(values)))


def evaluation_line(step: int, losses: Mapping[str, HeldOutLoss]) -> dict[str, Any]:
    """The line of metrics.jsonl that holds an evaluation after `step`."""
    figures = {name: loss.figures() for name, loss in losses.items()}
    by_key = {key: {name: found[key] for name, found in figures.items()} for key in ("loss", *FIGURES)}
    return {"kind": "evaluation", "step": step, "per_domain_loss": by_key.pop("loss"), **by_key}


def losses_of(line: Mapping[str, Any]) -> dict[str, HeldOutLoss]:
    """The losses in an `evaluation` line."""
    return {
        name: HeldOutLoss(
            nats_U=np.array(units["nats"], float),  # None becomes NaN
            tokens_U=np.array(units["tokens"], float),
            bytes_U=np.array(units["bytes"], float),
            unigram=_or_nan(line["unigram"][name]),
            digest=line["held_out"][name],
        )
        for name, units in line["per_sample"].items()
    }


def known(value: float) -> float | None:
    """The value; None if it is not finite, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def shown(value: float | None, width: int, digits: int = 3) -> str:
    """A number for a table, or – for one that is not known."""
    return f"{'–':>{width}}" if value is None or not math.isfinite(value) else f"{value:{width},.{digits}f}"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
