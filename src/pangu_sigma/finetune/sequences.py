"""Samples of a fine-tuning task as sequences, with the loss on the answers only. Samples in a sequence do not attend to each other.

Shape suffixes: T ids of a sample, S sequence, V vocabulary, D domains.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Samples
from pangu_sigma.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedSample:
    """Tokenized sample. ids_T: prompt, answer, <eot>. answer: index of the answer's start. cut: True if the prompt was cut."""

    ids_T: np.ndarray
    answer: int
    cut: bool

    @property
    def counted(self) -> int:
        """Number of ids in the loss: the answer and its <eot>."""
        return len(self.ids_T) - self.answer


class TaskSamples(Samples):
    """Sequences of a fine-tuning task: one or several packed samples, then <pad>. A domain may have no sequences."""

    def __init__(
        self,
        config: Config,
        samples: Sequence[list[EncodedSample]],
        tokenizer: Tokenizer,
        training: TaskSamples | None = None,
    ):
        """samples: the tokenized samples of each domain. training: the training samples, if `samples` are a dev set."""
        self._length, self._pad, self._vocabulary = config.model.seq_length, tokenizer.pad, tokenizer.size
        self._training = training or self
        self._samples, together = samples, config.tuning.packed
        lengths = [[len(s.ids_T) for s in domain_samples] for domain_samples in samples]
        self._packs = [pack(domain_lengths, self._length + 1, together) for domain_lengths in lengths]
        self.counts = [len(packs) for packs in self._packs]
        self.weights = [float(count) for count in self.counts]

    def read(self, domain: int, number: int) -> np.ndarray:
        """Return the token ids of one sequence of a domain, int32 [S + 1]."""
        ids = np.full(self._length + 1, self._pad, np.int32)
        packed = np.concatenate([s.ids_T for s in self._pack(domain, number)])
        ids[: len(packed)] = packed
        return ids

    def counted(self, domain: int, number: int) -> np.ndarray:
        """Return a sequence's loss mask, bool [S]: True where the next token belongs to an answer or is its <eot>."""
        counted, start = np.zeros(self._length + 1, bool), 0
        for sample in self._pack(domain, number):
            counted[start + sample.answer : start + len(sample.ids_T)] = True
            start += len(sample.ids_T)
        return counted[1:]

    def frequencies(self) -> np.ndarray:
        """Return the token counts [D, V] of the training samples' answers, for the unigram baseline."""
        answers_D = [[s.ids_T[s.answer :] for s in samples] for samples in self._training._samples]
        ids_D = [np.concatenate(answers or [np.array([], int)]) for answers in answers_D]
        return np.stack([np.bincount(ids, minlength=self._vocabulary) for ids in ids_D])

    @cached_property
    def hash(self) -> str:
        """Hash over the sequences and their loss masks."""
        digest = xxhash.xxh3_128()
        for domain, count in enumerate(self.counts):
            for number in range(count):
                digest.update(np.int64(domain).tobytes() + self.read(domain, number).tobytes())
                digest.update(self.counted(domain, number).tobytes())
        return digest.hexdigest()

    def _pack(self, domain: int, number: int) -> list[EncodedSample]:
        return [self._samples[domain][n] for n in self._packs[domain][number]]


def pack(lengths: Sequence[int], limit: int, together: bool) -> list[list[int]]:
    """Pack samples into sequences of at most `limit` ids, longest sample first, and return the sample numbers of each sequence.

    lengths: ids of each sample. together: False to give each sample its own sequence. Results are in the order of the file.
    """
    if not together:
        return [[number] for number in range(len(lengths))]
    sequences: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # free ids and number of each sequence, ascending
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        best = bisect.bisect_left(rooms, (lengths[number], -1))  # the fullest sequence that has room
        if best == len(rooms):
            room, sequence = limit, len(sequences)
            sequences.append([])
        else:
            room, sequence = rooms.pop(best)
        sequences[sequence].append(number)
        bisect.insort(rooms, (room - lengths[number], sequence))
    return sorted(sorted(sequence) for sequence in sequences)
