from __future__ import annotations

import pytest
import sentencepiece
from helpers.texts import ENGLISH

from pangu_sigma.config import ConfigError
from pangu_sigma.data.sentencepieces import (
    alpha_model,
    compact_model,
    learn_english,
    parse_model,
    read_english,
    restricted_model,
)


def test_learning_twice_gives_the_same_bytes(english):
    assert learn_english(ENGLISH, 300) == english


def test_too_little_text_gives_fewer_pieces():
    assert 258 <= len(parse_model(learn_english(["ab"], 300)).pieces) < 300
    assert len(parse_model(learn_english([], 300)).pieces) == 258


def test_a_users_model_loses_its_normaliser_but_keeps_its_pieces(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(ENGLISH).split("\n")),
        model_prefix=str(tmp_path / "user"),
        vocab_size=200,
        model_type="bpe",
        minloglevel=2,
    )
    model = read_english(tmp_path / "user.model")
    assert "▁the" in [piece.piece for piece in parse_model(model).pieces]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert processor.decode(processor.encode("  Ｔhe  fox\n")) == "  Ｔhe  fox\n"


def test_files_that_are_no_model_are_refused(tmp_path):
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(ConfigError, match=r"vocabulary\.english_model=.*text\.model.*not a SentencePiece model"):
        read_english(tmp_path / "text.model")
    with pytest.raises(ConfigError, match=r"vocabulary\.english_model=.*cannot be read"):
        read_english(tmp_path / "none.model")


def test_restricted_models_use_kept_pieces_only():
    kind = parse_model(alpha_model()).trainer_spec.model_type
    model = parse_model(compact_model([("a", -1.0), ("b", -1.0), ("ab", -0.5)], kind))
    names = [piece.piece for piece in model.pieces]
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=restricted_model(model, [name != "ab" for name in names])
    )
    assert [names[i] for i in processor.encode("abc")] == ["a", "b", "<0x63>"]
    assert [piece.type for piece in model.pieces] == [
        piece.type for piece in parse_model(model.SerializeToString()).pieces
    ]
