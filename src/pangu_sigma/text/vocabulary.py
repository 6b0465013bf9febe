"""Merged vocabulary (PanGu-α's pieces, language tags, bytes, English pieces) and the rows of each embedding slot.

ids      0 …  39,999   PanGu-α's pieces, unchanged, so that inherited embeddings keep their meaning
    40,000 …  40,003   language tags <CN> <EN> <Python> <Java>
    40,004 …  40,259   the 256 bytes <0x00> … <0xFF>, for characters that no piece with a row can spell
    40,260 …           English pieces that PanGu-α does not have

Every id has a *surface*, the bytes that it decodes to; decoding joins surfaces. A blank is written in two ways: in PanGu-α's
pieces "▁" only separates words and "▂" is the blank, in English pieces "▁" is the blank. An English piece whose surface is that
of a PanGu-α piece is not added again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError
from pangu_sigma.text.sentencepieces import BYTE_NAMES, META, piece_names
from pangu_sigma.text.words import NEWLINE, SPACE

UNK, NEWLINE_ID, SPACE_ID, PAD, EOT, WORD_MARK = 0, 3, 4, 6, 9, 13
"""Ids of PanGu-α's <unk> ▃ ▂ <pad> <eot>, and of the lone ▁ that PanGu-α writes before a character starting a word."""

ALPHA_SIZE = 40_000
"""Number of PanGu-α's pieces."""
TAGS = ("<CN>", "<EN>", "<Python>", "<Java>")
TAG_OF_LANGUAGE = {"zh": 40_000, "en": 40_001, "python": 40_002, "java": 40_003}
"""Language → id of its tag."""
FIRST_BYTE = ALPHA_SIZE + len(TAGS)
FIRST_ENGLISH = FIRST_BYTE + 256
"""First id of the bytes and of the English pieces."""

CHARACTER_COVERAGE = 0.999
"""Fraction of the Chinese text whose characters get rows in a slot that cannot hold every piece."""

_ALPHA_CONTROLS = range(1, 10)
"""<s> </s> ▃ ▂ <sep> <pad> <mask> <eod> <eot>: of these only ▃ and ▂ stand for text."""


class Vocabulary:
    """Merged vocabulary of PanGu-α's model and one English model.

    pieces: [V] names of the ids. surfaces: [V] bytes that the ids decode to (none for controls and tags).
    english_ids: SentencePiece id of the English model → merged id. character_ids: character → id of PanGu-α's piece for it.
    """

    def __init__(self, alpha: bytes, english: bytes) -> None:
        """Merge two SentencePiece models, given as the bytes of their files. Raises DataError if they cannot be used."""
        names = piece_names(alpha)
        if len(names) != ALPHA_SIZE:
            raise DataError(f"PanGu-α's model has {len(names)} pieces instead of {ALPHA_SIZE}; reinstall pcl-pangu")
        self.pieces = [*names, *TAGS, *BYTE_NAMES]
        self.surfaces = [_alpha_surface(i, name) for i, name in enumerate(names)]
        self.surfaces += [b""] * len(TAGS) + [bytes([value]) for value in range(256)]
        id_of_surface = self._alpha_by_surface()
        id_of_text = {surface.decode(): i for surface, i in id_of_surface.items()}
        self.character_ids = {text: i for text, i in id_of_text.items() if len(text) == 1}
        self.english_ids = self._add_english(piece_names(english), id_of_surface)

    def __len__(self) -> int:
        return len(self.pieces)

    def _add_english(self, names: list[str], id_of_surface: dict[bytes, int]) -> list[int]:
        """Add the English pieces whose surface is new, and return the merged id of every SentencePiece id of the English model."""
        ids = [UNK, *range(FIRST_BYTE, FIRST_ENGLISH)]  # every English model begins with <unk> and the 256 bytes
        for name in names[len(ids) :]:
            surface = name.replace(META, " ").encode()
            if surface not in id_of_surface:
                id_of_surface[surface] = len(self.pieces)
                self.pieces.append(name)
                self.surfaces.append(surface)
            ids.append(id_of_surface[surface])
        return ids

    def _alpha_by_surface(self) -> dict[bytes, int]:
        """Return {surface: PanGu-α's id}. If ids share a surface, the lowest one without "▁" stands for it, else the lowest."""
        id_of_surface: dict[bytes, int] = {}
        for has_word_mark in (True, False):  # the last id that is written stays
            for i in reversed(range(ALPHA_SIZE)):
                if self.surfaces[i] and (META in self.pieces[i]) is has_word_mark and i != UNK:
                    id_of_surface[self.surfaces[i]] = i
        return id_of_surface

    def producible(self, languages: Iterable[str]) -> set[int]:
        """Return the token ids that encoding text in these domain languages can produce."""
        ids: set[int] = set()
        for language in languages:
            if language in ("zh", "mixed"):
                ids.update(range(ALPHA_SIZE))
            if language != "zh":
                ids.update(self.english_ids)
        return ids


def _alpha_surface(index: int, piece: str) -> bytes:
    """Return the bytes that PanGu-α's id `index` with this piece decodes to; none for its controls."""
    if index == UNK:
        return "⁇".encode()  # what SentencePiece itself decodes <unk> to, without its blanks
    if index in _ALPHA_CONTROLS and piece not in (SPACE, NEWLINE):
        return b""
    return piece.replace(META, "").replace(SPACE, " ").replace(NEWLINE, "\n").encode()


def special_ids(domains: list[Domain]) -> list[int]:
    """Return the token ids that an embedding slot of these domains always has rows for.

    They are <unk> <pad> <eot>, newline, blank, the language tags and the 256 bytes; with Chinese also ▁ (WORD_MARK).
    """
    ids = [UNK, NEWLINE_ID, SPACE_ID, PAD, EOT]
    if any(domain.language in ("zh", "mixed") for domain in domains):
        ids.append(WORD_MARK)
    return [*ids, *range(ALPHA_SIZE, FIRST_ENGLISH)]


def matching_ids(source: Vocabulary, target: Vocabulary) -> np.ndarray:
    """Return the id in `source` of each token of `target`, -1 for none, int64 [V].

    PanGu-α's pieces, tags and bytes have the same ids everywhere; English pieces are matched by the bytes they stand for.
    """
    english = {surface: FIRST_ENGLISH + i for i, surface in enumerate(source.surfaces[FIRST_ENGLISH:])}
    return np.array([*range(FIRST_ENGLISH), *(english.get(s, -1) for s in target.surfaces[FIRST_ENGLISH:])])


def choose_rows(
    vocabulary: Vocabulary, domains: list[Domain], counts: np.ndarray, rows: int, kept_ids: Sequence[int] = ()
) -> np.ndarray:
    """Choose the token id of each row of one embedding slot, int32 [rows]: kept ids, special ids, characters, frequent pieces, -1.

    counts: [V] token counts of the training text of the slot's domains, encoded with the whole vocabulary. kept_ids: ids that have
    rows in any case.

    A word without a row is spelled by its characters, so characters come before frequent words (see `_characters`). Pieces are
    taken by frequency, then by id, among all that the slot's languages can produce. Raises ConfigError for too few rows.
    """
    special = special_ids(domains)
    chosen_ids = list(dict.fromkeys([*kept_ids, *special]))
    needs = f"model.slot_rows={rows}: the slot of {', '.join(d.name for d in domains)} needs"
    if rows < 2 * len(special):  # our choice: half of the rows are left for longer pieces than bytes
        purpose = "control pieces, tags and bytes alone"
        raise ConfigError(f"{needs} {len(special)} rows for {purpose}; raise it to {2 * len(special)} or more")
    if rows < len(chosen_ids):
        purpose = "vocabulary.keep, control pieces, tags and bytes"
        raise ConfigError(f"{needs} {len(chosen_ids)} rows for {purpose}; raise it to {len(chosen_ids)} or more")
    if WORD_MARK in special:  # a domain of the slot has Chinese text
        required_ids = set(chosen_ids)
        characters = [i for i in _characters(vocabulary, counts) if i not in required_ids]
        chosen_ids += characters[: (rows - len(chosen_ids)) // 2]  # half of the rows stay for longer pieces
    producible = vocabulary.producible(domain.language for domain in domains)
    others = np.array(sorted(producible.difference(chosen_ids)), dtype=np.int32)
    by_frequency = others[np.argsort(-counts[others], kind="stable")]
    used_ids = np.concatenate([np.array(chosen_ids, dtype=np.int32), by_frequency])[:rows]
    return np.pad(used_ids, (0, rows - len(used_ids)), constant_values=-1)  # -1: no token


def _characters(vocabulary: Vocabulary, counts: np.ndarray) -> list[int]:
    """Return the ids of the characters, most frequent first, that make up `CHARACTER_COVERAGE` of the text in PanGu-α's pieces.

    Without them a rare word whose piece has no row could only be spelled by bytes: 2.3% of news and review tokens at 8,192 rows,
    against 0.14% with them for 5% more tokens (measured on the packaged text).
    """
    ids = vocabulary.character_ids
    counts_of_ids: Counter[int] = Counter()
    for i in np.flatnonzero(counts[:ALPHA_SIZE]):
        for character in vocabulary.surfaces[i].decode():
            if character in ids:
                counts_of_ids[ids[character]] += int(counts[i])
    by_frequency = sorted(counts_of_ids.items(), key=lambda item: (-item[1], item[0]))
    limit = CHARACTER_COVERAGE * counts_of_ids.total()
    counts_before = np.cumsum([0] + [count for _, count in by_frequency])  # of more frequent characters
    return [i for (i, _), before in zip(by_frequency, counts_before, strict=False) if before < limit]
