from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from helpers.dense_runs import write_dense_run
from helpers.grown import law_tree, saved_arrays

from experiments.tiny import TINY_ROWS, tiny_config
from pangu_sigma.checkpoint.model_files import write_config
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.held_out.compare import compare_runs, format_differences
from pangu_sigma.inherit import child, extend
from pangu_sigma.inherit.equality import compare
from pangu_sigma.inherit.extend import check_extension, extend_run, extended_tables, plan_extension
from pangu_sigma.inherit.extract import extract_domains
from pangu_sigma.rre.row_keys import draw_row_tables
from pangu_sigma.sections import RoutingConfig
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.sentencepieces import alpha_model, parse_model
from pangu_sigma.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("graph_mode")

LAW, ZH, OLD = slice(0, 2), slice(2, 4), slice(2, None)
"""Experts of the new domain, of the one that it was made of, and of all old ones."""


def receipt_of(run):
    return json.loads((run / "lineage.json").read_text(encoding="utf-8"))


def test_every_array_of_old_domains_is_the_parents_bit_for_bit(tiny_run, extended):
    old, new = saved_arrays(tiny_run), saved_arrays(extended)
    assert old.keys() == new.keys()
    for name, values in new.items():
        if name.startswith("experts_layer_"):
            values = values[OLD]
        elif " embedding" in name:
            values = values[640:]
        assert values.tobytes() == old[name].tobytes(), name
    assert np.ptp(old["experts_layer_0 w1.variance"]) > 0


def test_the_new_domain_is_the_named_one_with_an_adam_of_its_own(tiny_run, extended):
    new, run = saved_arrays(extended), open_model(extended, "run")
    for name, values in new.items():
        if name.startswith("experts_layer_"):
            state = name.endswith(("moment", "variance", "step"))
            assert (values[LAW] == (0 if state else values[ZH])).all(), name
    assert (run.table.first_NDV[:, 0] == run.table.first_NDV[:, 1]).all()
    ids = run.tokenizer.slot_rows
    assert not np.any(new["dense_optimizer embedding.variance"][:640])
    both = np.isin(ids[0], ids[1])
    assert 0 < both.sum() < 640, "some tokens of the new slot are new"
    copied = new["dense embedding"][:640][both]
    assert (copied == new["dense embedding"][640 + run.tokenizer.row_of[1, ids[0][both]]]).all()
    drawn = new["dense embedding"][:640][~both & (ids[0] >= 0)]
    assert 0.018 < drawn.std() < 0.022


def test_all_domains_answer_as_before_and_the_new_one_as_the_named_bit_for_bit(extended):
    receipt = receipt_of(extended)
    assert receipt["agreement"].keys() == {"law", "zh", "en", "code"}
    for agreement in receipt["agreement"].values():
        assert agreement["exact"] == 0.0
        assert agreement["tokens"] == 16
    assert receipt["kind"] == "extend"
    assert receipt["parent_step"] == 30
    assert receipt["domains"]["law"] == "new, with experts and routing of domain zh"
    assert receipt["domains"]["en"] == "as it was"
    assert sum(receipt["parameters"].values()) == open_model(extended, "run").config.num_params().total


def test_an_extended_run_is_compared_with_its_parent_in_the_domains_that_both_have(tiny_run, extended):
    """Though its vocabulary, slots and batches are larger: the held-out ids are the same, and so, at step 0, are the losses."""
    before, after = open_model(tiny_run, "run"), open_model(extended, "run")
    assert before.tokenizer.hash != after.tokenizer.hash
    for pair in ([extended], [tiny_run]), ([tiny_run], [extended]):
        found = compare_runs(*pair, all=True)
        assert found["mean"].keys() == found["pairs"][0]["domains"].keys() == {"zh", "en", "code"}
        for row in found["pairs"][0]["domains"].values():
            assert row["samples"] > 1
            assert row["held_out"] == row["against"]["held_out"]
            assert row["difference"]["nats_per_token"] == pytest.approx(0, abs=1e-6)
            assert row["difference"]["se"] == pytest.approx(0, abs=1e-6)
        assert found["left_out"] == {"law": f"{tiny_run} has no such domain"}
        assert format_differences(found).splitlines()[-1] == f"not compared: law: {tiny_run} has no such domain"


def test_to_extract_what_was_extended_gives_the_run_back(tiny_run, extended, tmp_path):
    receipt = extract_domains(extended, tmp_path / "back", dropped=["law"])
    old, back = saved_arrays(tiny_run), saved_arrays(tmp_path / "back")
    assert old.keys() == back.keys()
    assert all(old[name].tobytes() == back[name].tobytes() for name in old)
    before, after = open_model(tiny_run, "run"), open_model(tmp_path / "back", "run")
    assert before.tokenizer.hash == after.tokenizer.hash
    assert before.table.hash == after.table.hash
    assert before.config.domains == after.config.domains
    assert receipt.parent_lineage is not None
    assert receipt.parent_lineage["kind"] == "extend", "the receipt keeps that of its parent"


def segmented(law_config):
    model = law_config.model.model_copy(update={"segments": ["own", "own", "common", "common"], "common_experts": 3})
    return law_config.model_copy(update={"model": model})


def test_a_new_domain_has_own_segments_and_shares_the_common_ones_bit_for_bit(segmented_run, law_config, tmp_path):
    receipt = extend_run(segmented_run, segmented(law_config), tmp_path / "run", "zh")
    assert [agreement.exact for agreement in receipt.agreement.values()] == [0.0] * 4
    old, new = saved_arrays(segmented_run), saved_arrays(tmp_path / "run")
    assert old.keys() == new.keys()
    for name, values in new.items():
        if not name.startswith("experts_layer_"):
            continue
        if int(name.split()[0].rpartition("_")[2]) % 4 >= 2:
            assert values.tobytes() == old[name].tobytes(), f"{name}: with its Adam state"
            continue
        assert values[OLD].tobytes() == old[name].tobytes(), name
        state = name.endswith(("moment", "variance", "step"))
        assert (values[LAW] == (0 if state else values[ZH])).all(), name
    before, after = (open_model(path, "run").table for path in (segmented_run, tmp_path / "run"))
    assert (after.first_NDV[:, 1:] == before.first_NDV).all()
    assert (after.first_NDV[:, 0] == after.first_NDV[:, 1]).all()
    assert (after.common_spread_V == before.common_spread_V).all()
    assert receipt.parameters["experts copied from domain zh"] == 4 * (2 * (2 * 24 * 8 + 8) + 24)
    assert sum(receipt.parameters.values()) == segmented(law_config).num_params().total
    back = extract_domains(tmp_path / "run", tmp_path / "back", dropped=["law"])
    again = saved_arrays(tmp_path / "back")
    assert [agreement.exact for agreement in back.agreement.values()] == [0.0] * 3
    assert all(old[name].tobytes() == again[name].tobytes() for name in old)
    assert open_model(tmp_path / "back", "run").table.hash == before.hash


def test_rows_of_old_domains_keep_their_bits_and_own_ones_of_a_new_domain_are_0(rows_run, law_config, tmp_path):
    """The new domain is in front, so keys of own rows move by one domain; without it again they are what they were."""
    config = law_config.model_copy(update={"model": open_model(rows_run, "run").config.model})
    receipt = extend_run(rows_run, config, tmp_path / "run", "zh")
    assert {name: each.exact for name, each in receipt.agreement.items()} == dict.fromkeys(("zh", "en", "code"), 0.0)
    assert receipt.domains["law"] == "new, with experts and routing of domain zh, its own rows 0"
    old, new = saved_arrays(rows_run), saved_arrays(tmp_path / "run")
    assert old.keys() == new.keys()
    for name, values in new.items():
        if name.startswith("rows_") or "row_scale" in name:
            assert values.tobytes() == (old[name] + (700 if name == "rows_2 keys" else 0)).tobytes(), name
    parent, run = (open_model(path, "run") for path in (rows_run, tmp_path / "run"))
    of_zh = compare(run, parent, {"law": domains_of(parent.config).named("zh")}, None)["law"]
    assert of_zh.exact > 0, "without own rows it is not zh"
    back = extract_domains(tmp_path / "run", tmp_path / "back", dropped=["law"])
    again = saved_arrays(tmp_path / "back")
    assert [agreement.exact for agreement in back.agreement.values()] == [0.0] * 3
    assert all(old[name].tobytes() == again[name].tobytes() for name in old)
    assert open_model(tmp_path / "back", "run").table.hash == parent.table.hash


def test_a_run_without_rows_gets_some_that_are_0_and_keeps_all_its_bits(tiny_run, tiny_data, tmp_path):
    """Its Adam state and its place in the text, too."""
    config = tiny_config(tiny_data, model={"rows": TINY_ROWS})
    receipt = extend_run(tiny_run, config, tmp_path / "run")
    assert [agreement.exact for agreement in receipt.agreement.values()] == [0.0] * 3
    old, new = saved_arrays(tiny_run), saved_arrays(tmp_path / "run")
    assert all(new[name].tobytes() == old[name].tobytes() for name in old)
    assert all(len(values) == 0 for name, values in new.items() if name.startswith("rows_"))
    before, after = (open_model(path, "run").table for path in (tiny_run, tmp_path / "run"))
    assert replace(after, row_EV=None, before_EV1=None).hash == before.hash
    drawn = draw_row_tables(config.model.rows, before.first_NDV.shape[2], config.routing.seed)
    assert [table.tobytes() for table in drawn] == [after.row_EV.tobytes(), after.before_EV1.tobytes()]
    assert (receipt.parameters["begun"], receipt.rows["own"].rows) == (3, 0)
    assert "the text of zh, en, code is read on from where the run stands" in receipt.notes


def test_tables_of_common_segments_have_one_row_for_all_domains_also_where_tokens_are_new(segmented_run, law_config):
    parent, config = open_model(segmented_run, "run"), segmented(law_config)
    planned = plan_extension(parent, config, scratch=True)
    old_id_V = np.arange(planned.tokenizer.size)
    old_id_V[-500:] = -1
    same = {each.name: each.name for each in parent.config.domains}
    table, common = extended_tables(parent, config, planned.tokenizer, old_id_V, same), [2, 3, 6, 7]
    assert (table.first_NDV[common] == table.first_NDV[common][:, :1]).all()
    assert (table.first_NDV[common][:, 0, :-500] == parent.table.first_NDV[common][:, 0, :-500]).all()
    assert (table.first_NDV[:, 1:, :-500] == parent.table.first_NDV[..., :-500]).all()
    assert set(np.unique(table.first_NDV[2, 0, -500:])) == {0, 1, 2}
    assert (table.first_NDV[2, 0, -500:] != table.first_NDV[3, 0, -500:]).any(), "segments are drawn independently"


@pytest.fixture(scope="module")
def dense(law_config, tmp_path_factory):
    """A dense run that nobody has trained, whose text is that of the four domains."""
    path = tmp_path_factory.mktemp("dense") / "alpha"
    model = law_config.model.model_copy(update={"dense_layers": 3, "rre_layers": 0})
    return write_dense_run(law_config.model_copy(update={"model": model}), path)


def test_a_parent_with_tables_of_its_own_keeps_them_and_the_rest_is_drawn_and_told(tiny_run, law_config, tmp_path):
    """Whatever is in the file: it is the parent's routing.npz that is read."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    routing = RoutingConfig(table=str(tmp_path / "gone.npz"))
    write_config(run, open_model(run, "run").config.model_copy(update={"routing": routing}), "run")
    config = law_config.model_copy(update={"routing": routing})
    receipt = extend_run(run, config, tmp_path / "child", scratch=True)
    before, after = (open_model(path, "run").table for path in (run, tmp_path / "child"))
    assert (after.first_NDV[:, 1:] == before.first_NDV).all()
    assert len(np.unique(after.first_NDV[:, 0])) == 2
    assert any("gone.npz is the parent's; entries that it lacks are drawn at random" in note for note in receipt.notes)


def test_fresh_domains_are_drawn_and_tables_depend_on_the_name_alone(tiny_run, law_config):
    parent = open_model(tiny_run, "run")
    planned = plan_extension(parent, law_config, scratch=True)
    w1 = planned.find("experts_layer_0", "w1", (8, 32, 24)).read()
    assert (w1[0] == w1[1]).all(), "model.expert_init=replicated"
    assert 0.015 < w1[0].std() < 0.025
    assert (w1 == planned.find("experts_layer_0", "w1", (8, 32, 24)).read()).all()
    domains = [*law_config.domains[1:], law_config.domains[0]]
    last = law_config.model_copy(update={"domains": domains})
    moved = plan_extension(parent, last, scratch=True).table
    assert (moved.first_NDV == planned.table.first_NDV[:, [1, 2, 3, 0]]).all(), "the order of folders does not matter"
    other = [law_config.domains[0].model_copy(update={"language": "en"}), *law_config.domains[1:]]
    with pytest.raises(
        ConfigError, match=r"domains: law: data\.path=.* was prepared with another format, language or slot"
    ):
        plan_extension(parent, law_config.model_copy(update={"domains": other}), scratch=True)
    same = {each.name: each.name for each in parent.config.domains}
    table = extended_tables(parent, last, planned.tokenizer, np.arange(planned.tokenizer.size), same)
    assert (table.first_NDV[:, 3] == planned.table.first_NDV[:, 0]).all()
    assert (table.first_NDV[:, :3] == parent.table.first_NDV).all()
    assert (planned.table.first_NDV[:, 1:] == parent.table.first_NDV).all()
    counts = np.bincount(planned.table.first_NDV[0, 0])
    assert np.ptp(counts) <= 1, "a drawn table deals ids out evenly"
    assert (planned.table.first_NDV[0, 0] != planned.table.first_NDV[0, 1]).any()


def test_more_english_pieces_leave_old_tokens_as_they_were(tiny_run, tiny_data, tmp_path):
    pieces = parse_model((tiny_run / "tokenizer" / "english.model").read_bytes())
    for surface in ("▁zebra", "▁giraffe"):
        pieces.pieces.add(piece=surface, score=-1.0)
    pieces.pieces[300].piece, pieces.pieces[-1].piece = pieces.pieces[-1].piece, pieces.pieces[300].piece
    (tmp_path / "more.model").write_bytes(pieces.SerializeToString())
    config = tiny_config(tmp_path / "data", vocabulary={"english_model": str(tmp_path / "more.model")})
    prepare(config, [tiny_data.parent / "text.jsonl"], tmp_path / "data")
    receipt = extend_run(tiny_run, config, tmp_path / "run")
    assert [agreement.exact for agreement in receipt.agreement.values()] == [0.0] * 3
    had, has = open_model(tiny_run, "run"), open_model(tmp_path / "run", "run")
    assert has.tokenizer.size == had.tokenizer.size + 2
    english = {piece: i for i, piece in enumerate(has.tokenizer.vocabulary.pieces) if i >= 40_260}
    for i, piece in list(enumerate(had.tokenizer.vocabulary.pieces))[40_260:]:
        assert (has.table.first_NDV[:, :, english[piece]] == had.table.first_NDV[:, :, i]).all()
    assert english["▁giraffe"] != has.tokenizer.size - 1, "ids have moved"
    assert receipt.slots[1].new == 2
    assert "2 tokens more" in receipt.notes[1]
    assert "text of old domains may be cut into other tokens" in receipt.notes[1]


def changed(tree, key, value):
    *path, last = key.split(".")
    for word in path:
        tree = tree[int(word)] if word.isdigit() else tree.setdefault(word, {})
    tree[last] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.hidden", 48, r"model\.hidden: 24 → 48"),
        ("model.rre_layers", 3, r"model\.rre_layers: 2 → 3"),
        ("model.rows", [], r'model\.rows\.2\.kind: "own" → null: rows are saved by numbers'),
        ("model.segments", ["own", "own"], r"model\.segments\.1: null → .own.: the saved arrays have this shape"),
        ("model.activation", "tanh", r'model\.activation: "fast_gelu" → "tanh"'),
        ("model.slot_rows", 600, r"slot_rows: 640 → 600: rows can be added, not taken away"),
        ("model.experts_per_domain", 4, r"model\.experts_per_domain: 2 → 4: the saved arrays have this shape"),
        ("routing.seed", 1, r"routing\.seed: 0 → 1: which expert a token goes to is decided"),
        ("routing.table", "balanced", r'routing\.table: "random" → "balanced"'),
        ("data.shuffle", "keyed", r'data\.shuffle: "permutation" → "keyed": the run counts its samples in that order'),
        ("ecss.moments", "bfloat16", r"ecss\.moments.*the saved moments have this precision"),
        ("domains.3.format", "text", r"format of code: code → text: the model was trained on text that is written so"),
        ("domains.3.language", "java", r"language of code: python → java"),
        ("domains.3.slot", "law", r"slot of code: en → law: its rows are in that slot"),
        ("domains.3.name", "python", r"code is missing: keep it; `pangu-sigma extract --drop code`"),
    ],
)
def test_what_cannot_be_extended_is_refused_by_key(tiny_data, tmp_path, key, value, message):
    tree = law_tree(tmp_path)
    changed(tree, key, value)
    had = tiny_config(tiny_data, model={"rows": TINY_ROWS} if key == "model.rows" else {})
    with pytest.raises(ConfigError, match=message):
        check_extension(tmp_path, had, parse_config(tree))


def test_origins_that_cannot_be_are_refused(tiny_run, law_config, dense, tmp_path):
    parent = open_model(tiny_run, "run")
    with pytest.raises(
        ConfigError,
        match=r"law: say what new domains begin as: from_domain DOMAIN .*, or from_scratch",
    ):
        plan_extension(parent, law_config)
    with pytest.raises(ConfigError, match=r"from_domain fr: the run has the domains zh, en, code"):
        plan_extension(parent, law_config, "fr")
    with pytest.raises(ConfigError, match="give one of them"):
        plan_extension(parent, law_config, "zh", scratch=True)
    with pytest.raises(
        ConfigError, match=r"model\.rre_layers=0\), so it has no experts to add to; `pangu-sigma inherit`"
    ):
        extend_run(dense, law_config, tmp_path / "run", "zh")
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_would_be_lost_are_named_with_the_way_to_keep_them(tiny_run, law_config, tmp_path, monkeypatch):
    parent = open_model(tiny_run, "run")
    with pytest.raises(DataError, match=r"is not there; .*\n.*prepare-data .*vocabulary\.keep="):
        plan_extension(parent, parse_config(law_tree(tmp_path / "nothing")), "zh")
    prepared = open_model(tiny_run, "run").tokenizer
    rows = np.concatenate([prepared.slot_rows[:1], prepared.slot_rows])
    rows[1, 600:610] = -1
    lossy = Tokenizer(alpha_model(), (tiny_run / "tokenizer" / "english.model").read_bytes(), rows)
    monkeypatch.setattr(extend, "read_prepared_tokenizer", lambda config: lossy)
    with pytest.raises(
        ConfigError, match=r"slot zh: 10 of its 640 tokens have no row .*extend with model\.slot_rows=40\d\d\d or more"
    ):
        plan_extension(parent, law_config, "zh")
    old_id_V = extend.matching_ids(parent.tokenizer.vocabulary, lossy.vocabulary)
    old_id_V[old_id_V == parent.tokenizer.slot_rows[0, 600]] = -1  # other pieces were learned from other text
    monkeypatch.setattr(extend, "matching_ids", lambda *of: old_id_V)
    with pytest.raises(
        ConfigError, match=r"The new vocabulary lacks some of them, so more rows do not help: keep .*\n.*keep="
    ):
        plan_extension(parent, law_config, "zh")


def test_what_is_interrupted_leaves_nothing(tiny_run, law_config, tmp_path, monkeypatch):
    def interrupt(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extend_run(tiny_run, law_config, tmp_path / "run", "zh")
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_the_same_run_and_refuses_to_make_it_twice(tiny_run, extended, law_config, tmp_path, capsys):
    config = tmp_path / "law.yaml"
    config.write_text(yaml.safe_dump(law_config.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")
    arguments = ["extend", str(tiny_run), str(config), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--from-domain", "zh"]) == 0
    assert "new, with experts and routing of domain zh" in capsys.readouterr().out
    one, other = saved_arrays(extended), saved_arrays(tmp_path / "run")
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert main([*arguments, "--from-domain", "zh"]) == 2
    assert "exists; choose another path with --output" in capsys.readouterr().err
