"""What an evaluation has done is there after a kill, and never mistaken for that of another model."""

from __future__ import annotations

import logging
from pathlib import Path

from pangu_sigma.evaluate.result_cache import ResultCache

OF = {"model": "abc", "tasks": ["ocnli"]}


def test_values_are_there_again_in_another_process(tmp_path):
    file = tmp_path / "out.json.partial"
    kept = ResultCache(file, OF)
    kept.put("answer 1", [-1.25, True])
    kept.put("answer 2", "甲\n乙")
    again = ResultCache(file, OF)
    assert (again.get("answer 1"), again.get("answer 2"), again.get("answer 3")) == ([-1.25, True], "甲\n乙", None)
    again.put("answer 3", "")
    assert ResultCache(file, OF).get("answer 3") == ""


def test_a_line_that_was_cut_off_is_as_if_it_had_not_been_written(tmp_path):
    file = tmp_path / "out.json.partial"
    kept = ResultCache(file, OF)
    kept.put("a", 1)
    whole = file.read_bytes()
    kept.put("b", 2)
    for end in range(len(whole), len(file.read_bytes())):
        cut = tmp_path / "cut"
        cut.write_bytes(file.read_bytes()[:end])
        again = ResultCache(cut, OF)
        assert (again.get("a"), again.get("b")) == (1, None)
        again.put("b", 3)
        assert ResultCache(cut, OF).get("b") == 3


def test_another_model_begins_anew_and_says_so(tmp_path, caplog):
    file = tmp_path / "out.json.partial"
    ResultCache(file, OF).put("a", 1)
    with caplog.at_level(logging.INFO):
        other = ResultCache(file, OF | {"model": "xyz"})
    assert other.get("a") is None
    assert caplog.messages == [f"{file} is of another model or of other options, or is damaged, and is begun anew"]
    assert ResultCache(file, OF).get("a") == 1, "nothing is lost before there is something new"
    other.put("b", 2)
    assert ResultCache(file, OF).get("a") is None


def test_a_damaged_line_is_told_and_its_result_is_computed_again(tmp_path, caplog):
    """Whatever byte it is in, and also where it makes two lines one, or one line two."""
    caplog.set_level(logging.INFO)
    file, values = tmp_path / "out.json.partial", {"a": [-1.25, True], "b": "甲", "c": float("inf")}
    kept = ResultCache(file, OF)
    for name, value in values.items():
        kept.put(name, value)
    whole = file.read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        file.write_bytes(flipped)
        caplog.clear()
        again = ResultCache(file, OF)
        found = {name: again.get(name) for name in values}
        lost = [name for name, value in values.items() if found[name] != value]
        assert lost
        assert all(found[name] is None for name in lost)
        assert any("is damaged" in message for message in caplog.messages) or whole[at:] == b"\n", at
    file.write_bytes(whole.replace(b"-1.25", b"-1.26"))
    again = ResultCache(file, OF)
    assert f"{file}: line 2 is damaged; its result is computed again" in caplog.text
    again.put("a", values["a"])
    caplog.clear()
    again = ResultCache(file, OF)
    assert {name: again.get(name) for name in values} == values
    assert caplog.messages == [f"{file}: going on after 3 answers and results of before"]


def test_it_is_gone_when_the_evaluation_is_finished_and_never_there_if_nothing_was_kept(tmp_path: Path):
    cache = ResultCache(tmp_path / "out.json.partial", OF)
    assert list(tmp_path.iterdir()) == []
    cache.remove()
    cache.put("a", 1)
    cache.remove()
    assert list(tmp_path.iterdir()) == []
