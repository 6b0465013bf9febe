"""Smallest capacity and arrival factors of `parallel` that drop no row, found by simulation: `python -m experiments.factors
sigma_1t --devices 512`.

Steps are drawn as training draws them: each block of a batch is of a domain of its set, by weight, and each rank of a group takes
the same number of tokens of it; of every phase (`data.phases`) as many steps are drawn. Tokens are drawn one by one from the
domain's frequencies, and the routing tables give their experts. Real text repeats its words within a document, so that a rank's
tokens are less even than these: leave a margin.

Without prepared data every domain has the frequencies of a law of Zipf and Mandelbrot, p(r) ~ 1 / (r + 2.7), over the rows of its
slot (our choice).

Shape suffixes: N segments of all RRE layers, D domains, E experts that share the tokens of a domain in a segment, V vocabulary, P
expert ranks, S steps, R replicas.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config
from pangu_sigma.config_file import config_path, load_config
from pangu_sigma.data.order import Mixture
from pangu_sigma.data.prepared import data_of
from pangu_sigma.npu.plan.plan import laid_out
from pangu_sigma.npu.row_counts import dispatch_layout, even_rows_received, tokens_of_rank
from pangu_sigma.ranks.layout import active_in_group
from pangu_sigma.rre.table import draw_tables, shares_of_experts
from pangu_sigma.sections import Segment

SIMULATED_STEPS = 10_000
"""Number of steps that `needed_factors` simulates by default."""

_LAW = "the law 1 / (rank + 2.7) in every domain, for want of prepared data"


@dataclass(frozen=True)
class Factors:
    """Smallest `parallel.capacity_factor` and `parallel.arrival_factor` of a configuration that drop no row in simulated steps.

    steps: number of simulated steps. frequencies: source of the token frequencies, as text.
    """

    capacity: float
    arrival: float
    steps: int
    frequencies: str


def needed_factors(config: Config, steps: int = SIMULATED_STEPS, seed: int = 0) -> Factors:
    """Return the smallest capacity and arrival factors that drop no row in simulated steps. Raises DataError for bad data."""
    frequencies_DV, source = _frequencies(config)
    shares_N = _shares(config, frequencies_DV)
    tokens = tokens_of_rank(config) * config.parallel.groups // config.data.domains_per_step
    rng, sent, arrived = np.random.default_rng(seed), 0.0, 0.0
    sizes_D = np.broadcast_to(frequencies_DV.sum(axis=1), len(config.domains))
    weights_PD = Mixture.of(config, sizes_D).weights_PD
    drawn = [of_group for weights_D in weights_PD for of_group in _domains_of_steps(config, weights_D, steps, rng)]
    with Bar(desc="simulate steps", total=len(shares_N) * len(drawn), unit="group", leave=False) as bar:
        for shares_DE, kind in zip(shares_N, config.model.routed, strict=True):
            even = tokens_of_rank(config) / active_in_group(config, kind)
            for of_group in drawn:
                for first in range(0, steps, 500):
                    counts = _counts(config, shares_DE, kind, of_group[:, first : first + 500], tokens, rng)
                    sent = max(sent, counts.max() / even)
                    most = _arrivals(config, counts).max()
                    arrived = max(arrived, most / even_rows_received(config, kind))
                bar.update()
    return Factors(_up(sent), _up(arrived), steps, source)


def _up(factor: float) -> float:
    """Round a factor up to hundredths."""
    return math.ceil(factor * 100 - 1e-9) / 100


def _domains_of_steps(config: Config, weights_D: np.ndarray, steps: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw, for each group, the domain of each of its blocks in every step, [blocks, S]. weights_D: of the domains."""
    sets = config.domain_sets
    blocks, groups = config.data.domains_per_step, config.parallel.groups
    drawn: list[list[np.ndarray]] = [[] for _ in range(groups)]
    for block in range(blocks):
        number = block % len(sets)
        share = weights_D[list(sets[number])]
        chosen = rng.choice(sets[number], steps, p=share / share.sum())
        drawn[number * groups // len(sets)].append(chosen)
    return [np.stack(of_group) for of_group in drawn]


def _counts(
    config: Config, shares_DE: np.ndarray, kind: Segment, domains: np.ndarray, tokens: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw the rows that each rank of a group has for each expert of a segment, [blocks, S, P, R, E]; common experts have those of
    all blocks together, [1, S, P, R, E]. domains: of each block and step."""
    senders = (config.parallel.expert, config.parallel.data)
    shares = shares_DE[domains][:, :, None, None]
    counts = rng.multinomial(tokens, shares, size=(*domains.shape, *senders))
    if kind == "common":  # blocks of all domains have the same experts
        return counts.sum(axis=0, keepdims=True)
    for block, other in itertools.combinations(range(len(domains)), 2):
        same = domains[block] == domains[other]  # which have the same experts
        counts[block, same] += counts[other, same]
        counts[other, same] = 0
    return counts


def _arrivals(config: Config, counts: np.ndarray) -> np.ndarray:
    """Return the number of rows that arrive for each expert, or in the dropless layout for all experts of a rank."""
    arrived = counts.sum(axis=2)  # blocks, S, R, E
    if dispatch_layout(config) == "dropless":
        of_rank = arrived.reshape(*arrived.shape[:-1], config.parallel.expert, -1).sum(axis=-1)
        return of_rank.sum(axis=0)
    return arrived


def _shares(config: Config, frequencies_DV: np.ndarray) -> list[np.ndarray]:
    """Return each expert's fraction of a domain's tokens in each segment, [D, E]. frequencies_DV: as of `_frequencies`."""
    rows = frequencies_DV if config.routing.table == "balanced" else None
    m, (domains, vocabulary) = config.model, frequencies_DV.shape
    sizes = (m.rre_layers, domains, vocabulary, m.experts_per_domain)
    table = draw_tables(config.routing, *sizes, rows, m.segments, m.common_experts)
    shares_N = [shares_of_experts(*table.of_segment(n), frequencies_DV) for n in range(table.layers)]
    return [np.broadcast_to(shares_DE, (len(config.domains), shares_DE.shape[1])) for shares_DE in shares_N]


def _frequencies(config: Config) -> tuple[np.ndarray, str]:
    """Return token counts [D, V] of the prepared data, or [1, V] of the law if there are none, and the name of their source."""
    folder = Path(config.data.path)
    if not folder.exists():
        return (1e9 / (np.arange(config.model.slot_rows) + 3.7))[None], _LAW
    return data_of(config).frequencies(), f"the prepared data in {folder}"


def main() -> None:
    """Print the factors of a configuration, shipped or of a file, on a number of NPUs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("config")
    parser.add_argument("--devices", type=int, required=True)
    options = parser.parse_args()
    found = needed_factors(laid_out(load_config(config_path(options.config)), options.devices))
    print(f"parallel.capacity_factor={found.capacity:g} parallel.arrival_factor={found.arrival:g}")
    print(f"drop no row over {found.steps:,} simulated steps, by {found.frequencies}; real text needs a margin")


if __name__ == "__main__":
    main()
