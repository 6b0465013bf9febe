from __future__ import annotations

import hashlib
import keyword
import pickle
import re
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.record_files import read_whole, write_records

import pangu_sigma as ps
from pangu_sigma.config import ConfigError
from pangu_sigma.data.prepared import preparation_settings
from pangu_sigma.errors import DataError
from pangu_sigma.text.documents import Document, RejectedLine
from pangu_sigma.text.layout import Layout


def layout_of(reader: str | None = None, **data: Any) -> Layout:
    return Layout.of(ps.load_config("sigma_tiny", [f"data.{key}={value}" for key, value in data.items()]), reader)


def test_the_default_is_text_and_domain_and_every_key_decides_the_result(config):
    assert layout_of() == Layout()
    assert pickle.loads(pickle.dumps(layout_of(domain_of="{a: zh}"))) == layout_of(domain_of="{a: zh}")
    assert {"text_key", "domain_of"} <= preparation_settings(config).keys()


WUDAO = [
    {"id": 7, "uniqueKey": "fd", "titleUkey": "cc", "dataType": "科技", "title": "一则", "content": "正文如此。"},
    {"id": 8, "uniqueKey": "fe", "titleUkey": "cd", "dataType": "法律", "title": " ", "content": "没有标题。"},
    {"id": 9, "uniqueKey": "ff", "titleUkey": "ce", "dataType": "百科", "title": "二", "content": "何处去？"},
]


def example(name: str) -> str:
    return str(Path(__file__).parents[2] / "examples" / name)


def test_wudao_is_arrays_of_title_and_content(tmp_path, domains):
    """As https://github.com/xubuvd/LLMs shows a record of WuDaoCorpora 2.0 (200 GB)."""
    path = write_records(tmp_path / "part-2021011893.json", [*WUDAO, {"title": None, "content": ""}])
    reader = layout_of(reader=example("corpora.py:wudao"))
    *items, empty = read_whole(path, domains, reader)
    assert [item.text for item in items] == ["一则\n正文如此。", "没有标题。", "二\n何处去？"], (
        "a blank title is left out"
    )
    assert {item.domain for item in items} == {"zh"}
    assert (empty.reason, empty.line) == ("empty text", 4)
    of_files = replace(reader, domain_of={"*.json": "en"})
    assert [item.domain for item in read_whole(path, domains, of_files)[:3]] == ["en"] * 3, "a rule for files wins"


def test_skypile_is_lines_of_text(tmp_path, domains):
    """As https://huggingface.co/datasets/Skywork/SkyPile-150B says."""
    path = write_records(tmp_path / "2020-40_zh_head_0000.jsonl", [{"text": "网页一"}, {"text": "网页二"}])
    for layout in (layout_of(reader=example("corpora.py:skypile")), layout_of(domain_of="{'*': zh}")):
        items = read_whole(path, domains, layout)
        assert [(item.domain, item.text) for item in items] == [("zh", "网页一"), ("zh", "网页二")]


def test_chinese_fineweb_edu_is_parquet_below_folders_of_sources(tmp_path, domains):
    """As https://huggingface.co/datasets/opencsg/chinese-fineweb-edu has it."""
    for source in ("data", "IndustryCorpus"):
        (tmp_path / source).mkdir()
        write_records(tmp_path / source / "00024.parquet", [{"text": f"来自{source}", "score": 4.2, "source": source}])
    layout = layout_of(domain_of="{data: zh, IndustryCorpus: en}")
    items = read_whole(tmp_path, domains, layout)
    assert [(item.domain, item.text) for item in items] == [("en", "来自IndustryCorpus"), ("zh", "来自data")]


def test_only_the_columns_that_are_needed_are_read():
    layout = layout_of(text_key="content")
    assert (layout.columns(None), layout.columns("zh")) == (["content", "domain"], ["content"])


def document(layout: Layout, record: dict[str, Any], domains, domain: str | None = None) -> Document:
    return layout.document(record, domain, domains)


def test_what_is_no_text_is_said_by_the_name_of_its_key(domains):
    layout = Layout("body")
    assert document(layout, {"domain": "zh", "body": "b"}, domains).text == "b"
    for value, detail in ((3, "body is 3"), (None, "body is null"), ("\u3000\n", "body has no visible character")):
        with pytest.raises(RejectedLine) as refused:
            document(layout, {"domain": "zh", "body": value}, domains)
        assert detail in refused.value.args[1]


def test_a_dot_leads_into_an_object_unless_it_is_in_the_key(domains):
    layout = Layout("meta.text")
    assert document(layout, {"meta": {"text": "a"}}, domains, "en").text == "a"
    assert document(layout, {"meta.text": "b", "meta": {}}, domains, "en").text == "b"
    for record in ({"meta": "Wiki"}, {"meta": {}}, {"text": "a"}):
        with pytest.raises(RejectedLine, match=r"text missing or not a string.*no key .*meta\.text"):
            document(layout, record, domains, "en")


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("books.jsonl", "in/books.jsonl", True),
        ("books.jsonl", "in/books.jsonl.gz", False),
        ("*.jsonl*", "in/books.jsonl.gz", True),
        ("*", "a.json", True),
        ("news", "in/news/2024/a.json", True),
        ("in/news", "in/news/2024/a.json", True),
        ("news/", "in/news/a.json", True),
        ("new", "in/news/a.json", False),
        ("news/*.json", "in/news/a.json", True),
        ("news/*.json", "in/news/2024/a.json", False),
        ("/in/*", "/in/a.json", True),
        ("/in/*", "/other/in/a.json", False),
        ("part-[0-4]*.json", "in/part-03.json", True),
    ],
)
def test_globs_are_those_of_files_or_of_folders(glob, path, matches):
    layout = Layout(domain_of={glob: "zh"})
    assert layout.domain_of_file(Path(path)) == ("zh" if matches else None)
    assert layout.idle_rules([Path("other.txt"), Path(path)]) == ([] if matches else [glob])


def test_rules_that_contradict_each_other_are_an_error():
    layout = Layout(domain_of={"*.json": "zh", "news": "zh", "a.*": "en"})
    assert layout.domain_of_file(Path("news/b.json")) == "zh"
    with pytest.raises(
        DataError, match=r"data\.domain_of: for news/a\.json '\*\.json' says zh, 'news' says zh, 'a\.\*' says en"
    ):
        layout.domain_of_file(Path("news/a.json"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"domain_of": "{'*': fr}"}, r"data\.domain_of: '\*' has the domain 'fr'; write one of zh, en"),
        ({"domain_of": "{'.': zh}"}, r"data\.domain_of"),
        ({"domain_of": "{'': zh}"}, r"data\.domain_of"),
        ({"text_key": "''"}, r"data\.text_key"),
        ({"text_keys": "[text]"}, r"data\.text_keys: unknown key"),
        ({"reader": "no_colon"}, "^reader=no_colon: is not FILE.py:FUNCTION"),
        (
            {"reader": "subprocess:call"},
            "reader=subprocess:call: .*; name file and function, such as my_corpora\\.py:read",
        ),
        ({"reader": "no_such.py:f"}, r"reader=no_such\.py:f: .*No such file.*; relative paths begin in /"),
        (
            {"reader": f"{textwrap.__file__}:no_such"},
            rf":no_such: {textwrap.__file__} has no function 'no_such'; its functions: wrap, fill, shorten, dedent, indent$",
        ),
        ({"reader": f"{textwrap.__file__}:__name__"}, r"has no function '__name__'; its"),
        ({"reader": f"{keyword.__file__}:f"}, r"has no function 'f'; its functions: none$"),
    ],
)
def test_what_cannot_be_meant_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        layout_of(**data)


READER = """\
def read(record):
    if record['id'] == 1:
        return None
    if record['id'] == 2:
        raise KeyError('two')
    if record['id'] == 3:
        return ['no']
    return {'text': record['body'].upper(), 'domain': 'en'}
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_function_of_the_users_reads_records(tmp_path, domains, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reader.py").write_text(READER)
    before = [*sys.path]
    layout = layout_of(reader="my_reader.py:read")
    assert layout.source_hash == hashlib.sha256(READER.encode()).hexdigest() and Layout().source_hash is None
    path = write_records(tmp_path / name, [{"id": i, "body": f"word {i}"} for i in range(5)])
    items = read_whole(path, domains, pickle.loads(pickle.dumps(layout)))
    assert [getattr(item, "text", "") for item in items] == ["WORD 0", "", "", "", "WORD 4"]
    assert [(item.reason, item.detail) for item in items[1:4]] == [
        ("left out by the reader", "it returned None"),
        ("reader failed", "KeyError: 'two'"),
        ("reader failed", "it returned a list, not a dict or None"),
    ]
    assert sys.path == before


def test_a_reader_that_was_edited_is_another_one(tmp_path):
    file = tmp_path / "edited.py"
    for word in ("one", "two"):  # of one size, in one second: a .pyc would be taken for fresh
        file.write_text(f"def read(record):\n    return {{'text': '{word}'}}\n")
        assert layout_of(reader=f"{file}:read").function()({}) == {"text": word}


def test_the_example_of_filters_keeps_good_text_and_leaves_out_the_rest():
    keep = layout_of(reader=example("gopher.py:keep")).function()
    story = "\n".join(f"On day {n} the old man {n} walked to the river and sold his fish, 卖鱼。" for n in range(9))
    bad = [
        story[:100],
        story * 1_000,
        "- " + story.replace("\n", "\n- "),
        story.replace("。", "…"),
        "\n".join([story] * 2),
    ]
    bad += [re.sub(r"[A-Za-z]+", "an", story), re.sub(r" ", " # ", story)]
    assert keep({"text": story}) == {"text": story}
    assert [text[:20] for text in bad if keep({"text": text})] == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"domain": "english", "title": "a", "content": "bcd", "n": 3},
            "no key 'text'; add overrides={\"data.text_key\": 'content'} or a reader",
        ),
        ({"text": "b", "n": 1}, "no key 'domain'; add overrides={\"data.domain_of\": {\"*\": 'zh'}} or a reader"),
    ],
)
def test_a_record_without_the_keys_is_told_the_argument_that_names_others(record, said, domains):
    with pytest.raises(RejectedLine) as refused:
        Layout().document(record, "en" if "domain" in record else None, domains)
    assert refused.value.args[1] == f"{said}; the keys are {', '.join(map(repr, record))}"
