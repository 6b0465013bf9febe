"""Best-fit packing of samples into sequences, longest samples first."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


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
    return sorted(sorted(each) for each in sequences)
