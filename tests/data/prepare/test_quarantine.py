from __future__ import annotations

import json
from pathlib import Path

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.data.prepare.quarantine import Quarantine, format_reasons
from pangu_sigma.errors import DataError
from pangu_sigma.text.documents import Rejected

LINE = Rejected("a.jsonl", 2, 7007, "unknown domain", "domain 'fr'")


def test_lines_are_written_as_they_come_and_gone_when_all_went_well(tmp_path):
    with Quarantine(tmp_path / "new" / "q.jsonl") as quarantine:
        quarantine.add(LINE)
        assert (tmp_path / "new" / "q.jsonl").read_text().endswith("}\n"), "a killed process leaves it, too"
        quarantine.copy_to(tmp_path / "copy.jsonl")
        assert dict(quarantine.counts) == {"unknown domain": 1}
    assert json.loads((tmp_path / "copy.jsonl").read_text())["offset"] == 7007
    assert list((tmp_path / "new").iterdir()) == []


def test_a_failure_keeps_them_and_begins_with_why_and_in_which_line(tmp_path):
    with pytest.raises(DataError) as failed, Quarantine(tmp_path / "q.jsonl") as quarantine:
        quarantine.add(LINE)
        raise DataError("domain zh: 0 usable documents")
    assert str(failed.value).splitlines() == [
        "1 line is unusable and quarantined:",
        "  1 × unknown domain, first a.jsonl:2 (byte 7,007): domain 'fr'",
        f"all of them are in {tmp_path / 'q.jsonl'}",
        "domain zh: 0 usable documents",
    ]
    assert json.loads((tmp_path / "q.jsonl").read_text())["reason"] == "unknown domain"


def test_a_failure_of_what_keeps_no_file_says_why_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError) as failed, Quarantine(tmp_path / "q.jsonl", kept=False) as quarantine:
        quarantine.add(LINE)
        raise DataError("no sample")
    assert str(failed.value).splitlines()[1:] == [
        "  1 × unknown domain, first a.jsonl:2 (byte 7,007): domain 'fr'",
        "no sample",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError])
def test_every_other_failure_keeps_its_kind_and_a_warning_says_where(tmp_path, caplog, error):
    with pytest.raises(error), Quarantine(tmp_path / "q.jsonl") as quarantine:
        quarantine.add(LINE)
        raise error("stop")
    assert f"all of them are in {tmp_path / 'q.jsonl'}" in caplog.text


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "q.jsonl").symlink_to("mine")
    with pytest.raises(DataError), Quarantine(tmp_path / "q.jsonl") as quarantine:
        quarantine.add(LINE)
        raise DataError("no")
    assert (tmp_path / "mine").read_text() == "mine"
    assert json.loads((tmp_path / "q.jsonl").read_text())["reason"] == "unknown domain"


def test_without_such_lines_nothing_is_left(tmp_path):
    with pytest.raises(DataError, match=r"^no$"), Quarantine(tmp_path / "q.jsonl"):
        raise DataError("no")
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_text_are_written_down_too(tmp_path):
    with Quarantine(tmp_path / "q.jsonl") as quarantine:
        quarantine.add(Rejected("a\udcff.jsonl", 1, 0, "not JSON", ""))
        quarantine.copy_to(tmp_path / "copy.jsonl")
    assert (
        b"a\\\\udcff" in (tmp_path / "copy.jsonl").read_bytes() or b"a\\udcff" in (tmp_path / "copy.jsonl").read_bytes()
    )


def test_a_folder_that_cannot_be_is_one_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=r"cannot write .*file/q\.jsonl: .*data\.path"),
        Quarantine(Path(tmp_path / "file" / "q.jsonl")),
    ):
        pass


def test_the_three_most_frequent_reasons_are_shown():
    text = format_reasons({"a": 1, "b": 1_000, "c": 2, "d": 3, "e": 1}, {"b": "x.jsonl:5: why"})
    assert text.splitlines() == [
        "1,007 lines are unusable and quarantined:",
        "  1,000 × b, first x.jsonl:5: why",
        "  3 × d",
        "  2 × c",
        "  2 × other reasons",
    ]
