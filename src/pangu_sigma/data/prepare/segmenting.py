"""Passes `segment`: blocks of documents → runs of words; and `sample`: runs → text that English pieces are learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.data.prepare.blocks import Block, Work, in_frames
from pangu_sigma.data.prepare.selection import Selection
from pangu_sigma.data.prepare.stages.stage import Stage, read_frames, write_frame
from pangu_sigma.text.documents import Segments
from pangu_sigma.text.segmentation import Run
from pangu_sigma.text.tokenizer import SegmentedText, segment

_LEARNED_FROM = 256
"""Characters of English text and code that a piece is learned from, of 4,096 pieces at least. Our choice: half as many again save
0.1 % of the tokens of other packaged text, and take half as long again."""

KeptDocument = tuple[int, int, bool, SegmentedText]
"""Kept document of a block: its number, the index of its domain, True if it is no candidate for the held-out set, and its runs."""


@dataclass(frozen=True)
class BlockItem:
    """Block with its number among all."""

    number: int
    block: Block


@dataclass(frozen=True)
class SampleItem:
    """Block, number of English runs of each domain before it, and how many of them there are for each that is taken; 0: none."""

    block: Block
    before: tuple[int, ...]
    steps: tuple[int, ...]


def segment_block(work: Work, name: str, item: BlockItem) -> np.ndarray:
    """Segment the kept documents of a block, and write them to its file .runs.

    Return, for each domain, number and characters of its English runs in documents that are certain to be trained on, int64 [D, 2].
    """
    selection: Selection = work.stage.load("selection")
    kept, uncertain = selection.of_block(work.stage, item.number), selection.uncertain(item.number)
    english = np.zeros((len(work.domains), 2), np.int64)

    def documents() -> Iterator[tuple[object, int]]:
        for number, (domain, text) in enumerate(_documents(work.stage, item.block)):
            if not kept[number]:
                continue
            segments: Segments = (("", text),) if isinstance(text, str) else text
            runs = segment(segments, work.domains[domain])
            certain = number not in uncertain
            if certain:
                texts = [run.text for _, each in runs for run in each if not run.alpha]
                english[domain] += len(texts), sum(map(len, texts))
            # plain tuples: pickle takes ten times as long for named ones
            plain = tuple((language, tuple(map(tuple, each))) for language, each in runs)
            yield (number, domain, certain, plain), sum(4 * len(text) for _, text in segments)

    with work.stage.writing(f"{item.block.name}.runs") as file:
        for some in in_frames(documents()):
            write_frame(file, some)
    return english


def _documents(stage: Stage, block: Block) -> Iterator[tuple[int, str | Segments]]:
    for some in read_frames(stage.path(f"{block.name}.documents")):
        yield from some


def kept_documents(stage: Stage, block: Block) -> Iterator[KeptDocument]:
    """Yield the kept documents of a block, segmented, in order."""
    for some in read_frames(stage.path(f"{block.name}.runs")):
        for number, domain, certain, segments in some:
            runs = tuple((language, tuple(map(Run._make, each))) for language, each in segments)
            yield number, domain, certain, runs


def sample_items(blocks: Sequence[Block], english: Sequence[np.ndarray], pieces: int) -> list[SampleItem]:
    """Return the items of the pass `sample`: as much text of every domain that has English runs, spread over its documents.

    english: results of `segment_block`. pieces: number of English pieces to learn.
    """
    counts = list(english)
    total = np.sum(counts, axis=0)
    with_text = int((total[:, 0] > 0).sum())
    most = _LEARNED_FROM * max(pieces, 4_096) // max(1, with_text)
    steps = tuple(max(1, -(-int(characters) // most)) if runs else 0 for runs, characters in total)
    before = np.cumsum([np.zeros_like(total[:, 0]), *(each[:, 0] for each in counts)], axis=0)
    return [SampleItem(block, tuple(b.tolist()), steps) for block, b in zip(blocks, before[:-1], strict=True)]


def sample_block(work: Work, name: str, item: SampleItem) -> list[list[str]]:
    """Return the text of a block that pieces are learned from, for each domain: every so many-th English run."""
    taken = [list[str]() for _ in item.steps]
    seen = list(item.before)
    for _, domain, certain, segments in kept_documents(work.stage, item.block):
        if not certain:
            continue
        for run in (run for _, runs in segments for run in runs if not run.alpha):
            if seen[domain] % item.steps[domain] == 0:
                taken[domain].append(run.text)
            seen[domain] += 1
    return taken
