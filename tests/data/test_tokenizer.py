from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.config import ConfigError
from pangu_sigma.data.documents import Document
from pangu_sigma.data.tokenizer import Tokenizer, tag_language
from pangu_sigma.data.vocabulary import EOT, FIRST_BYTE, FIRST_ENGLISH, TAG_OF_LANGUAGE
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError

CHINESE = [
    "１２月３１日，中共中央总书记、国家主席发表１９９８年新年讲话《迈向充满希望的新世纪》。\n同胞们、朋友们：",
    "这本书  不错，Python 3.11 的 asyncio 讲得很清楚！！ 推荐\n\n  给大家。",
    "小说里的人物：“你好……”他说。α≤β，①②③，㎏，東京都，龘",
    "<eot> 不是 <pad>，\t制表符",
]


@pytest.fixture(scope="module")
def pangu_alpha():
    """pcl_pangu's own tokenizer, loaded from its file: importing the package pulls in a training framework."""
    folder = Path(importlib.util.find_spec("pcl_pangu").submodule_search_locations[0]) / "tokenizer"
    spec = importlib.util.spec_from_file_location("tokenization_jieba", folder / "tokenization_jieba.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.JIEBATokenizer(str(folder / "bpe_4w_pcl/vocab"))


@pytest.mark.parametrize("text", CHINESE)
def test_chinese_is_encoded_and_decoded_as_pangu_alpha_does(whole, domains, pangu_alpha, text):
    ids = whole.encode(text, domains.named("zh"))
    assert ids == pangu_alpha.encode(text)
    if "<eot>" not in text:  # PanGu-α writes out control pieces, here they are silent
        assert whole.decode(ids) == pangu_alpha.decode(ids)


@given(st.text(alphabet="的中国人民 ，。\nabc1２", max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_chinese_text_is_encoded_as_pangu_alpha_does(whole, domains, pangu_alpha, text):
    ids = whole.encode(text, domains.named("zh"))
    assert ids == pangu_alpha.encode(text)
    assert whole.decode(ids) == pangu_alpha.decode(ids)


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_english_and_code_come_back_exactly(whole, restricted, domains, text):
    for tokenizer in (whole, restricted):
        for name in ("en", "code"):
            assert tokenizer.decode(tokenizer.encode(text, domains.named(name))) == text


@given(st.text(alphabet="ab ▁▂▃\n\r\t\0 <eot>é中🙂", max_size=40))
@settings(max_examples=200, deadline=None)
def test_blanks_marks_and_control_names_come_back_exactly(whole, domains, text):
    ids = whole.encode(text, domains.named("en"))
    assert whole.decode(ids) == text
    assert EOT not in ids


@given(st.text(alphabet="中国人民的希望 ，。龘\nabc the1🙂", max_size=40))
@settings(max_examples=100, deadline=None)
def test_no_token_is_outside_the_slot(restricted, domains, text):
    for domain in domains:
        ids = restricted.sample(Document(domain.name, text, ""), domain)
        assert (restricted.row_of[domain.slot][ids] >= 0).all()


def test_rows_and_ids_are_inverse(restricted):
    for rows, row_of in zip(restricted.slot_rows, restricted.row_of, strict=True):
        used = np.flatnonzero(rows >= 0)
        assert (row_of[rows[used]] == used).all()
        assert (row_of >= 0).sum() == len(used)
    assert restricted.row_of.dtype == restricted.slot_rows.dtype == np.int32


def test_restricting_only_regroups_what_it_can_spell(whole, restricted, domains):
    zh = domains.named("zh")
    text = "中国人民的希望"
    assert len(restricted.encode(text, zh)) >= len(whole.encode(text, zh))


def test_samples_carry_the_tags_of_their_format(whole, domains):
    zh, en, bilingual, code = domains
    cn, eng, python = (TAG_OF_LANGUAGE[name] for name in ("zh", "en", "python"))
    assert whole.sample(Document("en", "the dog", ""), en) == [*whole.encode("the dog", en), EOT]
    assert whole.sample(Document("zh", "你好", ""), zh) == [*whole.encode("你好", zh), EOT]
    assert whole.sample(Document("code", "pass\n", ""), code) == [python, *whole.encode("pass\n", code), EOT]
    sides = (("zh", "你好"), ("en", "hello"))
    expected = [cn, *whole.encode("你好", bilingual), eng, *whole.encode("hello", bilingual)]
    assert whole.sample(Document("bilingual", sides, ""), bilingual) == [*expected, EOT]
    assert whole.sample(Document("bilingual", "你好", ""), bilingual)[0] == cn
    assert whole.sample(Document("bilingual", "hello", ""), bilingual)[0] == eng


def test_a_prompt_is_the_sample_without_its_end(whole, domains):
    for domain in domains:
        assert whole.prompt("你好 dog", domain) == whole.sample(Document(domain.name, "你好 dog", ""), domain)[:-1]
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


@pytest.mark.parametrize("name", ["pangu_alpha.model", "english.model", "vocabulary.json"])
def test_missing_and_altered_files_are_refused(restricted, tmp_path, name):
    restricted.save(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    file.write_bytes(content[:-3])
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
