from __future__ import annotations

import json
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.texts import ENGLISH, tiny_config

import pangu_sigma as ps
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepare import encoding, reading
from pangu_sigma.data.prepare.executors import StageError
from pangu_sigma.data.prepare.prepare import ONE_PROCESS, _files_to_read, prepare
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.text.layout import Layout
from pangu_sigma.writable import NotWritable

CHINESE = ["中国人民的希望。", "这本书很好，推荐给大家。", "今天天气不错，我们去公园。", "新年讲话", "他说：“你好。”"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Ten documents of each domain, one copy, three unusable lines."""
    records: list[dict] = []
    for i in range(10):
        records.append({"domain": "zh", "text": CHINESE[i % 5] * (i + 1)})
        records.append({"domain": "en", "text": ENGLISH[0] + str(i)})
        records.append({"domain": "code", "text": ENGLISH[1] + f"x = {i}\n"})
        records.append({"domain": "bilingual", "text": {"zh": f"你好 {i}", "en": f"hello {i}"}})
    records += [records[0], {"domain": "fr", "text": "x"}, {"domain": "fr", "text": "y"}, {"domain": "en", "text": ""}]
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def prepared(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "out"
    prepare(tiny_config(), [text], folder)
    return folder


def test_the_folder_holds_what_the_manifest_says(prepared, config):
    manifest = load_manifest(prepared)
    tokenizer, frequencies = PreparedData(prepared).tokenizer(), PreparedData(prepared).frequencies()
    assert manifest.vocabulary_size == tokenizer.size
    assert frequencies.shape == (4, tokenizer.size)
    assert tokenizer.slot_rows.shape == (3, config.model.slot_rows)
    for domain in domains_of(config):
        record = manifest.domains[domain.name]
        assert (record.train.documents, record.held_out.documents) == (8, 2)
        for split, counts in (("train", record.train), ("held_out", record.held_out)):
            file = PreparedData(prepared).tokens(domain.name, split, tokenizer.size)
            assert (file.tokens, len(file.lengths)) == (counts.tokens, counts.documents)
        tokens = PreparedData(prepared).tokens(domain.name, "train", tokenizer.size).read(0, record.train.tokens)
        assert (np.bincount(tokens, minlength=tokenizer.size) == frequencies[domain.index]).all()
        assert 0 < record.unigram_entropy < math.log(2 * tokenizer.size)
        assert [source.name for source in record.sources] == ["a.jsonl"]
    assert manifest.domains["zh"].duplicates == 1


def test_every_document_comes_back_from_the_files(prepared, text):
    tokenizer = PreparedData(prepared).tokenizer()
    texts = {json.loads(line)["text"] for line in text.read_text().splitlines() if '"code"' in line}
    found = []
    for split in ("train", "held_out"):
        file = PreparedData(prepared).tokens("code", split, tokenizer.size)
        ends = np.cumsum(file.lengths)
        found += [tokenizer.decode(file.read(int(e - n), int(n))) for n, e in zip(file.lengths, ends, strict=True)]
    assert sorted(found) == sorted(texts)


def test_unusable_lines_are_counted_and_kept(prepared, text):
    manifest, written = load_manifest(prepared), text.read_bytes().splitlines(keepends=True)
    assert manifest.quarantined == {"unknown domain": 2, "empty text": 1}
    assert manifest.examples.keys() == manifest.quarantined.keys()
    lines = [json.loads(line) for line in (prepared / "quarantine.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["unknown domain", "unknown domain", "empty text"]
    assert [line["offset"] for line in lines] == [sum(map(len, written[:number])) for number in (41, 42, 43)]
    assert all(line["file"].endswith("a.jsonl") for line in lines)


def test_a_rule_for_files_that_are_not_there_is_warned_of(text, tmp_path, config, caplog):
    rules = {"domain_of": {"books/*": "zh", "a.*": "en"}}
    config = with_data(config, **rules)
    assert _files_to_read(config, Layout.of(config), [text], tmp_path / "out") == [text]
    assert caplog.messages == ["data.domain_of: 'books/*' matches no file of input, so this rule does nothing"]


def test_text_that_another_reader_read_is_other_text(text, tmp_path, config):
    (tmp_path / "reads.py").write_text("def read(record):\n    return record\n")
    options = replace(ONE_PROCESS, reader=f"{tmp_path / 'reads.py'}:read")
    manifest = prepare(config, [text], tmp_path / "out", options)
    assert manifest.config["reader"][0] == options.reader
    with pytest.raises(ConfigError, match=r"prepared otherwise \(reader\)"):
        prepare(config, [text], tmp_path / "out")


def test_running_again_does_nothing_and_gives_the_same_elsewhere(prepared, text, tmp_path, config, caplog):
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    caplog.set_level("INFO")
    manifest = prepare(config, [text], prepared)
    assert "nothing to do" in caplog.text
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before
    assert prepare(config, [text], tmp_path / "out") == manifest
    for path in prepared.rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(prepared)).read_bytes() == path.read_bytes()


def test_slots_smaller_than_the_vocabulary_hold_all_that_is_written(text, tmp_path):
    config = tiny_config(slot_rows=600)
    manifest = prepare(config, [text], tmp_path / "out")
    tokenizer = PreparedData(tmp_path / "out").tokenizer()
    assert tokenizer.slot_rows.shape == (3, 600)
    for domain in domains_of(config):
        file = PreparedData(tmp_path / "out").tokens(domain.name, "train", tokenizer.size)
        assert (tokenizer.row_of[domain.slot][file.read(0, file.tokens)] >= 0).all()
    assert manifest.domains["zh"].train.unknown == 0


def test_a_link_to_nothing_is_not_followed(text, tmp_path):
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(NotWritable, match=r"out is a link"):
        prepare(tiny_config(), [text], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def with_data(config: Config, **keys: Any) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=keys)})


def test_prepared_data_of_other_domains_or_settings_are_not_replaced(text, prepared, tmp_path, config):
    out = shutil.copytree(prepared, tmp_path / "out")
    tree = with_data(config, path=str(out)).model_dump(exclude_none=True)
    tree["domains"][0]["name"] = "pod"
    other = parse_config(tree)
    said = (
        f"data.path={out} holds domains bilingual, code, en, zh, this configuration has pod, en, bilingual, code; run prepare-data "
        "with extend to add the missing ones, or choose another data.path"
    )
    otherwise = (
        "out holds data that were prepared otherwise (held_out), which prepare-data does not replace; choose another"
    )
    for changed, problem in ((other, said), (with_data(config, path=str(out), held_out=0.3), otherwise)):
        with pytest.raises(ConfigError, match=re.escape(problem)):
            prepare(changed, [text], out)
        assert load_manifest(out) == load_manifest(prepared)
        found = ps.prepare_data(changed, text, check=True)
        assert problem in found["problems"][0] and not found.ok
    assert ps.prepare_data(with_data(config, path=str(out)), text, check=True)["problems"] == []


def test_a_failure_leaves_nothing_behind_but_the_stage_with_the_quarantine(
    text, prepared, tmp_path, config, monkeypatch
):
    with monkeypatch.context() as failing:
        failing.setattr("pangu_sigma.data.prepare.writing.write_tokens", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(config, [text], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.stage"]
    assert (tmp_path / ".out.stage/quarantine.jsonl").read_bytes() == (prepared / "quarantine.jsonl").read_bytes()
    prepare(config, [text], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "its lines are in the folder now"


def test_token_files_are_on_the_disk_before_their_pass_has_a_result(text, tmp_path, config, monkeypatch):
    """So a machine that loses power loses no file of a pass that is not done again."""

    def killed(*_):
        raise KeyboardInterrupt

    flushed, stage = list[str](), tmp_path / ".out.stage/write"

    def sync(path: Path) -> None:
        assert not (stage / f"00000{len(flushed) // 7}").exists()
        flushed.append(path.relative_to(stage / "output").as_posix())

    monkeypatch.setattr("pangu_sigma.data.prepare.writing.sync", sync)
    with monkeypatch.context() as killing:
        killing.setattr("pangu_sigma.data.prepare.prepare.fingerprint", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, [text], tmp_path / "out")
    paths = [path.relative_to(stage / "output") for path in (stage / "output").glob("*/*")]
    assert sorted(flushed) == sorted(path.as_posix() for path in paths if path.parts[0] != "tokenizer")
    (stage / "output").rename(tmp_path / "aside")
    with pytest.raises(
        StageError, match=r"output/zh/.*manifest\.json: is missing from the stage; remove .*\.out\.stage and"
    ):
        prepare(config, [text], tmp_path / "out")
    shutil.copytree(tmp_path / "aside", stage / "output", dirs_exist_ok=True)
    prepare(config, [text], tmp_path / "out")
    PreparedData(tmp_path / "out").verify_all()


def test_an_output_that_cannot_be_is_refused_before_any_work(text, tmp_path, config, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("pangu_sigma.data.prepare.prepare.read_text", None)
    with pytest.raises(DataError, match=r"cannot make .*: .*/file/\.out\.stage: Not a directory; a file is where"):
        prepare(config, [text], tmp_path / "file" / "out")


def test_the_working_folder_is_not_replaced(text, tmp_path, config, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr("pangu_sigma.data.prepare.prepare.read_text", None)
    with pytest.raises(ConfigError, match=r"data\.path=\. is the working folder"):
        prepare(config, [text], Path())


NAMES = ["en/train.bin", "zh/held_out.idx", "tokenizer/english.model", "en/rows.npy", "zh/hashes", "zh/manifest.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_or_changed_file_of_the_result_is_named(text, prepared, tmp_path, config, name):
    shutil.copytree(prepared, tmp_path / "out")
    if name == "en/train.bin":
        (tmp_path / "out" / name).write_bytes(bytes((tmp_path / "out" / name).stat().st_size))
    else:
        (tmp_path / "out" / name).unlink()
    with pytest.raises(DataError, match=rf"out/{name}: .*remove the folder and run prepare-data again"):
        prepare(config, [text], tmp_path / "out")


def test_folders_of_others_are_left_alone(text, tmp_path, config):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(DataError, match="is not prepared data"):
        prepare(config, [text], tmp_path)
    assert (tmp_path / "precious.txt").exists()


@pytest.mark.parametrize(
    ("mib", "said"), [(1e-6, "0 usable documents"), (5e-4, "min_held_out_tokens=1,000 are wanted")]
)
def test_text_that_a_limit_left_out_is_no_reason_to_pass_more(text, tmp_path, config, mib, said):
    config = with_data(config, max_mib_per_domain=mib, min_held_out_tokens=1_000)
    with pytest.raises(DataError) as refused:
        prepare(config, [text], tmp_path / "out")
    (zh,) = (line for line in str(refused.value).splitlines() if line.startswith("domain zh: "))
    assert said in zh
    assert re.search(r"; (or )?raise data\.max_mib_per_domain=\S+, which left 0\.00\d+ MiB out$", zh)


def real_collections(path: Path) -> Path:
    """Documents of every domain: of `zh` with one footer, of `en` with copies of each other, two of `code`, none of `bilingual`."""
    rng = random.Random(0)

    def new(letters: str, words: int) -> str:
        return " ".join("".join(rng.choices(letters, k=4)) for _ in range(words))

    footer = "本页面中文版由中文手册页计划提供。翻译人请见各页。最新更新见网址所列。"
    records = [{"domain": "zh", "text": f"{new('天地玄黄宇宙洪荒日月盈昃辰宿列张', 20)}\n{footer}"} for _ in range(40)]
    same = new("abcdefghijklmnopqrstuvwxyz", 12)
    records += [{"domain": "en", "text": f"{new('abcdefghijklmnopqrstuvwxyz', 30)} {same}"} for _ in range(8)]
    records += [{"domain": "code", "text": f"x = {i}\n"} for i in range(2)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def strict(**own: dict[str, Any]) -> Config:
    """Documents are passed over as by default. own: keys of domains."""
    tree = tiny_config().model_dump(exclude_none=True)
    tree["data"] |= {"max_overlap": 0.01, "min_held_out_tokens": 40}
    tree["model"]["seq_length"] = 8
    tree["domains"] = [domain | own.get(domain["name"], {}) for domain in tree["domains"]]
    return parse_config(tree)


def test_problems_of_all_domains_are_one_message_each_with_a_remedy_that_works(tmp_path):
    path = real_collections(tmp_path / "a.jsonl")
    with pytest.raises(DataError) as refused:
        prepare(strict(), [path], tmp_path / "out")
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["domain en", "domain bilingual", "domain code"]
    wanted = 'name text of it with input, such as lines {"domain": "bilingual", "text": …}, or mend what makes lines unusable'
    assert lines[1].endswith(wanted)
    assert lines[-1] == "`prepare-data --check` prints what there is of every domain, and replaces nothing"
    assert not (tmp_path / "out").exists()
    with path.open("a") as file:
        for i in range(20):
            file.write(json.dumps({"domain": "bilingual", "text": {"zh": f"你好 {i}", "en": f"hello {i}"}}) + "\n")
            file.write(json.dumps({"domain": "code", "text": f"y = {i}\n" * 9}) + "\n")
    assert "raise its max_overlap or data.max_boilerplate, up to 1; or" in lines[0]
    own = {name: {"min_held_out_tokens": 8, "max_overlap": 1.0} for name in ("bilingual", "code")}
    done = prepare(strict(en={"max_overlap": 1.0}, **own), [path], tmp_path / "out").domains
    assert done["en"].held_out.tokens >= 40
    assert done["zh"].overlap.passed_over == 0 < done["zh"].overlap.boilerplate_windows


def test_check_prints_the_table_and_the_problems_and_writes_nothing_but_a_stage(tmp_path, monkeypatch, caplog):
    path = real_collections(tmp_path / "a.jsonl")
    with path.open("a") as file:
        file.write("{\n")
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    config = strict()
    found = ps.prepare_data(config, path, check=True)
    assert f"{caplog.text}{found}".count("1 × not JSON") == 1, "reasons are told once"
    stage = tmp_path / "data/.prepared.stage"
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if not p.is_relative_to(stage.parent)}
    assert after == before
    assert list(stage.parent.iterdir()) == [stage]
    assert [problem.split(":")[0] for problem in found["problems"]] == ["domain en", "domain bilingual", "domain code"]
    assert not found.ok and found["quarantined"] == {"not JSON": 1}
    lines = str(found).splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [["zh", "40"], ["en", "8"], ["bilingual", "0"], ["code", "2"]]
    assert lines[-3:] == found["problems"]


def test_passes_that_a_change_does_not_touch_are_kept_after_a_refusal_and_a_check(text, tmp_path, config, monkeypatch):
    out, refused = tmp_path / "out", with_data(config, min_held_out_tokens=10**6, path=str(tmp_path / "out"))
    with pytest.raises(DataError, match="min_held_out_tokens=1,000,000 are wanted"):
        prepare(refused, [text], out)
    monkeypatch.setattr(encoding, "segment", lambda *_: pytest.fail("text was cut again"))
    found = ps.prepare_data(with_data(refused, min_held_out_tokens=1), text, check=True)
    assert found.ok
    monkeypatch.setattr("pangu_sigma.data.prepare.writing.write_tokens", lambda *_: pytest.fail("it was written again"))
    done = prepare(with_data(refused, min_held_out_tokens=1), [text], out)
    assert done.model_dump(mode="json") | {"problems": [], "models": {}} == found
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shutil.rmtree(out)
    with pytest.raises(pytest.fail.Exception, match="cut again"):
        prepare(with_data(refused, held_out=0.3), [text], out)


@pytest.mark.parametrize(
    "own", [{"max_overlap": 0.9}, {"min_held_out_tokens": 400}, {"held_out": 0.45}, {"held_out": 0.05}]
)
def test_held_out_keys_of_one_domain_leave_the_others_untouched(tmp_path, own):
    path = tmp_path / "a.jsonl"
    rng, tail = random.Random(0), "the same again and again " * 9
    with path.open("w") as file:
        for i in range(40):
            for name in ("zh", "en", "bilingual", "code"):
                words = " ".join("".join(rng.choices("abcdefghij", k=4)) for _ in range(12))
                file.write(json.dumps({"domain": name, "text": f"{words} {tail * (i % 5 == 0)}"}) + "\n")
    folders = [tmp_path / "usual", tmp_path / "own"]
    for folder, keys in zip(folders, ({}, own), strict=True):
        prepare(strict(en=keys), [path], folder)
    changed = {
        file.relative_to(folders[0]).as_posix()
        for file in folders[0].rglob("*")
        if file.is_file() and file.read_bytes() != (folders[1] / file.relative_to(folders[0])).read_bytes()
    }
    ours = {f"en/{split}.{kind}" for split in ("train", "held_out") for kind in ("bin", "idx")}
    manifests = {f"{name}/manifest.json" for name in ("zh", "en", "bilingual", "code")}
    assert changed == ours | manifests | {"en/frequencies.npy", "en/hashes"}


def test_held_out_tokens_of_a_domain_are_capped_and_it_is_said(text, tmp_path, caplog):
    config = with_data(tiny_config(), held_out=0.4, max_held_out_tokens=150)
    records = prepare(config, [text], tmp_path / "out").domains
    assert all(0 < record.held_out.tokens <= 150 for record in records.values())
    assert (
        "documents are held out, and not 4 as held_out says, to have at most data.max_held_out_tokens=150"
        in caplog.text
    )


def test_every_file_of_the_folder_is_in_the_manifest(prepared):
    files = {path.relative_to(prepared).as_posix() for path in prepared.rglob("*") if path.is_file()}
    listed = {f"{name}/{file}" for name, record in load_manifest(prepared).domains.items() for file in record.files}
    listed |= {f"{name}/{file}" for name in load_manifest(prepared).domains for file in ("manifest.json", "hashes")}
    assert files == {*listed, "quarantine.jsonl", "tokenizer/pangu_alpha.model", "tokenizer/english.model"}
    PreparedData(prepared).verify_all()


def test_problems_are_said_once_and_their_cause_first(tmp_path, config, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text('{"domain": "chinese", "text": "你好"}\n' * 30)
    with pytest.raises(DataError) as refused:
        prepare(config, [path], tmp_path / "out")
    said = f"{caplog.text}{refused.value}"
    assert [said.count(text) for text in ("domain zh: 0 usable", "30 × unknown domain")] == [1, 1]
    assert said.index("unknown domain") < said.index("domain zh")
    assert said.endswith("`prepare-data --check` prints what there is of every domain, and replaces nothing")
    place = f"first {path}:1 (byte 0): domain 'chinese'; text is prepared for zh, en"
    assert place in said and f"all of them are in {tmp_path / '.out.stage/quarantine.jsonl'}, and in data.path" in said
    assert len((tmp_path / ".out.stage/quarantine.jsonl").read_text().splitlines()) == 30


def test_the_users_text_has_no_limit_unless_asked_and_what_is_left_out_is_said(tmp_path, config, caplog):
    path = tmp_path / "a.jsonl"
    lines = [{"domain": name, "text": f"text {i}"} for i in range(20) for name in ("zh", "en", "bilingual", "code")]
    lines.append({"domain": "en", "text": "a book of words\n" * (1 << 13)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = prepare(config, [path], tmp_path / "out").domains["en"]
    assert (whole.offered, whole.too_long, whole.over_limit, whole.left_out_bytes) == (21, 0, 0, 0)
    assert whole.train.bytes + whole.held_out.bytes == whole.offered_bytes > 1 << 17
    assert "left out" not in caplog.text
    cut = prepare(with_data(config, max_mib_per_domain=0.1), [path], tmp_path / "cut").domains["en"]
    assert (cut.offered, cut.too_long, cut.over_limit, cut.left_out_bytes) == (21, 1, 0, 1 << 17)
    assert "en: 0.1 of 0.1 MiB were left out by data.max_mib_per_domain=0.1; raise it" in caplog.text
    caplog.clear()
    prepare(with_data(config, max_mib_per_domain=0.1), [path], tmp_path / "cut")
    assert "en: 0.1 of 0.1 MiB were left out" in caplog.text, "also when there is nothing to do"


def test_a_file_that_changes_while_it_is_read_is_refused(text, tmp_path, config, monkeypatch):
    path = shutil.copy(text, tmp_path / "a.jsonl")
    read = reading.read_unit

    def growing(unit, *rest):
        lines = yield from read(unit, *rest)
        with unit.path.open("a") as file:
            file.write("\n")
        return lines

    monkeypatch.setattr(reading, "read_unit", growing)
    with pytest.raises(DataError, match=r"a\.jsonl: was changed while it was read"):
        prepare(config, [path], tmp_path / "out")


def test_a_folder_that_the_output_is_in_is_refused(text, tmp_path, config):
    shutil.copy(text, tmp_path / "a.jsonl")
    with pytest.raises(
        DataError, match=r"input .*: data\.path=.*out is below it, and prepare-data would read what it wrote"
    ):
        prepare(config, [tmp_path], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
