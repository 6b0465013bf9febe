"""A task's file is counted to the last line: samples, what was cut, left out and skipped, and why."""

from __future__ import annotations

import pytest
from helpers.tasks import TASK, pairs, write_lines

from experiments.tiny import tiny_config
from pangu_sigma.errors import DataError
from pangu_sigma.finetune.samples import TaskFile, format_file, read_task_file
from pangu_sigma.stored.open import open_model


@pytest.fixture
def read(tiny_run, tiny_data, tmp_path):
    def reading(*lines: object, **options: object) -> TaskFile:
        run, path = open_model(tiny_run, "run"), write_lines(tmp_path / "a.jsonl", lines)
        config = tiny_config(tiny_data, finetune=TASK["finetune"] | options, chat=TASK["chat"])
        return read_task_file(path, "--train-file", config, run.tokenizer)

    return reading


def test_every_line_is_accounted_for_by_domain(read, tmp_path):
    talk = [{"role": role, "content": text} for role, text in (("user", "the cat"), ("assistant", "a dog")) * 4]
    chinese = {"prompt": "今天", "response": "天气", "domain": "zh"}
    long = {"prompt": "the cat " * 30, "response": "dog"}
    found = read(*pairs(0, 3), {"messages": talk}, chinese, long, "no json", {"prompt": "a"}, "", '{"prompt"')
    facts, counts = found.facts, ("lines", "samples", "left_out")
    english, other = facts["domains"]["en"], facts["domains"]["zh"]
    assert [english[key] for key in counts] == [5, 7, {"prompt and answer are too long": 1}]
    assert english["cut"] > 0, "of four answers the last ones have too long a past"
    assert [other[key] for key in counts] == [1, 1, {}]
    assert [count > 0 for count in found.sequences.counts] == [True, True, False]
    samples = [sample for own in found.sequences._samples for sample in own]
    assert english["tokens"] + other["tokens"] == sum(len(sample.ids_T) for sample in samples)
    assert english["counted"] + other["counted"] == sum(sample.counted for sample in samples)
    assert english["sequences"] == found.sequences.counts[1] < 7
    assert facts["skipped"] == {"not JSON": 2, "wrong keys": 1}
    assert [line.reason for line in found.refused] == ["not JSON", "wrong keys", "not JSON"]
    assert found.refused[0].offset == (tmp_path / "a.jsonl").read_bytes().index(b"no json")
    table = format_file(facts)
    assert "3 lines are unusable and quarantined:\n  2 × not JSON, first " in table
    assert "left out: 1 × prompt and answer are too long" in table


def test_a_file_without_a_sample_that_can_be_used_is_refused(read, tmp_path):
    with pytest.raises(
        DataError, match=r"(?s)1 line is unusable.*\ntrain_file .*a\.jsonl: has no sample that can be used"
    ):
        read("nothing")
    with pytest.raises(
        DataError, match=r"no sample that can be used: 1 × the answer is too long; model\.seq_length is 32"
    ):
        read({"prompt": "a", "response": "the cat " * 40})
    with pytest.raises(DataError, match=r"train_file .*none\.jsonl: cannot be read"):
        read_task_file(tmp_path / "none.jsonl", "--train-file", None, None)


def test_the_hash_is_that_of_the_samples(read):
    first = read(*pairs(0, 3))
    assert read(*pairs(0, 3), "bad").sequences.hash == first.sequences.hash
    assert read(*pairs(0, 4)).sequences.hash != first.sequences.hash
    assert first.facts["samples"] == first.sequences.hash
