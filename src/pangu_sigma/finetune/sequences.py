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
        """samples: the tokenized samples of each domain. training: of a dev set, the training samples."""
        self._length, self._pad, self._vocabulary = config.model.seq_length, tokenizer.pad, tokenizer.size
        self._training = training or self
        self._samples, together = samples, config.tuning.packed
        lengths = [[len(s.ids_T) for s in of_domain] for of_domain in samples]
        self._packs = [pack(of_domain, self._length + 1, together) for of_domain in lengths]
        self.counts = [len(of_domain) for of_domain in self._packs]
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
        answers = [[s.ids_T[s.answer :] for s in of_domain] for of_domain in self._training._samples]
        ids = [np.concatenate(of_domain or [np.array([], int)]) for of_domain in answers]
        return np.stack([np.bincount(of_domain, minlength=self._vocabulary) for of_domain in ids])

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


def pack(lengths: Sequence[int], most: int, together: bool) -> list[list[int]]:
    """Pack samples into sequences of at most `most` ids, and return the sample numbers of each sequence.

    together: False to give each sample its own sequence. Sequences, and the samples in them, are in the order of the file.
    """
    if not together:
        return [[number] for number in range(len(lengths))]
    sequences: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # free ids and number of each sequence, ascending
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(rooms, (lengths[number], -1))
        if at == len(rooms):
            room, sequence = most, len(sequences)
            sequences.append([])
        else:
            room, sequence = rooms.pop(at)
        sequences[sequence].append(number)
        bisect.insort(rooms, (room - lengths[number], sequence))
    return sorted(sorted(sequence) for sequence in sequences)
