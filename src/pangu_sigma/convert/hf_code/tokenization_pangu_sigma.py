"""Tokenizer of a PanGu-Σ for transformers 5, with sentencepiece and jieba: ids of a text depend on its domain.

Chinese is read as PanGu-α does: jieba's words, joined by "▁", with ▂ and ▃ for blanks and newlines; English and code by pieces of
their own. A piece that the domain's embedding slot has no row for is not used; what no piece spells, bytes do. The patterns by
which a text is cut, and the domains, are in tokenizer_config.json.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jieba
import sentencepiece
from transformers import PreTrainedTokenizer
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

ALPHA, TAGS, FIRST_BYTE, FIRST_ENGLISH = (
    40_000,
    {"zh": 40_000, "en": 40_001, "python": 40_002, "java": 40_003},
    40_004,
    40_260,
)
UNK, CONTROLS = 0, {*range(1, 10)} - {3, 4}
BLANK, SPACE, NEWLINE = "▁▂▃"
CONTROL, UNUSED, BYTE = 3, 5, 6
"""Types of a piece in a SentencePiece model."""


class PanGuSigmaTokenizer(PreTrainedTokenizer):
    """Tokenizer of one domain at a time: `domain`, which may be set, or be an argument of a call.

    With add_special_tokens a text begins with its language's tag, in domains whose texts did so in training; a text that is
    trained on ends with <eot>, which is yours to add. Names of special tokens in a text are these tokens; with
    split_special_tokens they are text.
    """

    vocab_files_names = {  # noqa: RUF012 (transformers reads it of the class)
        "vocabulary_file": "tokenizer/vocabulary.json",
        "alpha_file": "tokenizer/pangu_alpha.model",
        "english_file": "tokenizer/english.model",
    }
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocabulary_file: str,
        alpha_file: str,
        english_file: str,
        domains: list[dict[str, Any]],
        patterns: dict[str, str],
        domain: str | None = None,
        **options: Any,
    ):
        self._files = [Path(file) for file in (vocabulary_file, alpha_file, english_file)]
        vocabulary, alpha, english = (file.read_bytes() for file in self._files)
        self._reader = Reader(vocabulary, alpha, english, patterns)
        self.domains, self.patterns = domains, patterns
        self.domain = domain or domains[0]["name"]
        special = {"eos_token": "<eot>", "pad_token": "<pad>", "unk_token": "<unk>"}
        saved_options = {"domains": domains, "patterns": patterns, "domain": self.domain}
        super().__init__(**{**special, **options}, **saved_options)

    @property
    def domain(self) -> str:
        """Name of the domain of a call that names none."""
        return self._domain

    @domain.setter
    def domain(self, name: str) -> None:
        self._domain = self._named_domain(name)["name"]

    def _named_domain(self, name: str) -> dict[str, Any]:
        for domain in self.domains:
            if domain["name"] == name:
                return domain
        raise ValueError(
            f"domain={name!r} is unknown; this tokenizer has {', '.join(domain['name'] for domain in self.domains)}"
        )

    @property
    def vocab_size(self) -> int:
        return len(self._reader.names)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._reader.id_of_name)

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Mark special tokens of the vocabulary. Raises NotImplementedError for any other token: it would have no row."""
        for token in map(str, new_tokens):
            if token not in self._reader.id_of_name or token not in self.all_special_tokens:
                raise NotImplementedError(
                    f"{token!r} cannot be added: the vocabulary is fixed, in embedding slots; `pangu-sigma inherit` changes it"
                )
        return super()._add_tokens(new_tokens, special_tokens)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._reader.names[i] for i in self._reader.ids(text, self._named_domain(self.domain))]

    def _convert_token_to_id(self, token: str) -> int:
        return self._reader.id_of_name.get(token, UNK)

    def _convert_id_to_token(self, index: int) -> str:
        return self._reader.names[self._reader.checked_id(index)]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._reader.text([self._convert_token_to_id(token) for token in tokens], True)

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        **options: Any,
    ) -> Any:
        """Encode a text straight to ids; lists of texts come here one by one."""
        if not isinstance(text, str):
            return super()._encode_plus(
                text, text_pair, add_special_tokens, padding_strategy, truncation_strategy, **options
            )
        if text_pair is not None:
            raise ValueError("a pair of texts is not taken; join them to one text")
        domain = self._named_domain(options.pop("domain", None) or self.domain)
        names = "|".join(map(re.escape, self.all_special_tokens))
        is_whole = options.pop("split_special_tokens", self.split_special_tokens)
        parts = [text] if is_whole else re.split(f"({names})", text)
        ids = self._reader.tag("".join(parts[::2]), domain) if add_special_tokens else []
        for i, part in enumerate(parts):  # every other one is a special token
            ids += [self._convert_token_to_id(part)] if i % 2 else self._reader.ids(part, domain)
        return self.prepare_for_model(
            ids,
            add_special_tokens=False,
            padding=padding_strategy.value,
            truncation=truncation_strategy.value,
            prepend_batch_axis=True,
            **options,
        )

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, *_: Any, **__: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self._reader.text([int(i) for i in ids], skip_special_tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the three files of the vocabulary, by their names."""
        targets = [Path(save_directory, name) for name in self.vocab_files_names.values()]
        for source, target in zip(self._files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)
        return tuple(map(str, targets))


class Reader:
    """Converter of texts to ids and back, by the vocabulary's files. names: unique name of each id."""

    def __init__(self, vocabulary: bytes, alpha: bytes, english: bytes, patterns: dict[str, str]):
        self._alpha, self._english, content = alpha, english, json.loads(vocabulary)
        self._slots = [set(ids) for ids in content["slots"]]
        self._chinese_run, self._han, self._latin, self._vanishing = (
            re.compile(patterns[name]) for name in ("chinese_run", "han", "latin_word", "vanishing")
        )
        pieces: list[str] = content["pieces"]
        self._surfaces = [_surface(i, piece) for i, piece in enumerate(pieces)]
        self.names: list[str] = []
        self.id_of_name: dict[str, int] = {}
        for i, piece in enumerate(pieces):
            self.names.append(f"{piece}<{i}>" if piece in self.id_of_name else piece)
            self.id_of_name[self.names[i]] = i
        self._models: dict[tuple[int, bool], sentencepiece.SentencePieceProcessor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_jieba"} | {"_models": {}}

    @cached_property
    def _jieba(self) -> jieba.Tokenizer:
        """Tokenizer of this object alone: words that are added to jieba elsewhere would change the ids."""
        return jieba.Tokenizer()

    @cached_property
    def _english_ids(self) -> list[int]:
        """Id of each piece of the English model: PanGu-α's id if it has a piece of the same bytes. Of several such pieces those
        without ▁ come first, then the lowest id."""
        ids: dict[bytes, int] = {}
        order = sorted(range(ALPHA), key=lambda i: (i in self._ids_with_blank, i))
        for i in (*order, *range(FIRST_ENGLISH, len(self.names))):
            if i != UNK and self._surfaces[i]:
                ids.setdefault(self._surfaces[i], i)
        model = sentencepiece.SentencePieceProcessor(model_proto=self._english)
        names = model.id_to_piece(list(range(257, model.get_piece_size())))  # 0: unknown, 1 … 256: bytes
        return [UNK, *range(FIRST_BYTE, FIRST_ENGLISH), *(ids[name.replace(BLANK, " ").encode()] for name in names)]

    @cached_property
    def _ids_with_blank(self) -> set[int]:
        return {i for i in range(ALPHA) if BLANK in self.names[i]}

    def ids(self, text: str, domain: dict[str, Any]) -> list[int]:
        """Return the ids of a text in a domain. Raises UnicodeEncodeError for half a surrogate pair, which is no character."""
        text.encode()  # raises for half a surrogate pair
        if not text:
            return []
        if domain["language"] == "zh":
            return self._chinese(text, domain["slot"])
        if domain["language"] != "mixed":
            return self._not_chinese(text, domain["slot"])
        ids: list[int] = []
        for i, part in enumerate(self._chinese_run.split(text)):  # every other one is Chinese
            ids += (self._chinese if i % 2 else self._not_chinese)(part, domain["slot"]) if part else []
        return ids

    def tag(self, text: str, domain: dict[str, Any]) -> list[int]:
        """Return the id of the language tag as a list, [] without a tag. In code the language is the domain's, in a bilingual
        domain that of most words."""
        if domain["format"] == "text":
            return []
        if domain["format"] == "code":
            return [TAGS[domain["language"]]]
        return [TAGS["zh" if len(self._han.findall(text)) > len(self._latin.findall(text)) else "en"]]

    def checked_id(self, i: int) -> int:
        """Return the id `i` if it is in the vocabulary. Raises ValueError for others, such as the -100 of labels."""
        if 0 <= i < len(self.names):
            return i
        raise ValueError(f"token id {i} is not in the vocabulary, 0 … {len(self.names) - 1}; leave it out")

    def text(self, ids: Iterable[int], skip_special: bool) -> str:
        """Return the text of ids. skip_special: False to show control pieces and tags, which have no surface, by their names. Bytes
        that are no UTF-8 become U+FFFD."""
        ids = map(self.checked_id, ids)
        surfaces = (self._surfaces[i] or (b"" if skip_special else self.names[i].encode()) for i in ids)
        return b"".join(surfaces).decode("utf-8", errors="replace")

    def _not_chinese(self, text: str, slot: int) -> list[int]:
        """Encode English or code. A ▁ of the text is spelled by bytes: SentencePiece would take it for a blank."""
        blank_bytes, model, ids = [FIRST_BYTE + value for value in BLANK.encode()], self._model(slot, False), []
        for i, part in enumerate(text.split(BLANK)):
            ids += (blank_bytes if i else []) + [self._english_ids[piece] for piece in model.encode(part)]
        return ids

    def _words(self, text: str) -> str:
        """Return jieba's words joined with blanks; blanks and newlines of the text become ▂ and ▃."""
        return " ".join(word.replace(" ", SPACE).replace("\n", NEWLINE) for word in self._jieba.cut(text))

    def _chinese(self, text: str, slot: int) -> list[int]:
        """Encode Chinese. Characters that PanGu-α's model drops, and a ▂ or ▃ of the text, are spelled by bytes."""
        model, ids = self._model(slot, True), list[int]()
        for i, part in enumerate(self._vanishing.split(text)):  # every other one vanishes
            ids += [FIRST_BYTE + value for value in part.encode()] if i % 2 else model.encode(self._words(part))
        return ids

    def _model(self, slot: int, alpha: bool) -> sentencepiece.SentencePieceProcessor:
        """Return PanGu-α's or the English SentencePiece model, without pieces that the slot has no row for. alpha: PanGu-α's."""
        if (slot, alpha) not in self._models:
            ids, model = (range(ALPHA), self._alpha) if alpha else (self._english_ids, self._english)
            proto = b"".join(_restrict(model, (i in self._slots[slot] for i in ids)))
            if alpha:  # protobuf merges messages that are joined: more pieces, and the trainer's byte_fallback
                added_pieces = [(tag, CONTROL) for tag in ("<CN>", "<EN>", "<Python>", "<Java>")]
                added_pieces += [(f"<0x{value:02X}>", BYTE) for value in range(256)]
                proto += b"".join(_piece(name, kind) for name, kind in added_pieces) + b"\x12\x03\x98\x02\x01"
            self._models[slot, alpha] = sentencepiece.SentencePieceProcessor(model_proto=proto)
        return self._models[slot, alpha]


def _surface(i: int, piece: str) -> bytes:
    """Return the bytes that id `i` with this piece decodes to; none for controls and tags."""
    if i == UNK:
        return "⁇".encode()
    if i in CONTROLS or ALPHA <= i < FIRST_BYTE:
        return b""
    if FIRST_BYTE <= i < FIRST_ENGLISH:
        return bytes([i - FIRST_BYTE])
    if i >= FIRST_ENGLISH:
        return piece.replace(BLANK, " ").encode()
    return piece.replace(BLANK, "").replace(SPACE, " ").replace(NEWLINE, "\n").encode()


def _piece(name: str, kind: int) -> bytes:
    """Return a piece with score 0 as an entry of SentencePiece's protobuf message."""
    body = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(body)]) + body


def _restrict(model: bytes, keep: Iterable[bool]) -> Iterator[bytes]:
    """Yield the parts of a SentencePiece model whose pieces are unused where `keep` has False: the type UNUSED is appended to
    the piece's message, in which the last value of a field counts. A message is a byte 0x0a, its length as a varint, a body."""
    position = 0
    for is_kept in keep:
        size, shift, start = model[position + 1] & 0x7F, 7, position + 2
        while model[start - 1] & 0x80:
            size, shift, start = size | (model[start] & 0x7F) << shift, shift + 7, start + 1
        position = start + size
        body = model[start:position] + (b"" if is_kept else bytes([0x18, UNUSED]))
        length = bytes([len(body)]) if len(body) < 0x80 else bytes([len(body) & 0x7F | 0x80, len(body) >> 7])
        yield b"\x0a" + length + body
    yield model[position:]
