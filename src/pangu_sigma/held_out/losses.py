"""Statistics of the held-out loss of a domain: mean, standard error, bits per byte, and the paired difference between two runs.

The mean is Σ nats ÷ Σ tokens over the samples. Its standard error is that of a ratio, clustered by sample:

    √( n/(n-1) · Σ (nats_i - mean · tokens_i)² ) ÷ Σ tokens

It estimates how much the mean varies between samples of such text. It takes samples to be independent, which samples of one
document are not: it is too small if documents are longer than model.seq_length. For the difference of two runs on the same samples,
nats_i is the difference on sample i, so that the difficulty of a sample for both cancels.

Shape suffix: U units, which are samples, or blocks of samples on Ascend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pangu_sigma.results import aligned


class Estimate(NamedTuple):
    """Mean and its standard error. The error of a single sample is NaN; mean and error of losses that are NaN are NaN."""

    mean: float
    error: float


class Difference(NamedTuple):
    """Paired difference of two held-out losses on the same samples, first minus second; negative: the first is better."""

    nats: Estimate
    """Difference in nats per token."""
    bits: Estimate
    """Difference in bits per byte."""

    def figures(self) -> dict[str, float | None]:
        """Return the difference as values for JSON; None for values that are not finite."""
        names = ("nats_per_token", "se", "bits_per_byte", "bits_per_byte_se")
        return dict(zip(names, map(finite_or_none, (*self.nats, *self.bits)), strict=True))


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss of a domain on its held-out samples.

    nats_U, tokens_U, bytes_U: loss, number of predicted tokens, and bytes of their text, of each of U units: samples, or blocks.
    unigram: unigram loss of the same tokens under the frequencies of the training text, in nats per token.
    digest: hash over the samples; two losses with the same digest have the same units.
    """

    nats_U: np.ndarray
    tokens_U: np.ndarray
    bytes_U: np.ndarray
    unigram: float
    digest: str

    @property
    def nats_per_token(self) -> Estimate:
        """Mean loss per token."""
        return ratio(self.nats_U, self.tokens_U)

    @property
    def bits_per_byte(self) -> Estimate:
        """Mean loss in bits per byte of text, which is comparable between tokenizers and slots; nats per token are not."""
        return ratio(self.nats_U / math.log(2), self.bytes_U)

    def minus(self, other: HeldOutLoss) -> Difference:
        """Return the paired difference to the loss of another run. Raises ValueError if the two losses have different units."""
        if self.digest != other.digest:
            raise ValueError(f"losses of other samples: {self.digest} and {other.digest}")
        nats_U = self.nats_U - other.nats_U
        return Difference(ratio(nats_U, self.tokens_U), ratio(nats_U / math.log(2), self.bytes_U))

    def figures(self) -> dict[str, Any]:
        """Return the loss as values for JSON, with each unit in `per_sample`; None for values that are not finite."""
        nats, bits = self.nats_per_token, self.bits_per_byte
        return {
            "loss": finite_or_none(nats.mean),
            "se": finite_or_none(nats.error),
            "unigram": finite_or_none(self.unigram),
            "bits_per_byte": finite_or_none(bits.mean),
            "bits_per_byte_se": finite_or_none(bits.error),
            "tokens": int(self.tokens_U.sum()),
            "bytes": int(self.bytes_U.sum()),
            "samples": len(self.tokens_U),
            "held_out": self.digest,
            "per_sample": {
                "nats": [finite_or_none(round(nats, _DIGITS)) for nats in self.nats_U.tolist()],
                "tokens": self.tokens_U.astype(int).tolist(),
                "bytes": self.bytes_U.astype(int).tolist(),
            },
            "perplexity": finite_or_none(math.exp(nats.mean)) if nats.mean < 700 else None,
        }


DomainFigures = dict[str, dict[str, Any]]
"""`HeldOutLoss.figures` by domain."""

FIGURES = ("se", "unigram", "bits_per_byte", "bits_per_byte_se", "tokens", "bytes", "samples", "held_out", "per_sample")
"""Keys of an `evaluation` line of metrics.jsonl besides `per_domain_loss`, each with a value by domain."""

_DIGITS = 4
"""Number of decimals of the nats of a sample in JSON; a sample has hundreds of tokens."""


def ratio(values_U: np.ndarray, weights_U: np.ndarray) -> Estimate:
    """Return Σ values ÷ Σ weights with its standard error (the module says how), for U samples that are drawn independently."""
    units, total = len(values_U), float(weights_U.sum())
    if not total:
        return Estimate(math.nan, math.nan)
    mean = float(values_U.sum()) / total
    if units < 2:
        return Estimate(mean, math.nan)
    residuals_U = values_U - mean * weights_U
    return Estimate(mean, math.sqrt(units / (units - 1) * float((residuals_U**2).sum())) / total)


def mean_of(values: list[float]) -> Estimate:
    """Return the unweighted mean of numbers with its standard error, s ÷ √n (s: their standard deviation)."""
    return ratio(np.array(values), np.ones(len(values)))


def evaluation_line(step: int, losses: Mapping[str, HeldOutLoss]) -> dict[str, Any]:
    """Return the `evaluation` line of metrics.jsonl for the losses after `step`."""
    figures = {name: loss.figures() for name, loss in losses.items()}
    by_key = {key: {name: values[key] for name, values in figures.items()} for key in ("loss", *FIGURES)}
    return {"kind": "evaluation", "step": step, "per_domain_loss": by_key.pop("loss"), **by_key}


def losses_of(line: Mapping[str, Any]) -> dict[str, HeldOutLoss]:
    """Parse the held-out loss of each domain in an `evaluation` line of metrics.jsonl."""
    return {
        name: HeldOutLoss(
            nats_U=np.array(units["nats"], float),  # None becomes NaN
            tokens_U=np.array(units["tokens"], float),
            bytes_U=np.array(units["bytes"], float),
            unigram=float(np.array(line["unigram"][name], float)),
            digest=line["held_out"][name],
        )
        for name, units in line["per_sample"].items()
    }


def finite_or_none(value: float) -> float | None:
    """Return the value, or None if it is not finite, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def format_number(value: float | None, width: int, digits: int = 3) -> str:
    """Format a number for a table; – if it is None or not finite. Negative numbers that round to zero have no minus sign."""
    return f"{'–':>{width}}" if value is None or not math.isfinite(value) else f"{value:z{width},.{digits}f}"


def format_numbers(values: Iterable[float | None], digits: Iterable[int]) -> list[str]:
    """Format numbers as cells of a table, each with its number of decimals."""
    return [format_number(value, 0, decimals) for value, decimals in zip(values, digits, strict=True)]


def format_losses(losses: Mapping[str, Mapping[str, Any]], unit: str = "held-out, nats per token") -> str:
    """Format losses as the table that `pangu-sigma evaluate` prints. unit: text and unit of the losses, for the table's head."""
    rows = [["domain", "loss", "±", "perplexity", "unigram", "bits/byte", "tokens", "samples"]]
    for name, figures in losses.items():
        numbers = [figures["loss"], figures["se"], figures["perplexity"], figures["unigram"], figures["bits_per_byte"]]
        cells = format_numbers(numbers, (3, 3, 2, 3, 3))
        cells[:1] = ["not finite"] if figures["loss"] is None else cells[:1]
        rows.append([name, *cells, f"{figures['tokens']:,}", f"{figures['samples']:,}"])
    return "\n".join(aligned(rows, "<>", unit))
