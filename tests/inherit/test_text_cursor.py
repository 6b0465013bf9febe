"""An extended run reads on in the text of the old domains, if that text and its order are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.grown import law_tree, write_law

from pangu_sigma.config_file import parse_config
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.prepare.extended import prepare_extension
from pangu_sigma.inherit.extend import extend_run, text_cursor
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("graph_mode")


def last_tree(data, seed: int = 0):
    """The configuration with the new domain behind the old ones."""
    tree = law_tree(data)
    tree["domains"] = [*tree["domains"][1:], tree["domains"][0]]
    return tree | {"seed": seed}


def test_after_only_new_text_was_prepared_the_run_goes_on_in_the_old_text(tiny_data, tiny_run, law_config, tmp_path):
    write_law(tmp_path / "law.jsonl", tiny_data.parent / "text.jsonl")
    config, text = parse_config(last_tree(tmp_path / "data")), tmp_path / "data"
    prepare_extension(config, [tmp_path / "law.jsonl"], tiny_data, text)
    receipt = extend_run(tiny_run, config, tmp_path / "run", "zh")
    assert "the text of zh, en, code is read on from where the run stands" in receipt.notes
    assert [agreement.exact for agreement in receipt.agreement.values()] == [0.0] * 4
    taken = open_model(tiny_run, "run").checkpoint.state["cursor"]["taken"]
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.progress.cursor == Cursor([*taken, 0], [*taken, 0])
    order = trainer.batches.order
    first = {domain: numbers[0] for domain, numbers in order.take(Cursor([*taken, 0], [*taken, 0]))}
    assert len(first) == 3
    for domain, number in first.items():
        assert number == order.sample(domain, [*taken, 0][domain]), "the next sample of each, and no catching up"
    for _ in range(4):
        trainer.advance()
    trainer.save()
    resumed = Trainer(config, tmp_path / "run")
    assert resumed.progress.cursor == trainer.progress.cursor
    assert (np.array(resumed.progress.cursor.taken) - [*taken, 0]).tolist() == [6, 6, 6, 6]
    moved, other = parse_config(law_tree(text)), parse_config(last_tree(text, seed=1))
    parent, manifest = open_model(tiny_run, "run"), load_manifest(text)
    assert text_cursor(parent, moved, manifest) == (
        Cursor([0] * 4, [0] * 4),
        "the text of zh, en, code is read from its beginning, because another place in the list is another order",
    )
    assert text_cursor(parent, other, manifest)[0] == Cursor([0] * 4)
    cursor, note = text_cursor(parent, config, load_manifest(Path(law_config.data.path)))
    assert cursor == Cursor([0] * 4)
    assert "all text is read from its beginning: only text that was prepared with" in note
    assert text_cursor(parent, parent.config, load_manifest(tiny_data))[0] == Cursor(taken, taken), "the run's own text"
