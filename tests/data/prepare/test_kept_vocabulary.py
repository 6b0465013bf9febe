"""What is kept of a run's vocabulary; what it is for: tests/inherit/test_from_alpha.py, tests/inherit/test_extend.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.tiny import tiny_config, tiny_tree
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.prepare.extension import KeptVocabulary
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.domains import domains_of
from pangu_sigma.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def other_text(tmp_path_factory) -> Path:
    """Text of the three domains in words that the run has not seen."""
    draw, file = np.random.default_rng(3), tmp_path_factory.mktemp("text") / "other.jsonl"
    words = {"en": "quantum violin marble teapot".split(), "code": ["alpha", "beta", "="], "zh": list("龙凤麟龟鹤松")}  # noqa: SIM905
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(40):
            for name, some in words.items():
                text = ("" if name == "zh" else " ").join(draw.choice(some, 20))
                lines.write(json.dumps({"domain": name, "text": text}, ensure_ascii=False) + "\n")
    return file


def test_english_pieces_and_rows_of_a_run_are_kept_whatever_the_text(tiny_run, other_text, tmp_path):
    """With more rows, those of the run come first, and the others go to the new text."""
    run = Tokenizer.load(tiny_run / "tokenizer")
    for rows in (640, 700):
        config = tiny_config(tmp_path / str(rows), vocabulary={"keep": str(tiny_run)}, model={"slot_rows": rows})
        prepare(config, [other_text], tmp_path / str(rows))
        found = PreparedData(tmp_path / str(rows)).tokenizer()
        assert found.vocabulary.pieces == run.vocabulary.pieces
        np.testing.assert_array_equal(found.slot_rows[:, :640], run.slot_rows)
    assert found.row_of[0, found.vocabulary.character_ids["龙"]] >= 640
    manifest = json.loads((tmp_path / "640" / "en" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"]["kept"] == [run.hash, ["zh", "en"]]


def test_a_slot_takes_the_rows_of_its_name_or_of_the_only_slot_in_its_own_languages(tiny_run):
    kept = KeptVocabulary.of(tiny_config(tiny_run, vocabulary={"keep": str(tiny_run)}))
    assert kept is not None
    tree = tiny_tree(tiny_run)
    tree["domains"][0]["slot"] = "law"
    assert kept.ids(kept.tokenizer.vocabulary, domains_of(parse_config(tree)), 0) == [], "two slots, none of that name"
    only = domains_of(parse_config(tree | {"domains": tree["domains"][1:]}))
    one = KeptVocabulary(kept.run, kept.tokenizer.with_rows(kept.tokenizer.slot_rows[[1]]), only)
    tree["domains"][1]["slot"] = tree["domains"][2]["slot"] = "law"
    rows_R = kept.tokenizer.slot_rows[1]
    assert one.ids(kept.tokenizer.vocabulary, domains_of(parse_config(tree)), 0) == rows_R[rows_R >= 0].tolist()


def test_what_is_no_run_and_too_few_rows_are_refused(tiny_run, other_text, tmp_path):
    with pytest.raises(ConfigError, match=r"vocabulary\.keep=.*: is no run folder \(.*\); name one"):
        prepare(tiny_config(tmp_path / "data", vocabulary={"keep": str(tmp_path)}), [other_text], tmp_path / "data")
    config = tiny_config(tmp_path / "data", vocabulary={"keep": str(tiny_run)}, model={"slot_rows": 600})
    with pytest.raises(ConfigError, match=r"model\.slot_rows=600: .*needs 640 rows for vocabulary\.keep"):
        prepare(config, [other_text], tmp_path / "data")
    assert not (tmp_path / "data").exists()
