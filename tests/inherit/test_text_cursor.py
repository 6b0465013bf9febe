"""Text is added in place: the run goes on as before, and a run that is extended reads on, if text and order are the same."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers.grown import law_tree, prepare_extension, saved_arrays, write_law
from helpers.prepared import reseal

from experiments.tiny import tiny_tree
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.inherit.extend import extend_run, text_cursor
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.start import start_run

pytestmark = pytest.mark.usefixtures("graph_mode")


def last_tree(data, seed: int = 0):
    """The configuration with the new domain behind the old ones."""
    tree = law_tree(data)
    tree["domains"] = [*tree["domains"][1:], tree["domains"][0]]
    return tree | {"seed": seed}


def test_a_run_goes_on_with_the_same_bits_after_its_text_got_a_domain_in_place(tiny_data, tmp_path):
    """Two domains, three steps; a third domain, with more rows in the slot of one; two steps more."""
    tree, text = tiny_tree(tmp_path / "data"), tiny_data.parent / "text.jsonl"
    two, three = parse_config(tree | {"domains": tree["domains"][:2]}), parse_config(tree)
    three = three.model_copy(update={"model": three.model.model_copy(update={"slot_rows": 700})})
    prepare(two, [text], tmp_path / "data")
    trainer = Trainer(start_run(tmp_path / "run", two))
    for _ in range(3):
        trainer.advance()
    trainer.save()
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    prepare_extension(three, [text])
    assert (tmp_path / "data" / "code" / "train.bin").exists()
    resumed = Trainer(start_run(tmp_path / "resumed", two))
    assert resumed.progress.step == 3
    for each in (trainer, resumed):
        each.advance()
        each.advance()
        each.save()
    one, other = (saved_arrays(tmp_path / name) for name in ("run", "resumed"))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    states = [open_model(tmp_path / name, "run").checkpoint for name in ("run", "resumed")]
    assert states[0].state == states[1].state and states[0].identity == states[1].identity


def test_after_only_new_text_was_prepared_the_run_goes_on_in_the_old_text(tiny_data, tiny_run, law_config, tmp_path):
    write_law(tmp_path / "law.jsonl", tiny_data.parent / "text.jsonl")
    text = shutil.copytree(tiny_data, tmp_path / "data")
    config = parse_config(last_tree(text))
    prepare_extension(config, [tmp_path / "law.jsonl"])
    receipt = extend_run(tiny_run, config, tmp_path / "run", "zh")
    assert "the text of zh, en, code is read on from where the run stands" in receipt.notes
    assert [agreement.exact for agreement in receipt.agreement.values()] == [0.0] * 4
    taken = open_model(tiny_run, "run").checkpoint.state["cursor"]["taken"]
    trainer = Trainer(start_run(tmp_path / "run", config))
    assert trainer.progress.cursor == Cursor([*taken, 0], [*taken, 0])
    order = trainer.batches.order
    first = {domain: numbers[0] for domain, numbers in order.take(Cursor([*taken, 0], [*taken, 0]))}
    assert len(first) == 3
    for domain, number in first.items():
        assert number == order.sample(domain, [*taken, 0][domain]), "the next sample of each, and no catching up"
    for _ in range(4):
        trainer.advance()
    trainer.save()
    resumed = Trainer(start_run(tmp_path / "run", config))
    assert resumed.progress.cursor == trainer.progress.cursor
    assert (np.array(resumed.progress.cursor.taken) - [*taken, 0]).tolist() == [6, 6, 6, 6]
    moved, other = parse_config(law_tree(text)), parse_config(last_tree(text, seed=1))
    parent = open_model(tiny_run, "run")
    assert text_cursor(parent, moved) == (
        Cursor([0] * 4, [0] * 4),
        "the text of zh, en, code is read from its beginning, because another place in the list is another order",
    )
    assert text_cursor(parent, other)[0] == Cursor([0] * 4)
    elsewhere = parse_config(last_tree(law_config.data.path))
    assert text_cursor(parent, elsewhere)[0] == Cursor([*taken, 0], [*taken, 0]), "the same text, prepared once more"
    file = shutil.copytree(text, tmp_path / "changed") / "en" / "train.bin"
    np.fromfile(file, "<i4")[::-1].tofile(file)
    reseal(tmp_path / "changed")
    cursor, note = text_cursor(parent, parse_config(last_tree(tmp_path / "changed")))
    assert cursor == Cursor([0] * 4)
    assert "all text is read from its beginning: it is not that of the run" in note
    assert text_cursor(parent, parent.config)[0] == Cursor(taken, taken), "the run's own text"
