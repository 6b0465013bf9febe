"""The report of a prepared folder shows its numbers, beside the folder."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
from matplotlib.image import imread

import pangu_sigma as ps
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.inspection import prepared_report
from pangu_sigma.inspection.prepared_numbers import measure_prepared
from pangu_sigma.inspection.prepared_report import write_prepared_report


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


def test_a_folder_that_cannot_be_written_is_named(numbers):
    page = write_prepared_report(numbers)
    shutil.rmtree(page.parent)
    page.parent.write_text("")
    with pytest.raises(DataError, match=r"cannot write .*report\.html"):
        write_prepared_report(numbers)
    page.parent.unlink()
