"""Smallest capacity and arrival factors of `parallel` that drop no row, found by simulation. Pure Python.

Steps are drawn as training draws them: each block of a batch is of a domain of its set, by weight, and each rank of a group takes
the same number of tokens of it. Tokens are drawn one by one from the domain's frequencies, and the routing tables give their
experts. Real text repeats its words within a document, so that a rank's tokens are less even than these: leave a margin.

Without prepared data every domain has the frequencies of a law of Zipf and Mandelbrot, p(r) ~ 1 / (r + 2.7), over the rows of its
slot (our choice).

Shape suffixes: N RRE layers, D domains, E experts of a domain, V vocabulary, P expert ranks of a group, S steps, R replicas.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config
from pangu_sigma.data.prepared import PreparedData, read_frequencies
from pangu_sigma.domains import domain_sets
from pangu_sigma.parallel.layout import active_in_group, dispatch_layout, even_rows_received, tokens_of_rank
from pangu_sigma.rre.table import RoutingTable, draw_tables

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
    shares_NDE, source = _shares(config)
    tokens = tokens_of_rank(config) * config.parallel.groups // config.data.domains_per_step
    rng, sent, arrived = np.random.default_rng(seed), 0, 0
    drawn = _domains_of_steps(config, steps, rng)
    with Bar(desc="simulate steps", total=len(shares_NDE) * len(drawn), unit="group", leave=False) as bar:
        for shares_DE in shares_NDE:
            for of_group in drawn:
                for first in range(0, steps, 500):
                    counts = _counts(config, shares_DE, of_group[:, first : first + 500], tokens, rng)
                    sent = max(sent, int(counts.max()))
                    arrived = max(arrived, int(_arrivals(config, counts).max()))
                bar.update()
    even = tokens_of_rank(config) / active_in_group(config)
    layout = dispatch_layout(config, ascend=True)
    return Factors(_up(sent / even), _up(arrived / even_rows_received(config, layout)), steps, source)


def format_factors(factors: Factors) -> str:
    """Format the capacity and arrival factors as text."""
    keys = f"parallel.capacity_factor={factors.capacity:g} and parallel.arrival_factor={factors.arrival:g}"
    margin = "leave a margin for text that repeats itself"
    return f"no row is dropped over {factors.steps:,} simulated steps with {keys}\n  by {factors.frequencies}; {margin}"


def _up(factor: float) -> float:
    """Round a factor up to hundredths."""
    return math.ceil(factor * 100 - 1e-9) / 100


def _domains_of_steps(config: Config, steps: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw, for each group, the domain of each of its blocks in every step, [blocks, S]."""
    sets, weights = domain_sets(config), np.array([domain.weight for domain in config.domains])
    blocks, groups = config.data.domains_per_step, config.parallel.groups
    drawn: list[list[np.ndarray]] = [[] for _ in range(groups)]
    for block in range(blocks):
        number = block % len(sets)
        share = weights[list(sets[number])]
        chosen = rng.choice(sets[number], steps, p=share / share.sum())
        drawn[number * groups // len(sets)].append(chosen)
    return [np.stack(of_group) for of_group in drawn]


def _counts(
    config: Config, shares_DE: np.ndarray, domains: np.ndarray, tokens: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw the rows that each rank of a group has for each expert, [blocks, S, P, R, E]. domains: of each block and step."""
    senders = (config.parallel.expert, config.parallel.data)
    shares = shares_DE[domains][:, :, None, None]
    counts = rng.multinomial(tokens, shares, size=(*domains.shape, *senders))
    for block, other in itertools.combinations(range(len(domains)), 2):
        same = domains[block] == domains[other]  # which have the same experts
        counts[block, same] += counts[other, same]
        counts[other, same] = 0
    return counts


def _arrivals(config: Config, counts: np.ndarray) -> np.ndarray:
    """Return the number of rows that arrive for each expert, or in the dropless layout for all experts of a rank."""
    arrived = counts.sum(axis=2)  # blocks, S, R, E
    if dispatch_layout(config, ascend=True) == "dropless":
        of_rank = arrived.reshape(*arrived.shape[:-1], config.parallel.expert, -1).sum(axis=-1)
        return of_rank.sum(axis=0)
    return arrived


def _shares(config: Config) -> tuple[np.ndarray, str]:
    """Return each expert's fraction of its domain's tokens, [N, D, E], and the source of the frequencies."""
    frequencies_DV, source = _frequencies(config)
    rows = frequencies_DV if config.routing.table == "balanced" else None
    layers, experts = config.model.rre_layers, config.model.experts_per_domain
    domains, vocabulary = frequencies_DV.shape
    table = draw_tables(config.routing, layers, domains, vocabulary, experts, rows)
    shares_NDE = shares_of_experts(table, frequencies_DV)
    return np.broadcast_to(shares_NDE, (layers, len(config.domains), experts)), source


def shares_of_experts(table: RoutingTable, frequencies_DV: np.ndarray) -> np.ndarray:
    """Return each expert's fraction of its domain's tokens, [N, D, E experts]; tokens of a spread id are divided evenly."""
    layers, domains, experts = table.layers, len(frequencies_DV), table.experts
    shares = np.zeros((layers, domains, experts))
    for domain in range(domains):
        spread_V = table.spread_DV[domain]
        part_V = frequencies_DV[domain] / max(frequencies_DV[domain].sum(), 1) / spread_V
        for step in range(int(spread_V.max())):
            wide_V = spread_V > step
            for layer in range(layers):
                taker_V = (table.first_NDV[layer, domain, wide_V] + step) % experts
                shares[layer, domain] += np.bincount(taker_V, part_V[wide_V], minlength=experts)
    return shares / shares.sum(axis=-1, keepdims=True)


def _frequencies(config: Config) -> tuple[np.ndarray, str]:
    """Return token counts [D, V] of the prepared data, or [1, V] of the law if there are none, and the name of their source."""
    folder = Path(config.data.path)
    if not folder.exists():
        return (1e9 / (np.arange(config.model.slot_rows) + 3.7))[None], _LAW
    counts = PreparedData(folder).frequencies()
    return read_frequencies(folder, len(config.domains), counts.shape[1]), f"the prepared data in {folder}"
