from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.tiny import TINY_ROWS, tiny_config, tiny_tree
from pangu_sigma.checkpoint.changes import (
    RULES,
    absolute_paths,
    change_text,
    changed_keys,
    leaves,
    refuse_changes,
    rule_of,
)
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.order import Cursor, SampleOrder

CONFIG = tiny_config(Path("/data"), parallel={"data": 2})
PHASES = {"phases": [{"from_step": 0, "weights": {"zh": 1.0}}]}
KEYS = leaves(CONFIG.model_dump(mode="json")) | leaves(PHASES, "data") | leaves({"rows": TINY_ROWS}, "model")


def test_every_key_has_a_rule_and_every_rule_a_key():
    assert len(KEYS) > 60
    for key in KEYS:
        rule_of(key)
    starred = {".".join("*" if word.isdigit() else word for word in key.split(".")) for key in KEYS}
    for path in RULES:
        assert any(key == path or key.startswith(f"{path}.") for key in starred), path
    assert all(rule.why for rule in RULES.values() if not rule.free), "who refuses says why"


@pytest.mark.parametrize(
    ("key", "free"),
    [
        *[
            (key, True)
            for key in ("train.steps", "train.optimizer.beta1", "parallel.expert", "ecss.store", "data.path")
        ],
        *[(key, True) for key in ("domains.1.weight", "model.dropout", "train.batch_size", "train.new_key")],
        *[(key, False) for key in ("seed", "model.hidden", "model.init_std", "domains.0.name", "domains.12.slot")],
        *[(key, False) for key in ("routing.table", "vocabulary.english_pieces", "ecss.moments", "domains.2.format")],
        *[("model.activation", False), ("model.rows.0.width", False)],
        *[("train.optimizer.rate_rows", True), ("train.optimizer.eps_rows", True)],
    ],
)
def test_keys_that_give_the_state_another_meaning_are_not_free(key, free):
    assert rule_of(key).free is free


def test_a_refusal_names_every_key_with_old_new_and_reason_and_the_way_out():
    other = tiny_config(Path("/data"), model=CONFIG.model.model_dump() | {"ffn": 40}, routing={"seed": 3})
    changes = changed_keys(CONFIG.model_dump(mode="json"), other.model_dump(mode="json"))
    assert changes == [("model.ffn", 32, 40), ("routing.seed", 0, 3), ("parallel.data", 2, 1)]
    with pytest.raises(ConfigError) as refused:
        refuse_changes(Path("runs/a"), changes, "or add --start-over")
    lines = str(refused.value).splitlines()
    assert lines[0] == "runs/a has checkpoints that do not go with"
    assert lines[1].startswith("  model.ffn: 32 → 40: the saved arrays")
    assert lines[2].startswith("  routing.seed: 0 → 3: which expert")
    assert lines[3] == "or add --start-over"
    refuse_changes(Path("runs/a"), changes[2:], "")


def test_domains_that_come_or_go_differ():
    fewer = CONFIG.model_copy(update={"domains": CONFIG.domains[:2], "data": CONFIG.data})
    changes = changed_keys(CONFIG.model_dump(mode="json"), fewer.model_dump(mode="json"))
    assert ("domains.2.name", "code", None) in changes
    assert change_text(("domains.2.name", "code", None)) == 'domains.2.name: "code" → null'
    with pytest.raises(ConfigError, match=r"domains\.2\.name"):
        refuse_changes(Path("a"), changes, "")


def test_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    relative = tiny_config(Path("data/mine"), ecss={"store": "file", "path": "experts"})
    absolute = absolute_paths(relative)
    assert absolute.data.path == str(tmp_path / "data/mine")
    assert absolute.ecss.path == str(tmp_path / "experts")


def shaped(sequences: int, accumulation: int, blocks: int, weight: float) -> Config:
    tree = tiny_tree(Path("/data"))
    tree["train"] |= {"batch_size": sequences * blocks, "accumulation": accumulation}
    tree["data"]["domains_per_step"] = blocks
    tree["domains"][0]["weight"] = weight
    return parse_config(tree)


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.5, 1.0, 3.0]))


@given(st.lists(st.tuples(SHAPES, st.integers(1, 6)), min_size=2, max_size=4))
def test_no_sample_is_lost_or_taken_twice_when_the_shape_of_batches_or_weights_change(stretches):
    """The reason why batch_size, accumulation, domains_per_step and weights are free."""
    counts = [40, 30, 50]
    taken: list[list[int]] = [[], [], []]
    cursor = Cursor([0] * 3)
    for shape, updates in stretches:
        order = SampleOrder(shaped(*shape), counts)
        for _ in range(updates):
            for domain, numbers in order.take(cursor):
                taken[domain] += numbers
    whole = SampleOrder(shaped(1, 1, 1, 1.0), counts)
    for domain, numbers in enumerate(taken):
        assert numbers == [whole.sample(domain, n) for n in range(len(numbers))]
        first_pass = numbers[: counts[domain]]
        assert len(set(first_pass)) == len(first_pass)
