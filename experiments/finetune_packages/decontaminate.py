"""Examples of a task in splits, of which none repeats an earlier one, nor, the first aside, the text of pre-training.

Texts are compared by their words: case, punctuation, blanks and the marks of access keys (&File, _File) do not count, and a Chinese
character is a word. A message stands in a text if its words do, one after another.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from pangu_sigma.data.packaged.packages import Archive

LONGEST = 160
"""Characters of the longest prompt or response that is kept."""

Words = tuple[str, ...]

_WORDS = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_FIRST = 3
"""Words by which a message is looked up."""


@dataclass(frozen=True)
class Example:
    """An example of a task. message: the text that must not stand elsewhere. origin: package and file."""

    prompt: str
    response: str
    message: str
    origin: str


@dataclass
class TaskSplit:
    """A split of a task's examples. archives: where they come from. counts: what became of those that there were."""

    archives: Sequence[Archive]
    examples: list[Example]
    counts: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, Any]:
        """Provenance and counts, as values for JSON."""
        return {
            "sources": [archive.source.model_dump() for archive in self.archives],
            "examples": len(self.examples),
            "left_out": dict(self.counts),
        }


class Occurrences:
    """Which of some messages stand in texts. `found` grows with each text that is looked into."""

    def __init__(self, messages: Iterable[Words]):
        self.found: set[Words] = set()
        self._by_first: dict[Words, set[Words]] = defaultdict(set)
        for message in messages:
            self._by_first[message[:_FIRST]].add(message)
        self._by_first.pop((), None)

    def look_into(self, text: str) -> None:
        """Look into one text."""
        words = words_of(text)
        for at in range(len(words)):
            for length in range(1, _FIRST + 1):
                for message in self._by_first.get(words[at : at + length], ()):
                    if words[at : at + len(message)] == message:
                        self.found.add(message)


def words_of(text: str) -> Words:
    """The words of a text, for comparisons."""
    return tuple(_WORDS.findall(text.replace("&", "").replace("_", "").casefold()))


def decontaminate(splits: Sequence[TaskSplit], pretraining: Iterable[str], most: Sequence[int]) -> None:
    """Leave out what is too long or there twice, and of later splits what stands in an earlier one or in pre-training.

    Out goes an example whose message stands in a text of pre-training, or in a prompt or response of an earlier split, and one
    whose prompt is one of an earlier split, word by word. pretraining: its texts. most: the number of examples that are kept of
    each split at most, drawn with a fixed seed. What is left out is counted.
    """
    for each in splits:
        _keep_once(each)
    seen = Occurrences(words_of(example.message) for each in splits[1:] for example in each.examples)
    for text in tqdm(pretraining, desc="messages in pre-training", unit="text", disable=None):
        seen.look_into(text)
    earlier: list[Example] = []
    for each, wanted in zip(splits, most, strict=True):
        if earlier:
            _leave_out(each, "in the text of pre-training", seen.found, set())
            own = Occurrences(words_of(example.message) for example in each.examples)
            for example in earlier:
                own.look_into(example.prompt)
                own.look_into(example.response)
            prompts = {words_of(example.prompt) for example in earlier}
            _leave_out(each, "in an earlier split", own.found, prompts)
        _draw(each, wanted)
        earlier += each.examples


def _keep_once(each: TaskSplit) -> None:
    """Keep the first of examples with one prompt, or one message; none that is long, or has no word that could be compared."""
    kept: list[Example] = []
    seen: set[tuple[str, Words]] = set()
    for example in each.examples:
        keys = {("prompt", words_of(example.prompt)), ("message", words_of(example.message))}
        if max(len(example.prompt), len(example.response)) > LONGEST:
            each.counts["too long"] += 1
        elif not all(words for _, words in keys):
            each.counts["no word"] += 1
        elif keys & seen:
            each.counts["twice"] += 1
        else:
            kept.append(example)
        seen |= keys
    each.examples = kept


def _leave_out(each: TaskSplit, why: str, messages: set[Words], prompts: set[Words]) -> None:
    kept = [e for e in each.examples if words_of(e.message) not in messages and words_of(e.prompt) not in prompts]
    each.counts[why] += len(each.examples) - len(kept)
    each.examples = kept


def _draw(each: TaskSplit, most: int) -> None:
    each.counts["more than wanted"] += max(len(each.examples) - most, 0)
    if len(each.examples) > most:
        chosen = sorted(random.Random(0).sample(range(len(each.examples)), most))
        each.examples = [each.examples[number] for number in chosen]


def as_line(example: Example) -> dict[str, str]:
    """The line of an example in a task's file."""
    return {key: value for key, value in asdict(example).items() if key != "message"}
