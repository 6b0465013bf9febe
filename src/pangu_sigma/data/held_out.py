"""Held-out batches and their unigram baselines. Samples are spread evenly over the text of each domain. They are the same in every
evaluation and on any number of ranks, so a loss is always a mean over the same tokens. A *unit* is a sample, or a block of samples,
for which a graph returns one loss.

Shape suffixes: G micro-batches of an update, B sequences of a micro-batch, S sequence length, M blocks of a batch, Q sequences of a
block, D domains, V vocabulary, R rows of a slot, U units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.domains import Domain
from pangu_sigma.ranks.layout import data_rank_of_sequences, share_of, takers_of_group
from pangu_sigma.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class HeldOutBatch:
    """Held-out batch, with the unit (sample or block of samples) of each loss that a graph returns for the batch.

    domains_U: domain of each of the U losses. units_U: index of each loss's unit among all units of its domain, which the ranks
    share. Padding samples have weight 0, whatever their unit.
    """

    batch: Batch
    domains_U: np.ndarray
    units_U: np.ndarray


class HeldOut:
    """Held-out batches that one rank evaluates. Their domains are those of its group of ranks. Two methods give the same samples.

    `domain_batches` is for a forward graph, which returns a loss per sample. `training_shaped_batches` is for the graph of a
    training step, which returns a loss per block of samples. What has one loss is called a unit.
    """

    def __init__(self, batches: BatchLoader, most: int):
        """batches: loader of the held-out split. most: maximum number of samples of a domain."""
        self._batches, self._config = batches, batches.config
        everybody = data_rank_of_sequences(self._config)
        self._takers_B = everybody[np.isin(everybody, takers_of_group(self._config, batches.rank))]
        self._blocks = self._config.data.domains_per_step // self._config.parallel.groups
        self._per_block = self._config.train.batch_size // self._config.data.domains_per_step
        self._wanted = [min(count, most) for count in batches.samples.counts]
        self.block = self._config.train.accumulation * self._per_block

    @cached_property
    def domains(self) -> list[int]:
        """Indices of the domains of the rank's group: domain set by domain set (`domain_sets`), ascending within a set."""
        sets = self._batches.domain_sets
        return [domain for s in share_of(self._config, self._batches.rank).sets for domain in sets[s]]

    def numbers(self, domain: int) -> np.ndarray:
        """Return the numbers of a domain's samples that are evaluated, ascending: the middles of equal stretches of its text."""
        count, wanted = self._batches.samples.counts[domain], self._wanted[domain]
        return (2 * np.arange(wanted) + 1) * count // (2 * wanted)

    def units(self, size: int) -> list[int]:
        """Return the number of units (samples or blocks with one loss) of each domain. size: number of samples of a unit."""
        return [-(-wanted // size) for wanted in self._wanted]

    def digests(self, size: int = 1) -> dict[str, str]:
        """Return one hash per domain of the ids of its samples, their pieces, and the unit size: losses are comparable if they are
        equal. A vocabulary with more pieces, or a slot with more rows, changes no hash."""
        pieces, digests_by_domain = self._batches.tokenizer.vocabulary.pieces, {}
        for domain in self._batches.domains:
            digest, used_V = xxhash.xxh3_64(str(size).encode()), np.zeros(len(pieces), bool)
            for number in self.numbers(domain.index).tolist():
                ids_S1 = self._batches.samples.read(domain.index, number)
                digest.update(ids_S1.tobytes())
                used_V[ids_S1] = True
            digest.update("\0".join(pieces[token] for token in np.flatnonzero(used_V)).encode())
            digests_by_domain[domain.name] = digest.hexdigest()
        return digests_by_domain

    def domain_batches(self, domain: int) -> list[HeldOutBatch]:
        """Return this rank's share of a domain's batches, for a graph with a loss per sample; [] for a domain of other ranks.

        The last batch is padded with samples of weight 0.
        """
        if domain not in self.domains:
            return []
        domains_M = np.full(self._blocks, domain)
        own, last, batches = self._batches.own(self._takers_B), self._wanted[domain] - 1, []
        for numbers_MGQ in self._numbers(domain):
            ids_GBS1, counted_GBS = self._read(domains_M, numbers_MGQ)
            counted_GBS &= _by_pass(numbers_MGQ <= last)[..., None]
            batch = self._assembled(ids_GBS1, domains_M, counted_GBS)
            units_U = _by_pass(numbers_MGQ)[0, own].clip(max=last)
            batches.append(HeldOutBatch(batch, np.full(len(own), domain), units_U))
        return batches

    def training_shaped_batches(self) -> list[HeldOutBatch]:
        """Return this rank's batches in the shape of training, for a graph with a loss per block.

        Blocks are padded with samples of weight 0. Raises the errors of the planner, as training does.
        """
        passes, batches, size = self._config.train.accumulation, [], self.block
        for first in range(0, len(self.domains), self._blocks):
            own = self.domains[first : first + self._blocks]
            wanted_M = np.array([self._wanted[d] for d in own] + [0] * (self._blocks - len(own)))
            domains_M = np.array([*own, *(d for d in self.domains if d not in own)][: self._blocks])
            for start in range(0, wanted_M.max(), size):
                numbers_GQ = np.arange(start, start + size).reshape(passes, -1)
                numbers_MGQ = np.tile(numbers_GQ, (self._blocks, 1, 1))
                ids_GBS1, counted_GBS = self._read(domains_M, numbers_MGQ)
                counted_GBS &= _by_pass(numbers_MGQ < wanted_M[:, None, None])[..., None]
                batch = self._assembled(ids_GBS1, domains_M, counted_GBS)
                domains_U = domains_M[batch.blocks]
                last_U = np.array(self.units(size))[domains_U] - 1
                batches.append(HeldOutBatch(batch, domains_U, np.minimum(start // size, last_U)))
        return batches

    def _numbers(self, domain: int) -> Iterator[np.ndarray]:
        """Yield the positions in `numbers` of the samples of each batch of one domain, [M, 1, Q]; padding is past the last."""
        size = self._blocks * self._per_block
        for first in range(0, self._wanted[domain], size):
            yield np.arange(first, first + size).reshape(self._blocks, 1, -1)

    def _read(self, domains_M: np.ndarray, numbers_MGQ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ids [G, B, S + 1] and loss mask [G, B, S] of the samples of each block; a domain's last sample pads it."""
        samples, chosen = self._batches.samples, []
        for domain, numbers_GQ in zip(domains_M.tolist(), numbers_MGQ, strict=True):
            numbers = self.numbers(domain)
            chosen += [(domain, n) for n in numbers[numbers_GQ.ravel().clip(max=len(numbers) - 1)].tolist()]
        ids, counted = (np.stack([read(*each) for each in chosen]) for read in (samples.read, samples.counted))
        return _by_pass(ids.reshape(*numbers_MGQ.shape, -1)), _by_pass(counted.reshape(*numbers_MGQ.shape, -1))

    def _assembled(self, ids_GBS1: np.ndarray, domains_M: np.ndarray, counted_GBS: np.ndarray) -> Batch:
        """Return the batch of these token ids, whose sequences the ranks of the group take."""
        return self._batches.assemble(ids_GBS1, domains_M, counted_GBS=counted_GBS, taker_B=self._takers_B)


def samples_of_evaluation(config: Config) -> int:
    """Return the maximum number of held-out samples per domain that an evaluation during training reads."""
    return config.train.eval_batches * config.train.batch_size


class UnigramBaseline:
    """Unigram model of each domain, the baseline of its held-out loss, and the bytes of each token id, for bits per byte."""

    def __init__(self, tokenizer: Tokenizer, domains: Iterable[Domain], frequencies_DV: np.ndarray):
        """frequencies_DV: token counts of each domain's training text."""
        self._rows, self._slots = tokenizer.slot_rows, np.array([domain.slot for domain in domains])
        self._bytes_V = np.array([len(surface) for surface in tokenizer.vocabulary.surfaces])
        self._unigram_DV = np.stack(
            [unigram_nats(counts_V, self._rows[s]) for counts_V, s in zip(frequencies_DV, self._slots, strict=True)]
        )

    def of(self, held_out: HeldOutBatch) -> np.ndarray:
        """Return, for each unit of a held-out batch, the number, bytes and unigram loss in nats of its predicted tokens, [U, 3]."""
        batch = held_out.batch
        passes, sequences = batch.labels_GBS.shape[:2]
        domains_B = np.repeat(batch.domains_M[batch.blocks], sequences // len(batch.blocks))
        ids_GBS = self._rows[self._slots[domains_B][:, None], batch.labels_GBS]
        counted_GBS = batch.weights_GBS > 0
        values = (np.ones_like(ids_GBS), self._bytes_V[ids_GBS], self._unigram_DV[domains_B[:, None], ids_GBS])
        units = len(held_out.units_U)
        return np.stack([np.where(counted_GBS, v, 0).reshape(passes, units, -1).sum((0, 2)) for v in values], axis=-1)


def unigram_nats(counts_V: np.ndarray, slot_R: np.ndarray) -> np.ndarray:
    """Return the unigram loss [V] of each id in nats, from counts plus ½ for every row in use; infinity for ids without a row.

    counts_V: token counts of the training text. slot_R: id of each row of the slot, -1 for a row without one.
    """
    used = slot_R[slot_R >= 0]
    smoothed = counts_V[used] + 0.5
    nats_V = np.full(len(counts_V), np.inf)
    nats_V[used] = -np.log(smoothed / smoothed.sum())
    return nats_V


def _by_pass(of_blocks: np.ndarray) -> np.ndarray:
    """Reorder [M, G, Q, …] to [G, B, …]: the blocks of each micro-batch next to each other."""
    blocks, passes, per_block, *rest = of_blocks.shape
    return of_blocks.swapaxes(0, 1).reshape(passes, blocks * per_block, *rest)
