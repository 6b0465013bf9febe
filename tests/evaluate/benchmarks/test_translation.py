"""Translations that are known get sacrebleu's own numbers, from both forms of files.

The plain files are what `sacrebleu --test-set … --echo src|ref` writes: https://github.com/mjpost/sacrebleu (README).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sacrebleu
from helpers.told_decoder import told_engine

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks.translation import run

ENGLISH = ["The weather is fine today.", "He goes to school by bus, and she walks.", "I do not know."]
CHINESE = ["今天天气很好。", "他坐公共汽车上学，她走路。", "我不知道。"]
SAID_IN_CHINESE = ["今天的天气很好。", "他坐汽车去学校，她步行。", ""]
SAID_IN_ENGLISH = ["The weather is good today.", "He goes to school by bus and she walks.", "I do not know."]


def lines(folder: Path, name: str, *rows: dict | str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / name / "test.jsonl").write_text(text)
    return folder / name


def plain(folder: Path, name: str, **languages: list[str]) -> Path:
    (folder / name).mkdir(exist_ok=True)
    for language, sentences in languages.items():
        (folder / name / f"test.{language}").write_text("".join(f"{each}\n" for each in sentences))
    return folder / name


def test_into_chinese_by_characters(tmp_path, caplog):
    caplog.set_level("INFO")
    pairs = [{"source": en, "reference": zh} for en, zh in zip(ENGLISH, CHINESE, strict=True)]
    told = {
        f"English: {en}\nChinese:": f" {zh}\nEnglish: next" for en, zh in zip(ENGLISH, SAID_IN_CHINESE, strict=True)
    }
    engine, kept = told_engine(told), tmp_path / "said.zh"
    result = run(engine, "up", lines(tmp_path, "translation_en_zh", *pairs), translations=kept)
    assert engine.decoder.prompts == set(told)
    assert result.metrics == {
        "bleu": sacrebleu.corpus_bleu(SAID_IN_CHINESE, [CHINESE], tokenize="zh").score,
        "chrf": sacrebleu.corpus_chrf(SAID_IN_CHINESE, [CHINESE]).score,
    }
    assert 0 < result.metrics["bleu"] < 100
    assert (result.n, result.skipped, result.truncated) == (3, 0, 0)
    assert run(engine, "up", tmp_path / "translation_en_zh", limit=2).n == 2
    assert kept.read_text() == "".join(f"{each}\n" for each in SAID_IN_CHINESE)
    for signature in (
        "bleu is sacrebleu's nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:",
        "chrf is sacrebleu's nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:",
    ):
        assert f"{signature}{sacrebleu.__version__}" in caplog.text
    assert "1 of 3 translations are empty" in caplog.text


def test_into_english_by_words_and_from_plain_files(tmp_path, caplog):
    caplog.set_level("INFO")
    told = {f"中文：{zh}\n英文：": en for zh, en in zip(CHINESE, SAID_IN_ENGLISH, strict=True)}
    result = run(told_engine(told), "up", plain(tmp_path, "translation_zh_en", zh=CHINESE, en=ENGLISH))
    assert result.metrics == {
        "bleu": sacrebleu.corpus_bleu(SAID_IN_ENGLISH, [ENGLISH], tokenize="13a").score,
        "chrf": sacrebleu.corpus_chrf(SAID_IN_ENGLISH, [ENGLISH]).score,
    }
    assert "tok:13a" in caplog.text


def test_a_source_that_does_not_fit_loses_its_end(tmp_path, caplog):
    folder = plain(tmp_path, "translation_en_zh", en=["1234567890", "1"], zh=["甲", "乙"])
    told = {"English: 12345678\nChinese:": "甲", "English: 1\nChinese:": "乙"}
    result = run(told_engine(told, seq_length=52), "up", folder)
    assert (result.n, result.truncated, result.metrics["chrf"]) == (2, 1, 100)
    assert "1 of 2 sources lost their end, because their prompts did not fit" in caplog.text


BAD = {
    '{"source": "a"}': "a field reference, a text, expected; found ['source']",
    '{"source": "a", "reference": ["b"]}': "reference: a text expected, found ['b']",
    '{"source": " ", "reference": "b"}': "source: a sentence expected, found none",
    '{"source": "a", "reference": ""}': "reference: a sentence expected, found none",
    "a\tb": "Expecting value",
}


@pytest.mark.parametrize("line", BAD)
def test_a_line_that_is_no_pair_is_skipped_and_counted(tmp_path, caplog, line):
    folder = lines(tmp_path, "translation_en_zh", {"source": "a", "reference": "甲"}, line)
    result = run(told_engine({"English: a\nChinese:": "甲"}), "up", folder)
    assert (result.n, result.skipped, result.metrics["chrf"]) == (1, 1, 100)
    assert f"test.jsonl:2: {BAD[line]}" in caplog.text


def test_plain_files_must_belong_together(tmp_path, caplog):
    result = run(told_engine({}), "up", plain(tmp_path, "translation_en_zh", en=["a", "", "c"], zh=["甲", "乙", "丙"]))
    assert (result.n, result.skipped) == (2, 1)
    assert "test.en:2: source: a sentence expected, found none" in caplog.text
    with pytest.raises(DataError, match=r"test.en has 3 lines and test.zh 1"):
        run(told_engine({}), "up", plain(tmp_path, "translation_en_zh", zh=["甲"]))
    (tmp_path / "translation_en_zh" / "test.zh").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match=r"test.zh:2: text in UTF-8 expected"):
        run(told_engine({}), "up", tmp_path / "translation_en_zh")


def test_a_missing_file_says_where_to_get_it(tmp_path):
    wanted = r"test.jsonl \(or test.zh\) is not there; get it from WMT's test sets, .* --language-pair zh-en --echo src"
    folder = tmp_path / "translation_zh_en"
    with pytest.raises(DataError, match=wanted):
        run(told_engine({}), "up", folder)
    plain(tmp_path, folder.name, zh=["甲"])
    with pytest.raises(DataError, match=r"test.en is not there"):
        run(told_engine({}), "up", folder)


def test_the_name_of_the_folder_says_what_is_translated_into_what(tmp_path):
    with pytest.raises(ConfigError, match="is not called translation_en_zh or translation_zh_en"):
        run(told_engine({}), "up", plain(tmp_path, "translation", en=["a"], zh=["甲"]))
