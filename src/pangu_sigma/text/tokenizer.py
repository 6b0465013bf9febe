"""Tokenizer of the merged vocabulary, restricted for each domain to the ids that its embedding slot has rows for.

Chinese text is encoded as PanGu-α does (jieba words, then its SentencePiece model), with its ids. Characters that PanGu-α encodes
as <unk> or drops are spelled by bytes, so that decoding returns every character or its NFKC form. English text and code are encoded
by English pieces and bytes, and decode exactly. `segmentation` decides which model reads which text.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError
from pangu_sigma.sections import MOST_ROWS
from pangu_sigma.text.documents import HALF_PAIR, Document, Segments
from pangu_sigma.text.segmentation import Run, folded_characters, is_chinese, runs_of
from pangu_sigma.text.sentencepieces import META, alpha_model, append_bytes, compact_model, restricted_model
from pangu_sigma.text.vocabulary import (
    ALPHA_SIZE,
    EOT,
    FIRST_BYTE,
    FIRST_ENGLISH,
    PAD,
    TAG_OF_LANGUAGE,
    TAGS,
    UNK,
    Vocabulary,
)

SegmentedText = tuple[tuple[str, tuple[Run, ...]], ...]
"""Segments of a document after word segmentation: for each segment, a pair of its language (or "") and its runs of text."""

MODELS = ("pangu_alpha.model", "english.model")
"""Files with the SentencePiece models of a tokenizer."""
FILES = (*MODELS, "vocabulary.json")
"""Files of a tokenizer's folder."""

_META_BYTES = np.array([FIRST_BYTE + value for value in META.encode()], np.int32)
_EOT, _NO_IDS = np.array([EOT], np.int32), np.empty(0, np.int32)
_FORMAT = 2
"""Version of the folder and of the encoding, part of the hash; others are refused."""


class Tokenizer:
    """Tokenizer of the merged vocabulary, with the embedding rows of every slot.

    size: number of ids V. hash: sha256, in hex, of everything that decides ids and rows.
    slot_rows: [slots, R] row → id, -1 beyond the rows in use. row_of: [slots, V] id → row, -1 if the slot has no row for it.
    Raises ValueError if a slot lacks rows for the bytes.
    """

    pad, eot, unk = PAD, EOT, UNK

    def __init__(self, alpha: bytes, english: bytes, slot_rows: np.ndarray) -> None:
        """Make a tokenizer. alpha, english: SentencePiece models, as the bytes of their files. slot_rows: as in the class."""
        self._alpha, self._english = alpha, english
        self.vocabulary = _vocabulary(alpha, english)
        self._english_ids = np.array(self.vocabulary.english_ids, np.int32)
        self.size = len(self.vocabulary)
        self.slot_rows = np.ascontiguousarray(slot_rows, dtype=np.int32)
        self.row_of = _inverse(self.slot_rows, self.size)
        if (self.row_of[:, FIRST_BYTE:FIRST_ENGLISH] < 0).any():
            raise ValueError("every slot needs rows for the bytes")
        self.hash = self._hash()
        self._has_every_id = (self.row_of >= 0).all(axis=1).tolist()
        self._models: dict[tuple[int | None, bool], sentencepiece.SentencePieceProcessor] = {}

    @classmethod
    def whole(cls, alpha: bytes, english: bytes, slots: int) -> Tokenizer:
        """Make a tokenizer whose slots have a row for every id: row i for id i. alpha, english: SentencePiece models."""
        size = len(_vocabulary(alpha, english))
        return cls(alpha, english, np.tile(np.arange(size, dtype=np.int32), (slots, 1)))

    def with_rows(self, slot_rows: np.ndarray) -> Tokenizer:
        """Return a tokenizer of the same ids with other embedding rows: slot_rows as in the class."""
        return Tokenizer(self._alpha, self._english, slot_rows)

    def encode(self, text: str, domain: Domain) -> list[int]:
        """Encode text for a domain, without language tag and <eot>. Raises DataError for a lone surrogate."""
        ids: list[int] = self.encode_runs(runs_of(text, domain.language), domain).tolist()
        return ids

    def encode_runs(self, runs: Iterable[Run], domain: Domain) -> np.ndarray:
        """Encode stretches of text that `runs_of` returns, int32 [T]. Raises DataError for a lone surrogate."""
        ids = [_NO_IDS]
        for run in runs:
            try:
                ids.append(self._encode_run(run, self._model(domain.slot, run.alpha)))
            except RuntimeError:  # SentencePiece's, which does not say why
                if half := HALF_PAIR.search(run.text):
                    raise DataError(
                        f"text has half a surrogate pair, {half[0]!r}, or a byte that is not UTF-8; take it out or decode anew"
                    ) from None
                raise
        return np.concatenate(ids)

    def changed_by_normalisation(self, segments: SegmentedText) -> int:
        """Return the number of characters that decoding does not restore, because they are folded to their NFKC form."""
        return folded_characters("".join(run.text for _, runs in segments for run in runs if run.alpha))

    def sample(self, document: Document, domain: Domain) -> list[int]:
        """Encode a document as token ids for training.

        Format `text`: ids, <eot>. `bilingual`: language tag and ids of each side, <eot>. `code`: <Python> or <Java>, ids, <eot>.
        """
        ids: list[int] = self.sample_runs(segment(document.segments, domain), domain).tolist()
        return ids

    def sample_runs(self, segments: SegmentedText, domain: Domain) -> np.ndarray:
        """Return the token ids of a training sample, with <eot>, int32 [T], for a document that `segment` has already cut."""
        return np.concatenate([*self._tagged(segments, domain), _EOT])

    def prompt(self, text: str | Segments, domain: Domain) -> list[int]:
        """Return the token ids of a prompt for generation, equal to the ids of `sample` for the same text, without <eot>.

        text: plain text, or pairs (language, text): in a bilingual domain, (("zh", "你好"), ("en", "")) asks for the English side.
        In a code domain, "" gives the language tag alone.
        """
        segments = (("", text),) if isinstance(text, str) else text
        ids: list[int] = np.concatenate([_NO_IDS, *self._tagged(segment(segments, domain), domain)]).tolist()
        return ids

    def rows(self, ids: Sequence[int] | np.ndarray, domain: Domain) -> np.ndarray:
        """Return the row of each id in a domain's embedding slot, int32 [T]. Raises ConfigError for an id without a row."""
        ids_T = np.asarray(ids, np.int64)
        unknown_ids = ids_T[(ids_T < 0) | (ids_T >= self.size)]
        if len(unknown_ids):  # a negative one would silently be counted from the end
            raise ConfigError(f"token id {unknown_ids[0]} does not exist; this model has the ids 0 … {self.size - 1}")
        rows_T = self.row_of[domain.slot, ids_T]
        if (rows_T < 0).any():
            raise ConfigError(
                f"token id {ids_T[rows_T < 0][0]} has no row in the embedding slot of domain {domain.name}; "
                "encode the text with the tokenizer of this model and domain"
            )
        return rows_T

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text. Control tokens and tags decode to nothing; invalid UTF-8 becomes U+FFFD."""
        surfaces = self.vocabulary.surfaces
        return b"".join(surfaces[i] for i in ids).decode("utf-8", errors="replace")

    def save_models(self, folder: Path) -> None:
        """Write both SentencePiece models, which decide the ids, to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, model in zip(MODELS, (self._alpha, self._english), strict=True):
            (folder / name).write_bytes(model)

    def save(self, folder: Path) -> None:
        """Write the tokenizer to a folder: both SentencePiece models and vocabulary.json."""
        self.save_models(folder)
        content = {
            "format": _FORMAT,
            "hash": self.hash,
            "size": self.size,
            "rows_per_slot": self.slot_rows.shape[1],
            "slots": [rows[rows >= 0].tolist() for rows in self.slot_rows],
            "pieces": self.vocabulary.pieces,
        }
        (folder / FILES[2]).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Load a tokenizer from a folder that `save` wrote. Raises DataError if the folder is incomplete or damaged."""
        fix = "remove the folder and run prepare-data again"
        try:
            alpha, english = ((folder / name).read_bytes() for name in FILES[:2])
            content = json.loads((folder / FILES[2]).read_text(encoding="utf-8"))
            slot_count, row_count = len(content["slots"]), content["rows_per_slot"]
            if type(row_count) is not int or slot_count * max(row_count, 0) > MOST_ROWS:
                raise ValueError(f"{slot_count} slots of {row_count!r} rows")
            slot_rows = np.full((slot_count, row_count), -1, dtype=np.int32)
            for rows, ids in zip(slot_rows, content["slots"], strict=True):
                rows[: len(ids)] = ids
            tokenizer = cls(alpha, english, slot_rows)
        except OSError as error:
            raise DataError(f"tokenizer {error.filename}: {error.strerror}; {fix}") from error
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, RecursionError) as error:
            raise DataError(f"tokenizer {folder}: damaged ({error}); {fix}") from error
        if content.get("format") != _FORMAT or tokenizer.hash != content.get("hash"):
            raise DataError(
                f"tokenizer {folder}: its files give the hash {tokenizer.hash[:12]}…, vocabulary.json says "
                f"{str(content.get('hash'))[:12]}…; a file was changed, run prepare-data again"
            )
        return tokenizer

    def _tagged(self, segments: SegmentedText, domain: Domain) -> Iterator[np.ndarray]:
        """Yield the ids of each segment, after the ids of its language tag if it has one."""
        for language, runs in segments:
            if language:
                yield np.array([TAG_OF_LANGUAGE[language]], np.int32)
            yield self.encode_runs(runs, domain)

    def _encode_run(self, run: Run, model: sentencepiece.SentencePieceProcessor) -> np.ndarray:
        if run.spelled:
            return FIRST_BYTE + np.frombuffer(run.text.encode(), np.uint8).astype(np.int32)
        return _piece_ids(run.text, model) if run.alpha else self._encode_english(run.text, model)

    def _encode_english(self, text: str, model: sentencepiece.SentencePieceProcessor) -> np.ndarray:
        """Encode English text or code. A ▁ of the text, which SentencePiece would take for a blank, becomes its bytes."""
        parts = [self._english_ids[_piece_ids(part, model)] for part in text.split(META)]
        return np.concatenate([ids for part in parts for ids in (_META_BYTES, part)][1:])  # ▁ between the parts

    def _model(self, slot: int, alpha: bool) -> sentencepiece.SentencePieceProcessor:
        """Return the SentencePiece model of a slot, made at first use; slots with a row for every id share one. alpha: True for
        PanGu-α's model, False for the English one."""
        key = (None if self._has_every_id[slot] else slot, alpha)
        if key not in self._models:
            model, ids = (self._alpha, slice(ALPHA_SIZE)) if alpha else (self._english, self.vocabulary.english_ids)
            if not self._has_every_id[slot]:
                model = restricted_model(model, self.row_of[slot, ids] >= 0)
            proto = append_bytes(model, TAGS) if alpha else model
            self._models[key] = sentencepiece.SentencePieceProcessor(model_proto=proto)
        return self._models[key]

    def _hash(self) -> str:
        """Return the hash of everything that decides ids and rows: the format, both models, and the rows of the slots."""
        digest = hashlib.sha256(f"pangu-sigma tokenizer {_FORMAT}\n".encode())
        for content in (self._alpha, self._english, self.slot_rows.astype("<i4").tobytes()):
            digest.update(len(content).to_bytes(8, "little"))  # so that the border of two contents counts
            digest.update(content)
        return digest.hexdigest()


class AlphaTokenizer(Tokenizer):
    """PanGu-α's tokenizer, for a domain of Chinese: row i of its one slot is piece i. Raises DataError without pcl-pangu.

    It reads text as PanGu-α does: what no piece spells is <unk>, and characters that its normaliser drops are gone. Tags and bytes
    of the merged vocabulary have ids, and no rows.
    """

    def __init__(self) -> None:
        pieces, english = alpha_model(), compact_model([])
        super().__init__(pieces, english, Tokenizer.whole(pieces, english, 1).slot_rows)
        # tags and bytes keep their ids, and lose their rows
        self.slot_rows = np.ascontiguousarray(self.slot_rows[:, :ALPHA_SIZE])
        self.row_of[:, ALPHA_SIZE:] = -1
        self._plain = sentencepiece.SentencePieceProcessor(model_proto=pieces)  # without pieces for bytes

    def _encode_run(self, run: Run, model: sentencepiece.SentencePieceProcessor) -> np.ndarray:
        return _piece_ids(" ".join(run.text) if run.spelled else run.text, self._plain)


def _piece_ids(text: str, model: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    """Return the ids of a text's pieces, int32 [T]. A list of Python's integers would take half as long again."""
    ids: np.ndarray = model.encode(text, return_type="numpy")
    return ids


@functools.lru_cache(maxsize=2)
def _vocabulary(alpha: bytes, english: bytes) -> Vocabulary:
    """Parse two models into a vocabulary. It is cached, because `prepare-data` makes two tokenizers of the same models."""
    return Vocabulary(alpha, english)


def segment(segments: Segments, domain: Domain) -> SegmentedText:
    """Return for each segment of a document a pair: the language of its tag, "" for none, and its runs of text (`runs_of`)."""
    return tuple((tag_language(language, text, domain), runs_of(text, domain.language)) for language, text in segments)


def tag_language(language: str, text: str, domain: Domain) -> str:
    """Return the language of a segment's tag, "" for none. language: stated one, or "". Raises ConfigError if code has no tag."""
    if domain.format == "text":
        return ""
    if domain.format == "bilingual":
        return language or ("zh" if is_chinese(text) else "en")
    if domain.language not in ("python", "java"):
        raise ConfigError(
            f"domains: {domain.name} has format: code and language: {domain.language}; there is a tag for python and "
            "java only, so use one of them, or format: text"
        )
    return domain.language


def _inverse(slot_rows: np.ndarray, size: int) -> np.ndarray:
    """Return the row of each id in each slot, [slots, size], -1 for none. slot_rows: id of each row of each slot, -1 for none.
    size: number of ids."""
    row_of = np.full((len(slot_rows), size), -1, dtype=np.int32)
    for slot, ids in enumerate(slot_rows):
        row_of[slot, ids[ids >= 0]] = np.flatnonzero(ids >= 0)
    return row_of


def copy_tokenizer(folder: Path, to: Path) -> None:
    """Copy the files of a tokenizer's folder to the new folder `to`, and nothing else that lies there. Raises OSError."""
    to.mkdir()
    for name in FILES:
        shutil.copyfile(folder / name, to / name)
