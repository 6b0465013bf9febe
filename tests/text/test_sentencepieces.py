from __future__ import annotations

import pytest
import sentencepiece
from helpers.texts import ENGLISH

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError
from pangu_sigma.text.sentencepieces import (
    BYTE_NAMES,
    alpha_model,
    append_bytes,
    compact_model,
    parse_model,
    piece_names,
    read_english,
    restricted_model,
    train_english,
)
from pangu_sigma.text.tokenizer import Tokenizer


def test_learning_twice_gives_the_same_bytes(english):
    assert train_english(ENGLISH, 300) == english


def test_too_little_text_gives_fewer_pieces():
    assert 259 <= len(parse_model(train_english(["ab"], 300)).pieces) < 300
    assert len(parse_model(train_english([], 300)).pieces) == 259


def test_fewer_pieces_than_characters_are_refused_with_the_number_that_is_enough():
    with pytest.raises(
        ConfigError, match=r"english_pieces=3 is too few: this text has 7 char.* raise it to at least 7"
    ):
        train_english(["ab cd ef"] * 20, 3)
    train_english(["ab cd ef"] * 20, 7)


@pytest.mark.parametrize("texts", [[], ["ab"], ["line\nline"]])
def test_blanks_come_back_though_the_text_that_was_learned_from_had_none(texts):
    english = train_english(texts, 300)
    tokenizer = Tokenizer.whole(alpha_model(), english, 1)
    domain = Domain(0, "en", "text", "en", 0, 0, 1, 1.0)
    assert tokenizer.decode(tokenizer.encode("a  b ▁\n c ", domain)) == "a  b ▁\n c "


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
    long = "ab" * 70  # its length takes two bytes, and so do many before it
    model = compact_model([("a", -1.0), ("b", -1.0), ("ab", -0.5), (long, -2.0)], kind)
    names = piece_names(model)
    restricted = restricted_model(model, [name not in ("ab", long) for name in names])
    processor = sentencepiece.SentencePieceProcessor(model_proto=restricted)
    assert [names[i] for i in processor.encode("abc")] == ["a", "b", "<0x63>"]
    assert piece_names(restricted) == names
    assert restricted_model(model, [True] * len(names)) == model


def test_restricting_by_bytes_is_restricting_by_protobuf():
    expected = parse_model(alpha_model())
    keep = [i % 3 == 0 for i in range(len(expected.pieces))]
    for piece, kept in zip(expected.pieces, keep, strict=True):
        if not kept:
            piece.type = piece.UNUSED
    assert parse_model(restricted_model(alpha_model(), keep)) == expected


def test_a_model_whose_pieces_are_elsewhere_is_refused():
    with pytest.raises(DataError, match="pieces do not come first"):
        restricted_model(alpha_model()[-1000:], [True])


def test_bytes_behind_a_model_spell_what_is_unknown_and_change_no_other_id():
    kind = parse_model(alpha_model()).trainer_spec.model_type
    model = parse_model(compact_model([("a", -1.0), ("ab", -0.5)], kind))
    del model.pieces[1:257]
    model.trainer_spec.byte_fallback = False
    plain = model.SerializeToString()
    names = [piece.piece for piece in parse_model(append_bytes(plain, ["<CN>"])).pieces]
    assert names == [*(piece.piece for piece in model.pieces), "<CN>", *BYTE_NAMES]
    before, after = (
        sentencepiece.SentencePieceProcessor(model_proto=proto) for proto in (plain, append_bytes(plain, ["<CN>"]))
    )
    assert [names[i] for i in before.encode("ab一a<CN>")][:3] == ["ab", "<unk>", "a"]
    assert [names[i] for i in after.encode("ab一a")] == ["ab", "<0xE4>", "<0xB8>", "<0x80>", "a"]
    assert after.encode("aab\n") == before.encode("aab\n")
