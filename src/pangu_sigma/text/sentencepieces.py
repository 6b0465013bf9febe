"""SentencePiece models: find PanGu-α's model, train or import English pieces, restrict a model to some pieces."""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError

# MindSpore's messages load only into protobuf's Python implementation, which MindSpore selects if it is imported first. protobuf
# selects once per process, so this module must select the same.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

META = "\u2581"
"""SentencePiece's character for a blank, ▁."""
BYTE_NAMES = [f"<0x{value:02X}>" for value in range(256)]
"""SentencePiece's names of the 256 byte pieces, <0x00> … <0xFF>."""

_PIECE, _UNUSED = b"\x0a", b"\x18\x05"
"""Protobuf's tag before each piece of a model, and the field of a piece that gives it the type UNUSED."""

_TRAINING_LINE = 2_000
"""Maximum characters of a line of training text for the English pieces; SentencePiece drops lines above 4,192 bytes."""


def parse_model(data: bytes) -> Any:
    """Parse a SentencePiece model file into its protobuf message. Raises DataError for data that is no model."""
    model = sentencepiece_model.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise DataError(f"not a SentencePiece model: {error}") from error
    return model


def piece_names(model: bytes) -> list[str]:
    """Return the pieces of a SentencePiece model file in the order of their ids. Raises DataError for data that is no model."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise DataError(f"not a SentencePiece model: {error}") from error
    names: list[str] = processor.id_to_piece(list(range(processor.get_piece_size())))
    return names


@functools.cache
def alpha_model() -> bytes:
    """Read PanGu-α's SentencePiece model from the installed package pcl-pangu, without importing it. Raises DataError."""
    package = importlib.util.find_spec("pcl_pangu")
    for folder in (package and package.submodule_search_locations) or []:
        path = Path(folder) / "tokenizer/bpe_4w_pcl/vocab.model"
        if path.is_file():
            return path.read_bytes()
    raise DataError("PanGu-α's vocabulary is not installed; run: pip install pcl-pangu==1.2.6.2")


def train_english(texts: Iterable[str], pieces: int) -> bytes:
    """Train `pieces` English pieces (SentencePiece unigram) and return them as a compact model (see `compact_model`).

    Single and repeated blanks are pieces, digits are split, a newline is always a piece of its own, and other characters fall back
    to bytes. The same texts give the same model. Too little text gives fewer pieces. Raises ConfigError for fewer pieces than the
    text has characters.
    """
    buffer = io.BytesIO()
    lines = _training_lines(texts)
    first_line = next(lines, None)
    if first_line is None:  # SentencePiece cannot train on nothing
        return compact_model([])
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first_line], lines),
            model_writer=buffer,
            model_type="unigram",
            vocab_size=pieces + 257,  # with <unk> and the 256 bytes
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            character_coverage=0.9995,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=2,  # fixed: the sums of the EM steps depend on it
            minloglevel=2,
        )
    except RuntimeError as error:
        if (match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))) is None:
            raise
        required, key = int(match[1]) - 257, f"vocabulary.english_pieces={pieces}"
        problem = f"{key} is too few: this text has {required} characters that need a piece"
        raise ConfigError(f"{problem}; raise it to at least {required}") from None
    model = parse_model(buffer.getvalue())
    return compact_model(_normal_pieces(model), model.trainer_spec.model_type)


def read_english(path: Path) -> bytes:
    """Read a user's SentencePiece model (unigram or BPE) and return its pieces as a compact model (see `compact_model`).

    Its normaliser, dummy prefix and control symbols are dropped, so that text decodes exactly. Raises ConfigError if unusable.
    """
    key = f"vocabulary.english_model={str(path)!r}"
    try:
        model = parse_model(path.read_bytes())
    except (OSError, DataError) as error:
        reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else error
        raise ConfigError(f"{key}: {reason}; give a SentencePiece .model") from error
    model_type = model.trainer_spec.model_type
    if model_type not in (sentencepiece_model.TrainerSpec.UNIGRAM, sentencepiece_model.TrainerSpec.BPE):
        raise ConfigError(f"{key}: is a word or character model; give a unigram or BPE model")
    return compact_model(_normal_pieces(model), model_type)


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of texts, long ones in parts of at most _TRAINING_LINE characters."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _TRAINING_LINE):
                yield line[start : start + _TRAINING_LINE]


def _normal_pieces(model: Any) -> list[tuple[str, float]]:
    """Return (name, score) of each piece of text, without control symbols, bytes and newlines."""
    normal = sentencepiece_model.ModelProto.SentencePiece.NORMAL
    return [(p.piece, p.score) for p in model.pieces if p.type == normal and "\n" not in p.piece]


def compact_model(pieces: list[tuple[str, float]], model_type: int = sentencepiece_model.TrainerSpec.UNIGRAM) -> bytes:
    """Make a SentencePiece model without normalisation: <unk>, the 256 bytes, a newline, then `pieces` (name, score).

    A blank is added if `pieces` has none: byte fallback would spell it as ▁. model_type: SentencePiece's, such as UNIGRAM or BPE.
    """
    piece_types = sentencepiece_model.ModelProto.SentencePiece
    model = sentencepiece_model.ModelProto()
    model.trainer_spec.model_type = model_type
    model.trainer_spec.byte_fallback = True
    if META not in dict(pieces):
        pieces = [*pieces, (META, min((score for _, score in pieces), default=0.0) - 1.0)]
    model.trainer_spec.vocab_size = 258 + len(pieces)  # <unk>, 256 bytes, newline
    model.trainer_spec.bos_id = model.trainer_spec.eos_id = model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.pieces.add(piece="<unk>", score=0.0, type=piece_types.UNKNOWN)
    for name in BYTE_NAMES:
        model.pieces.add(piece=name, score=0.0, type=piece_types.BYTE)
    model.pieces.add(piece="\n", score=0.0, type=piece_types.NORMAL)
    for piece, score in pieces:
        model.pieces.add(piece=piece, score=score, type=piece_types.NORMAL)
    return model.SerializeToString(deterministic=True)


def restricted_model(model: bytes, keep: Iterable[bool]) -> bytes:
    """Return a SentencePiece model restricted to the pieces to keep: the others are marked unused, ids stay the same.

    keep: for each piece, True to keep it. The mark is appended to the bytes of the piece's protobuf message, in which the last
    value of a field counts: Python objects for PanGu-α's 40,000 pieces would take a second. Raises DataError for a file that
    does not begin with its pieces.
    """
    parts, position = [], 0
    for is_kept in keep:
        if model[position : position + 1] != _PIECE:
            raise DataError("not a SentencePiece model: its pieces do not come first; take the file from a copy")
        size, begin = _read_varint(model, position + 1)
        position = begin + size
        piece = model[begin:position] + (b"" if is_kept else _UNUSED)
        parts += [_PIECE, _write_varint(len(piece)), piece]
    return b"".join([*parts, model[position:]])


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the number of variable length (varint) at a position of a protobuf message, and the position behind the number.
    protobuf's own reader is private."""
    value = shift = 0
    while data[position] & 0x80:
        value |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | data[position] << shift, position + 1


def _write_varint(value: int) -> bytes:
    """Return a number as protobuf's bytes of variable length (varint): seven bits a byte, the lowest first."""
    if value < 0x80:
        return bytes([value])
    return bytes([value & 0x7F | 0x80]) + _write_varint(value >> 7)


def append_bytes(model: bytes, controls: Iterable[str]) -> bytes:
    """Append control pieces and the 256 bytes to a SentencePiece model, so that bytes spell characters that would be <unk>.

    Other characters are encoded as before. The model is not parsed: protobuf merges messages whose bytes are joined.
    """
    piece_types = sentencepiece_model.ModelProto.SentencePiece
    extension = sentencepiece_model.ModelProto()
    extension.trainer_spec.byte_fallback = True
    for name in controls:
        extension.pieces.add(piece=name, score=0.0, type=piece_types.CONTROL)
    for name in BYTE_NAMES:
        extension.pieces.add(piece=name, score=0.0, type=piece_types.BYTE)
    return model + extension.SerializeToString(deterministic=True)
