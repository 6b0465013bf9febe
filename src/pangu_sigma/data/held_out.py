"""Held-out batches: samples spread evenly over the text of each domain, the same every time and on any number of ranks, so that the
loss of a domain is always a mean over the same tokens; and what those tokens are held against: their bytes, and counting.

Shape suffixes: G micro-batches of an update, B sequences of one, S sequence, M blocks of a batch, Q sequences of a block,
D domains, V vocabulary, R rows of a slot, U units: the samples of which a graph gives a loss each, or blocks of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import Domain
from pangu_sigma.parallel.layout import room_of, share_of, takers
from pangu_sigma.rre.capacity import Room


@dataclass(frozen=True)
class HeldOutBatch:
    """A batch, and what the losses are of that a graph gives for it.

    domains_U: the domain of each. units_U: its number among the units of that domain, on every rank the same. What fills a batch up
    weighs nothing, whichever unit it has.
    """

    batch: Batch
    domains_U: np.ndarray
    units_U: np.ndarray


class HeldOut:
    """The held-out batches of the domains of one rank's group: this rank's share of them, in two forms with the same samples.

    `of_domain` is for a graph of the forward pass alone, which gives a loss for each sequence, so that a unit is a sample;
    `like_training` is for the graph of a training step, which gives a loss for each block: `block` samples are a unit.
    """

    def __init__(self, batches: Batches, most: int):
        """batches: those of the held-out split. most: a domain gives at most this many samples."""
        self._batches, self._config = batches, batches.config
        everybody = takers(self._config)
        self._takers_B = everybody[np.isin(everybody, batches.planner.group)]
        self._blocks = self._config.data.domains_per_step // self._config.parallel.groups
        self._per_block = self._config.train.batch_size // self._config.data.domains_per_step
        self._wanted = [min(count, most) for count in batches.samples.counts]
        self.block = self._config.train.accumulation * self._per_block

    @cached_property
    def domains(self) -> list[int]:
        """Domains of the rank's group: set by set, each ascending."""
        sets = self._batches.domain_sets
        return [domain for s in share_of(self._config, self._batches.rank).sets for domain in sets[s]]

    def numbers(self, domain: int) -> np.ndarray:
        """Numbers of the samples that are read of a domain, ascending: its text in as many equal parts, the middle of each."""
        count, wanted = self._batches.samples.counts[domain], self._wanted[domain]
        return (2 * np.arange(wanted) + 1) * count // (2 * wanted)

    def units(self, size: int) -> list[int]:
        """Number of units of each domain, of `size` samples each."""
        return [-(-wanted // size) for wanted in self._wanted]

    def digests(self, size: int = 1) -> dict[str, str]:
        """A hash by domain over samples, tokenizer and size of a unit: losses are of the same units where it is equal."""
        found = {}
        for domain in self._batches.domains:
            digest = xxhash.xxh3_64(f"{self._batches.tokenizer.hash} {domain.slot} {size}".encode())
            for number in self.numbers(domain.index).tolist():
                digest.update(self._batches.samples.read(domain.index, number).tobytes())
            found[domain.name] = digest.hexdigest()
        return found

    def of_domain(self, domain: int) -> list[HeldOutBatch]:
        """This rank's share of the batches of one domain, all of whose blocks are of it; none for a domain of another group.

        The last batch is filled up with samples of weight 0. No row is dropped: the capacity is what the batches of all domains of
        the group need.
        """
        if domain not in self.domains:
            return []
        domains_M = np.full(self._blocks, domain)
        own, last, found = self._batches.planner.own(self._takers_B), self._wanted[domain] - 1, []
        for numbers_MGQ in self._numbers(domain):
            ids_GBS1, counted_GBS = self._read(domains_M, numbers_MGQ)
            counted_GBS &= _by_pass(numbers_MGQ <= last)[..., None]
            room = Room(self._needed_capacity)
            batch = self._batches.assemble_share(ids_GBS1, domains_M, self._takers_B, room, counted_GBS)
            units_U = _by_pass(numbers_MGQ)[0, own].clip(max=last)
            found.append(HeldOutBatch(batch, np.full(len(own), domain), units_U))
        return found

    def like_training(self) -> list[HeldOutBatch]:
        """Batches that the graph of training takes: as many micro-batches, a domain for each block, and as much room for an expert.

        Where a domain has no more samples, some of weight 0 fill its block. Raises CapacityError as training does.
        """
        passes, found, size = self._config.train.accumulation, [], self.block
        for first in range(0, len(self.domains), self._blocks):
            own = self.domains[first : first + self._blocks]
            wanted_M = np.array([self._wanted[d] for d in own] + [0] * (self._blocks - len(own)))
            domains_M = np.array([*own, *(d for d in self.domains if d not in own)][: self._blocks])
            for start in range(0, wanted_M.max(), size):
                numbers_GQ = np.arange(start, start + size).reshape(passes, -1)
                numbers_MGQ = np.tile(numbers_GQ, (self._blocks, 1, 1))
                ids_GBS1, counted_GBS = self._read(domains_M, numbers_MGQ)
                counted_GBS &= _by_pass(numbers_MGQ < wanted_M[:, None, None])[..., None]
                room = room_of(self._config, self._batches.planner.layout)
                batch = self._batches.assemble_share(ids_GBS1, domains_M, self._takers_B, room, counted_GBS)
                domains_U = domains_M[batch.blocks]
                last_U = np.array(self.units(size))[domains_U] - 1
                found.append(HeldOutBatch(batch, domains_U, np.minimum(start // size, last_U)))
        return found

    def _numbers(self, domain: int) -> Iterator[np.ndarray]:
        """Positions in `numbers` that each batch of one domain holds, [M, 1, Q]; some past the last."""
        size = self._blocks * self._per_block
        for first in range(0, self._wanted[domain], size):
            yield np.arange(first, first + size).reshape(self._blocks, 1, -1)

    def _read(self, domains_M: np.ndarray, numbers_MGQ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids [G, B, S + 1] of the samples of each block, and which positions count [G, B, S]; past the end of a domain its last
        one."""
        samples, chosen = self._batches.samples, []
        for domain, numbers_GQ in zip(domains_M.tolist(), numbers_MGQ, strict=True):
            found = self.numbers(domain)
            chosen += [(domain, n) for n in found[numbers_GQ.ravel().clip(max=len(found) - 1)].tolist()]
        ids, counted = (np.stack([read(*each) for each in chosen]) for read in (samples.read, samples.counted))
        return _by_pass(ids.reshape(*numbers_MGQ.shape, -1)), _by_pass(counted.reshape(*numbers_MGQ.shape, -1))

    @cached_property
    def _needed_capacity(self) -> int:
        """The capacity that the batches of all domains of the group need; 0 where the layout has none."""
        batches = self._batches
        if batches.planner.layout == "local" or not batches.table.layers:
            return 0
        most = 0
        for domain in self.domains:
            domains_M = np.full(self._blocks, domain)
            for numbers_MGQ in self._numbers(domain):
                experts_NGBS = batches.experts(self._read(domains_M, numbers_MGQ)[0][..., :-1], domains_M)
                most = max(most, batches.planner.fullest(experts_NGBS, self._takers_B))
        return most


def samples_of_evaluation(config: Config) -> int:
    """Number of samples that an evaluation reads of each domain at most, while a run trains."""
    return config.train.eval_batches * config.train.batch_size


class Yardstick:
    """What the loss of held-out tokens is held against: their bytes of text, and what counting loses on the same tokens."""

    def __init__(self, tokenizer: Tokenizer, domains: Iterable[Domain], frequencies_DV: np.ndarray):
        """frequencies_DV: token counts of the training text."""
        self._rows, self._slots = tokenizer.slot_rows, np.array([domain.slot for domain in domains])
        self._bytes_V = np.array([len(surface) for surface in tokenizer.vocabulary.surfaces])
        self._unigram_DV = np.stack(
            [unigram_nats(counts_V, self._rows[s]) for counts_V, s in zip(frequencies_DV, self._slots, strict=True)]
        )

    def of(self, held_out: HeldOutBatch) -> np.ndarray:
        """Number of tokens that count in each unit, bytes of their surfaces, and nats that counting needs for them: [U, 3]."""
        batch = held_out.batch
        passes, sequences = batch.labels_GBS.shape[:2]
        domains_B = np.repeat(batch.domains_M[batch.blocks], sequences // len(batch.blocks))
        ids_GBS = self._rows[self._slots[domains_B][:, None], batch.labels_GBS]
        counted_GBS = batch.weights_GBS > 0
        values = (np.ones_like(ids_GBS), self._bytes_V[ids_GBS], self._unigram_DV[domains_B[:, None], ids_GBS])
        units = len(held_out.units_U)
        return np.stack([np.where(counted_GBS, v, 0).reshape(passes, units, -1).sum((0, 2)) for v in values], axis=-1)


def unigram_nats(counts_V: np.ndarray, slot_R: np.ndarray) -> np.ndarray:
    """Nats [V] of each id under its frequency, plus ½ for every row in use of a slot; infinity for ids without a row.

    counts_V: token counts of the training text. slot_R: ids of the rows, -1 where none is.
    """
    used = slot_R[slot_R >= 0]
    smoothed = counts_V[used] + 0.5
    nats_V = np.full(len(counts_V), np.inf)
    nats_V[used] = -np.log(smoothed / smoothed.sum())
    return nats_V


def _by_pass(of_blocks: np.ndarray) -> np.ndarray:
    """[M, G, Q, …] → [G, B, …]: the blocks of each micro-batch next to each other."""
    blocks, passes, per_block, *rest = of_blocks.shape
    return of_blocks.swapaxes(0, 1).reshape(passes, blocks * per_block, *rest)
