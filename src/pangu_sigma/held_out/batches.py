"""Held-out batches, and their text: tokens, bytes, unigram loss. Samples are spread evenly over the text of each domain. They are
the same in every evaluation and on any number of ranks, so a loss is always a mean over the same tokens. A *unit* is a sample, or
a block of samples, for which a graph returns one loss.

Shape suffixes: G micro-batches of an update, B sequences of a micro-batch, S sequence length, M blocks of a batch, Q sequences of a
block, V vocabulary, U units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.data.prepared import unigram_nats
from pangu_sigma.held_out.losses import HeldOutLoss, ratio
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


@dataclass(frozen=True)
class HeldOutText:
    """Held-out text of a domain.

    digest: hash of the ids of its samples, of their pieces, and of the unit size. Losses with equal digests are comparable; more
        pieces in a vocabulary, or more rows in a slot, do not change it.
    units_U3: for each unit, the number of predicted tokens, their bytes, and their unigram loss in nats.
    """

    digest: str
    units_U3: np.ndarray

    def loss(self, nats_U: np.ndarray) -> HeldOutLoss:
        """Return the loss on the text. nats_U: loss of each unit, summed over its tokens."""
        tokens_U, bytes_U, unigram_U = self.units_U3.T
        return HeldOutLoss(nats_U, tokens_U, bytes_U, ratio(unigram_U, tokens_U).mean, self.digest)


class HeldOut:
    """Held-out batches that one rank evaluates, with the domains of its group of ranks. Two methods return the same samples:
    `domain_batches` for a forward graph, which returns a loss per sample, and `training_shaped_batches` for the graph of a training
    step, which returns a loss per block of samples. A sample or block with one loss is called a unit.

    block: number of samples of a block, over all micro-batches.
    """

    def __init__(self, batches: BatchLoader, sample_limit: int):
        """batches: loader of the held-out split. sample_limit: maximum number of samples of a domain."""
        self._batches, self._config = batches, batches.config
        # the data-parallel rank of each sequence of a batch, then of those only that the group of this rank reads
        takers_B = data_rank_of_sequences(self._config)
        self._takers_B = takers_B[np.isin(takers_B, takers_of_group(self._config, batches.rank))]
        self._blocks = self._config.data.domains_per_step // self._config.parallel.groups
        self._per_block = self._config.train.batch_size // self._config.data.domains_per_step
        self._sample_counts = [min(count, sample_limit) for count in batches.samples.counts]
        self.block = self._config.train.accumulation * self._per_block

    @cached_property
    def domains(self) -> list[int]:
        """Indices of the domains of the rank's group: domain set by domain set (`domain_sets`), ascending within a set."""
        sets = self._batches.domain_sets
        return [domain for set_index in share_of(self._config, self._batches.rank).sets for domain in sets[set_index]]

    def numbers(self, domain: int) -> np.ndarray:
        """Return the numbers of a domain's samples that are evaluated, ascending: the middles of equal stretches of its text."""
        return evenly_spread(self._batches.samples.counts[domain], self._sample_counts[domain])

    def digests(self, size: int = 1) -> dict[str, str]:
        """Return the hash of each domain's text, of units of `size` samples (HeldOutText.digest)."""
        pieces, digests_by_domain = self._batches.tokenizer.vocabulary.pieces, {}
        for domain in self._batches.domains:
            digest, is_used_V = xxhash.xxh3_64(str(size).encode()), np.zeros(len(pieces), bool)
            for number in self.numbers(domain.index).tolist():
                ids_S1 = self._batches.samples.read(domain.index, number)
                digest.update(ids_S1.tobytes())
                is_used_V[ids_S1] = True
            # pieces of used ids alone, so that a vocabulary with more pieces has the same digest
            digest.update("\0".join(pieces[token] for token in np.flatnonzero(is_used_V)).encode())
            digests_by_domain[domain.name] = digest.hexdigest()
        return digests_by_domain

    def texts(self, size: int = 1) -> dict[str, HeldOutText]:
        """Return the text of each domain, of units of `size` samples. Raises DataError for damaged token counts."""
        samples, tokenizer, texts = self._batches.samples, self._batches.tokenizer, {}
        bytes_V, counts_DV, digests = bytes_of_ids(tokenizer), samples.frequencies(), self.digests(size)
        for domain, counts_V in zip(self._batches.domains, counts_DV, strict=True):
            unigram_V, sums = unigram_nats(counts_V, tokenizer.slot_rows[domain.slot]), []
            for number in self.numbers(domain.index).tolist():
                ids = samples.read(domain.index, number)
                predicted = ids[1:][counted(ids, tokenizer) & samples.counted(domain.index, number)]
                sums.append((len(predicted), bytes_V[predicted].sum(), unigram_V[predicted].sum()))
            units_U3 = np.add.reduceat(np.reshape(sums, (-1, 3)), np.arange(0, len(sums), size))
            texts[domain.name] = HeldOutText(digests[domain.name], units_U3)
        return texts

    def domain_batches(self, domain: int) -> list[HeldOutBatch]:
        """Return this rank's share of a domain's batches, for a graph with a loss per sample; [] for a domain of other ranks.

        The last batch is padded with samples of weight 0.
        """
        if domain not in self.domains:
            return []
        count, size, batches = self._sample_counts[domain], self._blocks * self._per_block, []
        # all blocks of a batch are of this domain; own_sequences: indices of this rank's sequences in the batch of its group
        domains_M, own_sequences = np.full(self._blocks, domain), self._batches.own(self._takers_B)
        for first in range(0, count, size):
            numbers_MGQ = np.arange(first, first + size).reshape(self._blocks, 1, -1)
            batch = self._batch(domains_M, numbers_MGQ, np.full(self._blocks, count))
            units_U = _by_micro_batch(numbers_MGQ)[0, own_sequences].clip(max=count - 1)
            batches.append(HeldOutBatch(batch, np.full(len(own_sequences), domain), units_U))
        return batches

    def training_shaped_batches(self) -> list[HeldOutBatch]:
        """Return this rank's batches in the shape of training, for a graph with a loss per block: all samples of M domains of its
        group, then of the next M. Padding has weight 0. Raises the errors of the planner, as training does."""
        micro_batches, batches, size = self._config.train.accumulation, [], self.block
        for first in range(0, len(self.domains), self._blocks):
            measured = self.domains[first : first + self._blocks]
            count_M = np.array([self._sample_counts[d] for d in measured] + [0] * (self._blocks - len(measured)))
            # blocks beyond the measured domains have other domains of the group, with weight 0
            domains_M = np.array([*measured, *(d for d in self.domains if d not in measured)][: self._blocks])
            for start in range(0, count_M.max(), size):
                numbers_GQ = np.arange(start, start + size).reshape(micro_batches, -1)
                batch = self._batch(domains_M, np.tile(numbers_GQ, (self._blocks, 1, 1)), count_M)
                domains_U = domains_M[batch.blocks]
                # a block of padding has weight 0, and counts as its domain's last unit
                last_U = (np.array(self._sample_counts)[domains_U] - 1) // size
                batches.append(HeldOutBatch(batch, domains_U, np.minimum(start // size, last_U)))
        return batches

    def _batch(self, domains_M: np.ndarray, numbers_MGQ: np.ndarray, count_M: np.ndarray) -> Batch:
        """Return a batch of samples. domains_M: domain of each block. numbers_MGQ: indices of the samples in `numbers(domain)`.
        count_M: number of evaluated samples; an index from there on is padding: the domain's last sample, with weight 0."""
        samples, sample_keys = self._batches.samples, []
        for domain, numbers_GQ in zip(domains_M.tolist(), numbers_MGQ, strict=True):
            numbers = self.numbers(domain)
            sample_keys += [(domain, n) for n in numbers[numbers_GQ.ravel().clip(max=len(numbers) - 1)].tolist()]
        arrays = (np.stack([read(*key) for key in sample_keys]) for read in (samples.read, samples.counted))
        ids_GBS1, counted_GBS = (_by_micro_batch(array.reshape(*numbers_MGQ.shape, -1)) for array in arrays)
        counted_GBS &= _by_micro_batch(numbers_MGQ < count_M[:, None, None])[..., None]
        return self._batches.assemble(ids_GBS1, domains_M, counted_GBS=counted_GBS, taker_B=self._takers_B)


def samples_of_evaluation(config: Config, all: bool = False) -> int:
    """Return the maximum number of samples per domain that an evaluation reads. all: False for as many as during training."""
    return np.iinfo(np.int64).max if all else config.train.eval_batches * config.train.batch_size


def evenly_spread(total: int, count: int) -> np.ndarray:
    """Return `count` of the numbers 0 … total - 1, ascending: the middles of equal stretches."""
    return (2 * np.arange(count) + 1) * total // (2 * count)


def bytes_of_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Return the bytes of each token id's text, [V], for bits per byte."""
    return np.array([len(surface) for surface in tokenizer.vocabulary.surfaces])


def counted(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Return the mask of predicted tokens that count, bool [S]: tokens of the same document as the token before. ids: [S + 1]."""
    return (ids[:-1] != tokenizer.eot) & (ids[1:] != tokenizer.pad)


def _by_micro_batch(array_of_blocks: np.ndarray) -> np.ndarray:
    """Reorder [M, G, Q, …] to [G, B, …]: the blocks of each micro-batch next to each other."""
    blocks, micro_batches, per_block, *other_axes = array_of_blocks.shape
    return array_of_blocks.swapaxes(0, 1).reshape(micro_batches, blocks * per_block, *other_axes)
