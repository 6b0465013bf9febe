"""Messages of programs become examples of translation; what is left out is counted."""

from __future__ import annotations

from helpers.archives import catalogue, write_wheel

from experiments.finetune_packages.catalogues import PROGRAMS, translations
from pangu_sigma.data.packaged.packages import BILINGUAL

MESSAGES = {
    "menu\x04Save": "保存",
    "Open file": "打开文件",
    "Two\nlines": "两行",
    "One line": "一\n行",
    "some_key": "标识",
    "OK": "OK",
}


def test_messages_and_their_translations_are_examples(tmp_path):
    archive = PROGRAMS["test"][0]
    name = "p/locale/zh_CN/LC_MESSAGES/p.mo"
    path = write_wheel(tmp_path / archive.file, {name: catalogue(MESSAGES), "p/locale/de/LC_MESSAGES/p.mo": b"no"})
    found = translations([archive], {archive: path})
    assert [(e.prompt, e.response, e.message) for e in found.examples] == [
        ("Open file", "打开文件", "Open file"),
        ("Save", "保存", "Save"),
    ]
    assert {e.origin for e in found.examples} == {f"{archive.file}:{name}"}
    assert found.counts == {"several lines": 2}


def test_no_program_is_in_two_splits_or_in_pre_training():
    names = [archive.name.casefold() for each in (*PROGRAMS.values(), BILINGUAL) for archive in each]
    assert len(set(names)) == len(names)
