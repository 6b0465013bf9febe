from __future__ import annotations

import itertools
import json
import re
import unicodedata

import numpy as np
import pytest
from helpers.strings import KINDS, itself_or_nfkc, strings
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError
from pangu_sigma.text.documents import Document
from pangu_sigma.text.segmentation import runs_of
from pangu_sigma.text.tokenizer import FILES, Tokenizer, copy_tokenizer, segment, tag_language
from pangu_sigma.text.vocabulary import ALPHA_SIZE, EOT, FIRST_BYTE, FIRST_ENGLISH, TAG_OF_LANGUAGE, UNK


@given(st.text(alphabet="的中国人民 ，。\nabc1２", max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_chinese_text_is_encoded_as_pangu_alpha_does(whole, domains, pangu_alpha, text):
    ids = whole.encode(text, domains.named("zh"))
    assert ids == pangu_alpha.encode(text)
    assert whole.decode(ids) == pangu_alpha.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_come_between_pangu_alphas_ids_and_change_none(whole, domains, pangu_alpha, kind):
    """Left out: characters that PanGu-α reads as something else, a mark of its own or a blank and an accent."""
    for text in (re.sub("[▂▃¨¯´゛ﷺ]", "", text) for text in strings(kind, 40)):
        ids = whole.encode(text, domains.named("zh"))
        assert UNK not in ids
        expected = [i for i in pangu_alpha.encode(text) if i != UNK]
        assert [i for i in ids if i < ALPHA_SIZE] == expected, repr(text)
        if "<" not in text:  # PanGu-α writes out control pieces, here they are silent
            assert whole.decode(expected) == pangu_alpha.decode(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_all_text_comes_back_exactly_or_in_chinese_runs_each_character_or_its_nfkc_form(
    whole, small, restricted, domains, kind
):
    """18 kinds x 12 strings x 4 domains x 3 sizes of slots: 2,592."""
    for text in strings(kind, 12):
        for tokenizer in (whole, small, restricted):
            for domain in domains:
                assert_it_comes_back(tokenizer, text, domain)


@given(st.text(max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_from_any_domain(whole, small, restricted, domains, text):
    for tokenizer in (whole, small, restricted):
        for domain in domains:
            assert_it_comes_back(tokenizer, text, domain)


def assert_it_comes_back(tokenizer: Tokenizer, text: str, domain: Domain) -> None:
    ids = tokenizer.encode(text, domain)
    assert UNK not in ids and (tokenizer.row_of[domain.slot, ids] >= 0).all()
    back, runs = tokenizer.decode(ids), runs_of(text, domain.language)
    assert unicodedata.normalize("NFKC", back) == unicodedata.normalize("NFKC", text)
    if not any(run.alpha for run in runs) or unicodedata.is_normalized("NFKC", text):
        assert back == text
    assert itself_or_nfkc(text).fullmatch(back), (text, back)
    lengths = [len(tokenizer.encode_runs([run], domain)) for run in runs]
    for run, first, count in zip(runs, itertools.accumulate(lengths, initial=0), lengths, strict=False):
        if not run.alpha:
            assert tokenizer.decode(ids[first : first + count]) == run.text


def test_what_has_no_row_is_spelled_by_characters_then_by_bytes(small, domains):
    zh, pieces = domains.named("zh"), small.vocabulary.pieces
    for word in ("训练", "股", "气", "模型"):
        assert small.decode(small.encode(word, zh)) == word

    def spelled(*without: str) -> list[str]:
        rows = small.slot_rows.copy()
        rows[zh.slot, [small.row_of[zh.slot, pieces.index(piece)] for piece in without]] = -1
        return [pieces[i] for i in Tokenizer(small._alpha, small._english, rows).encode("中国", zh)]

    assert spelled() == ["▁中国"]
    assert spelled("▁中国") == ["▁中", "国"]
    assert spelled("▁中国", "▁中") == ["▁", "中", "国"]
    assert spelled("▁中国", "国") == ["▁中", "<0xE5>", "<0x9B>", "<0xBD>"]


def test_a_vanishing_character_costs_its_bytes_and_nothing_else(whole, domains):
    zh = domains.named("zh")
    for c in "\t\u3000\u200b\x01▁▂▃\ufffd":
        ids = whole.encode(f"中国{c}{c}人民", zh)
        assert ids == [
            *whole.encode("中国", zh),
            *[FIRST_BYTE + b for b in (c + c).encode()],
            *whole.encode("人民", zh),
        ]


def test_a_long_text_of_vanishing_characters_takes_no_longer_than_it_is_long(whole, domains):
    text = "\t\t中\u3000国\r\n" * 5_000
    assert whole.decode(whole.encode(text, domains.named("zh"))) == text


def test_what_normalisation_changes_is_counted(whole, domains):
    zh, bilingual, en = (domains.named(name) for name in ("zh", "bilingual", "en"))
    text = "１２月，～。\t①▂ “好” ab，"
    count = lambda tokenizer, domain: tokenizer.changed_by_normalisation(segment((("", text),), domain))  # noqa: E731
    assert count(whole, zh) == 5
    assert count(whole, bilingual) == 3, "① and the last comma are in English runs"
    assert count(whole, en) == 0


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_count_is_what_does_not_come_back(whole, domains, text):
    zh = domains.named("zh")
    apart = [whole.decode(whole.encode(c, zh)) != c for c in text]
    assert whole.changed_by_normalisation(segment((("", text),), zh)) == sum(apart)


@pytest.mark.parametrize("name", ["zh", "en", "bilingual", "code"])
def test_half_a_surrogate_pair_is_refused_by_name(whole, domains, name):
    for text in ("中国\ud800人", "a\udfffb", "中\t\ud800"):
        with pytest.raises(DataError, match=r"half a surrogate pair, '\\ud"):
            whole.encode(text, domains.named(name))


@given(st.text(alphabet="ab ▁▂▃\n\r\t\0 <eot>é中🙂", max_size=40))
@settings(max_examples=200, deadline=None)
def test_blanks_marks_and_control_names_come_back_exactly(whole, domains, text):
    ids = whole.encode(text, domains.named("en"))
    assert whole.decode(ids) == text
    assert EOT not in ids


def test_rows_and_ids_are_inverse(restricted):
    for rows, row_of in zip(restricted.slot_rows, restricted.row_of, strict=True):
        used = np.flatnonzero(rows >= 0)
        assert (row_of[rows[used]] == used).all()
        assert (row_of >= 0).sum() == len(used)
    assert restricted.row_of.dtype == restricted.slot_rows.dtype == np.int32


def test_samples_carry_the_tags_of_their_format(whole, domains):
    zh, en, bilingual, code = domains
    cn, eng, python = (TAG_OF_LANGUAGE[name] for name in ("zh", "en", "python"))
    assert whole.sample(Document("en", "the dog"), en) == [*whole.encode("the dog", en), EOT]
    assert whole.sample(Document("zh", "你好"), zh) == [*whole.encode("你好", zh), EOT]
    assert whole.sample(Document("code", "pass\n"), code) == [python, *whole.encode("pass\n", code), EOT]
    sides = (("zh", "你好"), ("en", "hello"))
    expected = [cn, *whole.encode("你好", bilingual), eng, *whole.encode("hello", bilingual)]
    assert whole.sample(Document("bilingual", sides), bilingual) == [*expected, EOT]
    assert whole.sample(Document("bilingual", "你好"), bilingual)[0] == cn
    assert whole.sample(Document("bilingual", "hello"), bilingual)[0] == eng


def test_a_prompt_is_the_sample_without_its_end(whole, domains):
    for domain in domains:
        assert whole.prompt("你好 dog", domain) == whole.sample(Document(domain.name, "你好 dog"), domain)[:-1]
    ids = whole.prompt((("zh", "你好"), ("en", "")), domains.named("bilingual"))
    assert ids[-1] == TAG_OF_LANGUAGE["en"]


def test_controls_are_silent_and_broken_bytes_are_marked(whole):
    assert whole.decode([whole.pad, whole.eot, TAG_OF_LANGUAGE["zh"]]) == ""
    euro = [FIRST_BYTE + value for value in "€".encode()]
    assert whole.decode(euro) == "€"
    assert whole.decode([euro[0], FIRST_ENGLISH]) == "\ufffd" + whole.vocabulary.surfaces[FIRST_ENGLISH].decode()


def test_a_code_domain_needs_a_language_with_a_tag():
    domain = Domain(0, "rust", "code", "en", 0, 0, 1, 1.0)
    with pytest.raises(ConfigError, match="rust has format: code and language: en"):
        tag_language("", "", domain)


def test_a_copy_has_the_files_of_a_tokenizer_and_nothing_that_lies_beside_them(restricted, tmp_path):
    restricted.save(tmp_path / "one")
    (tmp_path / "one" / "link").symlink_to("/etc/hostname")
    copy_tokenizer(tmp_path / "one", tmp_path / "two")
    assert Tokenizer.load(tmp_path / "two").hash == restricted.hash
    assert {file.name for file in (tmp_path / "two").iterdir()} == {*FILES}


def test_a_saved_folder_is_all_that_loading_needs(restricted, domains, tmp_path):
    restricted.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert (loaded.size, loaded.hash) == (restricted.size, restricted.hash)
    assert (loaded.slot_rows == restricted.slot_rows).all()
    for domain in domains:
        assert loaded.encode("中国 the dog", domain) == restricted.encode("中国 the dog", domain)


def test_the_hash_covers_rows_and_models(whole, restricted):
    rows = restricted.slot_rows.copy()
    rows[0, [20, 21]] = rows[0, [21, 20]]
    swapped = Tokenizer(restricted._alpha, restricted._english, rows)
    assert len({whole.hash, restricted.hash, swapped.hash}) == 3


@pytest.mark.parametrize("number", [1, 3, None])
def test_another_format_is_refused(whole, tmp_path, number):
    whole.save(tmp_path)
    file = tmp_path / "vocabulary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": number}))
    with pytest.raises(DataError, match="run prepare-data again"):
        Tokenizer.load(tmp_path)


def test_every_slot_needs_rows_for_the_bytes(small, tmp_path):
    rows = small.slot_rows.copy()
    rows[1, small.row_of[1, FIRST_BYTE + 200]] = -1
    with pytest.raises(ValueError, match="rows for the bytes"):
        Tokenizer(small._alpha, small._english, rows)
    small.save(tmp_path)
    file = tmp_path / "vocabulary.json"
    content = json.loads(file.read_text())
    content["slots"][1].remove(FIRST_BYTE + 200)
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="damaged"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["pangu_alpha.model", "english.model", "vocabulary.json"])
def test_missing_and_altered_files_are_refused(restricted, tmp_path, name):
    restricted.save(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match="run prepare-data again"):
        Tokenizer.load(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=f"{name}.*run prepare-data again"):
        Tokenizer.load(tmp_path)


def test_altered_rows_are_refused(restricted, tmp_path):
    restricted.save(tmp_path)
    file = tmp_path / "vocabulary.json"
    content = json.loads(file.read_text())
    content["slots"][0][20:22] = content["slots"][0][21:19:-1]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="a file was changed"):
        Tokenizer.load(tmp_path)
