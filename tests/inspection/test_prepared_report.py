"""The report of a prepared folder shows its numbers, beside the folder."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
from matplotlib.image import imread

import pangu_sigma as ps
from experiments.tiny import tiny_tree, write_text
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.prepare import prepare as preparation
from pangu_sigma.errors import DataError
from pangu_sigma.inspection import prepared_report
from pangu_sigma.inspection.prepared_numbers import EXPERT_COUNTS, measure_prepared
from pangu_sigma.inspection.prepared_report import format_prepared, write_prepared_report
from pangu_sigma.writable import NotWritable


@pytest.fixture(scope="module")
def numbers(tiny_data, tmp_path_factory):
    return measure_prepared(shutil.copytree(tiny_data, tmp_path_factory.mktemp("report") / "prepared"))


def test_the_page_has_tables_and_four_pictures_and_needs_no_other_file(numbers):
    page = write_prepared_report(numbers)
    assert page == numbers.folder.parent / "prepared.report" / "report.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 4
    assert "http" not in text
    for each in numbers.domains:
        assert f"<td>{each.tokens:,}</td>" in text
        assert f"{each.load['random'][0]:.2f}</td>" in text
    assert "<p>None.</p>" in text
    assert "<code>&#39;我们&#39;</code>" in text
    for name in ("shares", "lengths", "fertility", "load"):
        assert min(imread(page.with_name(f"{name}.png")).shape[:2]) > 200
    written = {file.relative_to(numbers.folder).as_posix() for file in numbers.folder.rglob("*") if file.is_file()}
    assert written == {*numbers.manifest.files, "manifest.json"}, "nothing is written there"


def test_what_was_not_used_is_shown_by_reason_and_is_escaped(numbers):
    manifest = numbers.manifest.model_copy(update={"quarantined": {"no JSON": 1, "unknown domain": 7}})
    examples = {"unknown domain": ["a.jsonl:3 (byte 12): domain '<b>'"]}
    text = write_prepared_report(dataclasses.replace(numbers, manifest=manifest, examples=examples)).read_text()
    assert text.index("7 × unknown domain") < text.index("1 × no JSON")
    assert "domain &#39;&lt;b&gt;&#39;" in text


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Folder of text of which every reason to leave documents out holds, in many small units."""
    folder = tmp_path_factory.mktemp("mixed")
    write_text(folder / "a.jsonl", 40)
    lines = (folder / "a.jsonl").read_text().splitlines()
    words = [json.loads(line)["text"] for line in lines if '"en"' in line]
    long = " ".join(words[:6])
    more = [{"domain": "en", "text": f"{number} <b>"} for number in range(7)]  # too few words
    more += [{"domain": "zh", "text": "好"}]
    more += [
        {"domain": "en", "text": long + " mail bob@mail.org"},
        {"domain": "en", "text": long + " mail bob@mail.org again"},
    ]
    lines[50:50] = [*map(json.dumps, more), "{", '{"domain": "fr", "text": "bon"}']
    lines += [lines[0]]
    (folder / "a.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    tree = tiny_tree(folder / "out")
    data = {"near_duplicates": 0.95, "filters": {"min_words": 4}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "block_size", lambda _: 2_000)
        preparation.prepare(parse_config(tree | {"data": tree["data"] | data}), [folder / "a.jsonl"], folder / "out")
    return measure_prepared(folder / "out")


def test_what_was_left_out_is_counted_and_shown_as_by_hand(mixed):
    zh, en, code = mixed.domains
    assert [each.record.offered for each in mixed.domains] == [41, 50, 40]
    assert zh.fates == {**dict.fromkeys(zh.fates, 0), "kept": 40, "filtered": 1}
    assert en.fates == {
        **dict.fromkeys(en.fates, 0),
        "kept": 41,
        "filtered": 7,
        "exact copies": 1,
        "near-duplicates": 1,
    }
    assert code.fates == {**dict.fromkeys(code.fates, 0), "kept": 40}
    assert mixed.filtered() == {"min_words": {"zh": 1, "en": 7}}
    assert mixed.manifest.quarantined == {"not JSON": 2, "unknown domain": 1}
    assert [example.split(": ")[0].split("/")[-1].split(" ")[0] for example in mixed.examples["not JSON"]] == [
        "a.jsonl:61",
        "a.jsonl:134",
    ]
    assert mixed.examples["filter min_words"][0].endswith("): 0 <b>")
    assert "None" not in "".join(mixed.examples["filter min_words"])


def test_the_page_shows_filters_and_near_duplicates(mixed):
    text = write_prepared_report(mixed).read_text(encoding="utf-8")
    assert "<td>min_words</td><td>1</td><td>7</td><td>0</td><td>" in text
    assert "0 &lt;b&gt;" in text
    assert "<td>en</td><td>50</td><td>41</td><td>7</td><td>1</td><td>1</td><td>0</td><td>0</td>" in text
    assert "<td>en to en</td><td>2</td>" in text and "<th>stays</th>" in text
    table = format_prepared(mixed, mixed.folder)
    assert "left out of 131 documents: filtered 8, exact copies 1, near-duplicates 1" in table
    assert "filtered: min_words 8" in table
    of_16 = [each.load[table][EXPERT_COUNTS.index(16)] for each in mixed.domains for table in ("random", "balanced")]
    assert " ".join(re.findall(r"\d\.\d\d / \d\.\d\d(?=\n)", table)).replace(" / ", " ") == " ".join(
        f"{load:.2f}" for load in of_16
    )
    assert "if the model has 16 experts a domain; the page has it for 4, 8, 16, 32" in table


def test_pictures_show_the_numbers(numbers):
    axes = prepared_report._draw_shares(numbers).axes
    widths = [bar.get_width() for bar in axes[0].patches]
    assert widths == pytest.approx([100 * each.tokens / numbers.tokens for each in numbers.domains])
    assert [bar.get_width() for bar in axes[1].patches] == [100.0] * 3, "all was kept"
    lengths = prepared_report._draw_lengths(numbers.domains).axes[0]
    assert [tick.get_text() for tick in lengths.get_yticklabels()] == ["zh", "en", "code"]
    medians = [line.get_xdata()[0] for line in lengths.lines]
    assert medians == [each.length(50) for each in numbers.domains]
    assert len(prepared_report._draw_fertility(numbers.domains).axes) == 2, "there are no unknown tokens"
    loads = prepared_report._draw_load(numbers.domains).axes
    assert [bar.get_width() for bar in loads[1].patches] == [each.load["random"][1] for each in numbers.domains]


def test_the_command_and_the_function_take_the_folder(numbers, tmp_path, capsys):
    assert main(["report", str(numbers.folder)]) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[:4]] == ["domain", "zh", "en", "code"]
    found = ps.report(numbers.folder)
    assert found["report"].endswith("prepared.report/report.html")
    assert found["domains"]["zh"]["tokens"] == numbers.domains[0].tokens
    with pytest.raises(ConfigError, match=r"against.* compares runs, and .* is prepared data"):
        ps.report(numbers.folder, against=[tmp_path])


def test_a_linked_folder_of_reports_is_not_followed(numbers, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "data.report").symlink_to("mine")
    with pytest.raises(NotWritable, match=r"data\.report is a link"):
        write_prepared_report(dataclasses.replace(numbers, folder=tmp_path / "data"))
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(numbers):
    page = write_prepared_report(numbers)
    shutil.rmtree(page.parent)
    page.parent.write_text("")
    with pytest.raises(DataError, match=r"cannot write .*report\.html"):
        write_prepared_report(numbers)
    page.parent.unlink()
