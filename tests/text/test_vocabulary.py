from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.text.sentencepieces import alpha_model, parse_model, piece_names
from pangu_sigma.text.vocabulary import (
    ALPHA_SIZE,
    EOT,
    FIRST_BYTE,
    FIRST_ENGLISH,
    PAD,
    TAG_OF_LANGUAGE,
    UNK,
    WORD_MARK,
    choose_rows,
    matching_ids,
    special_ids,
)


def test_ids_are_alpha_then_tags_then_bytes_then_english(vocabulary):
    alpha = [piece.piece for piece in parse_model(alpha_model()).pieces]
    assert vocabulary.pieces[:ALPHA_SIZE] == alpha
    specials = [vocabulary.pieces[i] for i in (UNK, 3, 4, PAD, EOT, WORD_MARK)]
    assert specials == ["<unk>", "▃", "▂", "<pad>", "<eot>", "▁"]
    assert [vocabulary.pieces[i] for i in TAG_OF_LANGUAGE.values()] == ["<CN>", "<EN>", "<Python>", "<Java>"]
    assert vocabulary.pieces[FIRST_BYTE] == "<0x00>"
    assert vocabulary.pieces[FIRST_ENGLISH - 1] == "<0xFF>"
    assert len(vocabulary) > FIRST_ENGLISH


def test_english_pieces_are_matched_by_what_they_stand_for():
    shared = [b""] * 40_260
    parent = SimpleNamespace(surfaces=[*shared, b"the", b"cat"])
    child = SimpleNamespace(surfaces=[*shared, b"cat", b"dog", b"the"])
    ids = matching_ids(parent, child)
    assert ids[:40_260].tolist() == list(range(40_260))
    assert ids[40_260:].tolist() == [40_261, -1, 40_260]


def test_no_english_surface_is_there_twice(vocabulary, english):
    surfaces = vocabulary.surfaces[FIRST_ENGLISH:]
    assert len(set(surfaces)) == len(surfaces)
    assert not set(surfaces) & set(vocabulary.surfaces[:ALPHA_SIZE])
    names = piece_names(english)
    assert [vocabulary.surfaces[i] for i in vocabulary.english_ids[257:]] == [
        name.replace("▁", " ").encode() for name in names[257:]
    ]


def test_shared_surfaces_use_alphas_undecorated_piece(vocabulary, english):
    names = piece_names(english)
    assert vocabulary.pieces[vocabulary.english_ids[names.index("\n")]] == "▃"
    assert vocabulary.pieces[vocabulary.english_ids[names.index("▁")]] == "▂"
    assert vocabulary.pieces[vocabulary.english_ids[names.index("a")]] == "a"


def test_a_slot_holds_specials_then_the_most_frequent_pieces(vocabulary, domains):
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    counts[[20_000, 20_001, 30_000]] = [5, 5, 9]
    counts[FIRST_ENGLISH] = 100
    zh, en = domains.in_slot(0), domains.in_slot(1)
    special = special_ids(zh)
    rows = choose_rows(vocabulary, zh, counts, 600)
    assert rows.dtype == np.int32
    assert rows.shape == (600,)
    assert rows[: len(special)].tolist() == special
    assert FIRST_ENGLISH not in rows
    words = [i for i in rows.tolist() if i in (20_000, 20_001, 30_000)]
    assert words == [30_000, 20_000, 20_001]
    assert set(range(FIRST_BYTE, FIRST_ENGLISH)) <= set(special_ids(en))
    assert len(set(rows.tolist())) == 600


def test_characters_of_common_words_come_before_the_words(vocabulary, domains):
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    word = vocabulary.pieces.index("▁中国")
    counts[word] = 1_000
    rows = choose_rows(vocabulary, domains.in_slot(0), counts, 600).tolist()
    position = {vocabulary.pieces[i]: row for row, i in enumerate(rows)}
    assert max(position["中"], position["国"]) < position["▁中国"]


def test_a_slot_larger_than_its_languages_need_is_padded(vocabulary, domains):
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    rows = choose_rows(vocabulary, domains.in_slot(1), counts, 5_000)
    used = rows[rows >= 0]
    assert set(used.tolist()) == set(vocabulary.english_ids) | set(special_ids(domains.in_slot(1)))
    assert (rows[len(used) :] == -1).all()


def test_too_few_rows_are_refused(vocabulary, domains):
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    with pytest.raises(
        ConfigError, match=r"model\.slot_rows=300: the slot of en, code needs 265 rows.*raise it to 530"
    ):
        choose_rows(vocabulary, domains.in_slot(1), counts, 300)
    with pytest.raises(ConfigError, match=r"model\.slot_rows=300: the slot of zh needs 266 rows.*raise it to 532"):
        choose_rows(vocabulary, domains.in_slot(0), counts, 300)
