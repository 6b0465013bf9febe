from __future__ import annotations

import json
import re
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from helpers.dense_runs import write_dense_run
from helpers.grown import saved_arrays
from helpers.toy import weights_of

from experiments.tiny import TINY_ROWS, tiny_config, tiny_tree, write_text
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.errors import LayoutError
from pangu_sigma.inherit.from_alpha import inherit, mapped, parent_slot
from pangu_sigma.inherit.parent import open_parent, parent_refusal
from pangu_sigma.inherit.receipt import RowCount, values_hash
from pangu_sigma.stored.network import build_network
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.loop import train

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def parent(tiny_data, tmp_path_factory):
    """A dense run of three layers that has learned a little."""
    path = tmp_path_factory.mktemp("parent") / "dense"
    dense = {"dense_layers": 3, "rre_layers": 0}
    train(tiny_config(tiny_data, model=dense, train={"steps": 4, "eval_interval": 4, "checkpoint_interval": 4}), path)
    return path


@pytest.fixture(scope="module")
def child(parent, tiny_data, tmp_path_factory):
    """Folder and receipt of the sparse run that inherits it."""
    path = tmp_path_factory.mktemp("child") / "sparse"
    receipt = inherit(open_parent(parent), tiny_config(tiny_data), path)
    return SimpleNamespace(path=path, receipt=receipt, config=tiny_config(tiny_data))


def arrays(path) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    network, store = build_network(open_model(path, "run"))
    return {n: p.asnumpy() for n, p in network.parameters_and_names()}, [w.asnumpy() for w in weights_of(store)]


def test_every_tensor_of_the_child_is_its_parents_bit_for_bit(parent, child):
    (old, _), (new, experts) = arrays(parent), arrays(child.path)
    used = open_model(child.path, "run").tokenizer.slot_rows.ravel() >= 0
    for name, value in new.items():
        rows = used if name == "embedding" else slice(None)  # rows without a token are nobody's
        assert (value[rows] == old[name][rows]).all(), name
    assert len(experts) == 2 * 4
    for i, value in enumerate(experts):
        name = f"layers.{1 + i // 4}.ffn.{('w1', 'b1', 'w2', 'b2')[i % 4]}"
        assert value.shape[0] == 6
        assert (value == old[name]).all(), "each of the six experts is the parent's FFN"
    assert any(np.ptp(value) > 0 for value in experts), "and the comparison is not of zeros"


def test_step_0_answers_as_the_parent_bit_for_bit_in_every_domain(child, tiny_data):
    """Truth 2 of the design, on the path that adds in one order."""
    written = (tiny_data.parent / "text.jsonl").read_text(encoding="utf-8").replace("\\n", "\n")
    assert set(child.receipt.agreement) == {"zh", "en", "code"}
    for agreement in child.receipt.agreement.values():
        assert agreement.exact == 0.0
        assert agreement.tokens == 16
        assert agreement.text.strip() in written, "as it was written, nothing left out"
        assert (agreement.texts > 5, agreement.other) == (True, 0)


@pytest.mark.parametrize(
    ("model", "slots"),
    [
        ({"dense_layers": 3, "rre_layers": 0}, ("zh", "en", "en")),
        ({"dense_layers": 0, "rre_layers": 3, "experts_per_domain": 3}, ("zh", "en", "en")),
        ({}, ("main", "main", "main")),
        ({}, ("a", "b", "c")),
    ],
    ids=["dense child", "all layers sparse", "one slot", "a slot for each domain"],
)
def test_children_of_every_form_equal_their_parent(tmp_path, model, slots):
    """The parent has one slot where the child's slots have other names."""
    data, tree = tmp_path / "data", tiny_tree(tmp_path / "data")
    for domain, slot in zip(tree["domains"], slots, strict=True):
        domain["slot"] = slot
    tree["model"] |= model
    dense = tiny_tree(tmp_path / "parent_data")
    dense["model"] |= {"dense_layers": 3, "rre_layers": 0}
    for domain, slot in zip(dense["domains"], slots, strict=True):
        domain["slot"] = slot if slots == ("zh", "en", "en") else "only"
    text = tmp_path / "text.jsonl"
    write_text(text)
    prepare(parse_config(tree), [text], data)
    prepare(parse_config(dense), [text], tmp_path / "parent_data")
    parent = write_dense_run(parse_config(dense), tmp_path / "parent")
    drop = slots == (
        "a",
        "b",
        "c",
    )  # `only` has rows for letters of the English text, which Chinese text alone does not need
    receipt = inherit(open_parent(parent), parse_config(tree), tmp_path / "child", drop_rows=drop)
    assert [agreement.exact for agreement in receipt.agreement.values()] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("segments", [["own", "own"], ["own", "own", "common", "common"]], ids=len)
def test_segments_have_the_parents_units_in_order_and_answer_as_it_bit_for_bit(parent, tiny_data, tmp_path, segments):
    """Moments too; the output bias is that of the first segment."""
    model = {"segments": segments, "common_experts": 3 * ("common" in segments)}
    receipt = inherit(open_parent(parent), tiny_config(tiny_data, model=model), tmp_path / "child", moments=True)
    assert [agreement.exact for agreement in receipt.agreement.values()] == [0.0, 0.0, 0.0]
    old, new, width = saved_arrays(parent), saved_arrays(tmp_path / "child"), 32 // len(segments)
    for number in range(2 * len(segments)):
        layer, part = divmod(number, len(segments))
        for name in ("w1", "b1", "w2", "b2") if part == 0 else ("w1", "b1", "w2"):
            units = slice(None) if name == "b2" else slice(part * width, (part + 1) * width)
            for state in ("", ".moment", ".variance"):
                where = (
                    f"dense_optimizer layers.{1 + layer}.ffn.{name}{state}"
                    if state
                    else f"dense layers.{1 + layer}.ffn.{name}"
                )
                made = new.pop(f"experts_layer_{number} {name}{state}")
                assert made.shape[0] == (6 if segments[part] == "own" else 3)
                assert all(expert.tobytes() == old[where][units].tobytes() for expert in made), (number, name, state)
        assert (new.pop(f"experts_layer_{number} step") == 4).all()
    assert not any(name.startswith("experts") for name in new), "b2 is that of the first segment alone"
    kinds = ", ".join(f"{6 if kind == 'own' else 3} {kind}" for kind in segments)
    assert f"each upper FFN is cut into {len(segments)} segments of {kinds} experts" in str(receipt)
    assert sum(receipt.parameters.values()) == open_model(tmp_path / "child", "run").config.num_params().total


def test_rows_begin_at_0_and_step_0_answers_as_the_parent_bit_for_bit(parent, child, tiny_data, tmp_path):
    """Adam state of the parent goes along, and its scales of rows begin with none."""
    config = tiny_config(tiny_data, model={"rows": TINY_ROWS})
    receipt = inherit(open_parent(parent), config, tmp_path / "run", moments=True)
    assert [agreement.exact for agreement in receipt.agreement.values()] == [0.0, 0.0, 0.0]
    old, new = saved_arrays(child.path), saved_arrays(tmp_path / "run")
    assert {name.split()[0] for name in new.keys() - old.keys() if "row_scale" not in name} == {
        "rows_0",
        "rows_1",
        "rows_2",
    }
    assert all(len(values) == 0 for name, values in new.items() if name.startswith("rows_"))
    for layer in range(3):
        name = f"layers.{layer}.row_scale"
        assert new[f"dense {name}"] == np.float32(0.1)
        assert new[f"dense_optimizer {name}.variance"] == 0
    for name in old.keys() - {"dense_optimizer step"}:
        if name.startswith("dense ") or name.endswith((" w1", " w2", " b1", " b2")):
            assert new[name].tobytes() == old[name].tobytes(), name
    assert receipt.rows == {"common": RowCount(0, 0, 0), "own": RowCount(0, 0, 0)}
    assert re.search(r"own rows +none was met: all are 0, and change no answer", str(receipt))
    assert receipt.parameters["begun"] == 3
    assert sum(receipt.parameters.values()) == config.num_params().total
    assert "row_scale" in mapped(open_parent(parent), config)[1]


def test_a_dense_parent_with_rows_is_refused(tiny_data):
    config = tiny_config(tiny_data, model={"rows": TINY_ROWS, "dense_layers": 3, "rre_layers": 0})
    assert "has model.rows" in parent_refusal(SimpleNamespace(kind="run", config=config))


def test_the_mapping_names_the_units_of_each_segment(parent, tiny_data):
    config = tiny_config(tiny_data, model={"segments": ["own", "common"], "common_experts": 3})
    lines = [line.split() for line in mapped(open_parent(parent), config)[1].splitlines()]
    (own,) = [line for line in lines if line[0] == "ffn.experts.*.w1"]
    (common,) = [line for line in lines if line[0] == "ffn.segments.1.experts.*.w1"]
    assert " ".join(own[:7]) == "ffn.experts.*.w1 1 … 2 (6, 16, 24)"
    assert " ".join(common[:7]) == "ffn.segments.1.experts.*.w1 1 … 2 (3, 16, 24)"
    assert "units 0 … 15" in " ".join(own)
    assert "units 16 … 31" in " ".join(common)
    assert not [line for line in lines if line[0] == "ffn.segments.1.experts.*.b2"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A dense run of Chinese alone, and configuration and input of a child whose slot zh a second Chinese domain shares."""
    folder = tmp_path_factory.mktemp("shared")
    tree, text = tiny_tree(folder / "parent_data"), folder / "text.jsonl"
    write_text(text)
    poems = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少床前明月光疑是地上霜举头望山低头思故乡"
    draw = np.random.default_rng(2)
    lines = text.read_text(encoding="utf-8")
    for _ in range(120):
        poem = "".join(draw.choice(list(poems), 60))
        lines += json.dumps({"domain": "poems", "text": poem}, ensure_ascii=False) + "\n"
    text.write_text(lines, encoding="utf-8")
    dense = tree | {"domains": tree["domains"][:1], "data": tree["data"] | {"domains_per_step": 1}}
    dense["model"] = tree["model"] | {"dense_layers": 3, "rre_layers": 0}
    only = folder / "zh.jsonl"
    only.write_text("".join(line for line in lines.splitlines(True) if '"domain": "zh"' in line), encoding="utf-8")
    prepare(parse_config(dense), [only], folder / "parent_data")
    run = write_dense_run(parse_config(dense), folder / "dense")
    tree["domains"] = [tree["domains"][0], {"name": "poems", "language": "zh", "slot": "zh"}]
    tree["data"] |= {"domains_per_step": 2}
    return SimpleNamespace(run=run, tree=tree, text=text, only=only)


def test_rows_of_a_parent_that_a_shared_slot_drops_are_refused_or_told(shared, tmp_path):
    tree = shared.tree | {"data": shared.tree["data"] | {"path": str(tmp_path / "data")}}
    prepare(parse_config(tree), [shared.text], tmp_path / "data")
    parent = open_parent(shared.run)
    refusal = r"slot zh: (\d+) tokens of the parent's slot zh \(.*\) have no row\n.*vocabulary\.keep=.*dense.*drop_rows"
    with pytest.raises(ConfigError, match=refusal) as refused:
        inherit(parent, parse_config(tree), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    receipt = inherit(parent, parse_config(tree), tmp_path / "run", drop_rows=True)
    (slot,) = receipt.slots
    assert slot.lost == int(re.search(refusal, str(refused.value))[1]) > 10
    assert f"{slot.lost} of the parent's tokens have no row" in repr(receipt)


def test_rows_of_a_run_that_are_kept_lose_nothing_and_text_is_cut_as_the_parent_cuts_it(shared, tmp_path):
    tree = shared.tree | {"data": shared.tree["data"] | {"path": str(tmp_path / "data")}}
    tree["vocabulary"] = {"keep": str(shared.run)}
    prepare(parse_config(tree), [shared.text], tmp_path / "data")
    receipt = inherit(open_parent(shared.run), parse_config(tree), tmp_path / "run")
    assert [slot.lost for slot in receipt.slots] == [0]
    for agreement in receipt.agreement.values():
        assert (agreement.exact, agreement.other) == (0.0, 0)
    assert receipt.agreement["poems"].texts > 5


def test_the_receipt_accounts_for_every_parameter_and_is_kept(parent, child):
    receipt, count = child.receipt, child.config.num_params()
    assert sum(receipt.parameters.values()) == count.total
    assert receipt.parameters["replicated"] == count.experts
    assert receipt.parameters["rows drawn anew"] == 0, "parent and child have one vocabulary"
    kept = json.loads((child.path / "lineage.json").read_text(encoding="utf-8"))
    assert kept["parent"] == str(parent)
    assert kept["parent_step"] == 4
    assert kept["agreement"]["zh"]["exact"] == 0.0
    assert kept["parent_hash"] == values_hash(open_parent(parent))


def test_a_dry_run_tells_every_tensor_and_writes_nothing(parent, tiny_data, tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_tree(tiny_data), allow_unicode=True), encoding="utf-8")
    assert main(["inherit", str(parent), str(config), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"ffn\.experts\.\*\.w1 +1 … 2 +\(6, 32, 24\) +layers\.1\.ffn\.w1 … layers\.2\.ffn\.w1", printed)
    assert re.search(r"attention\.query\.weight +0 … 2 +\(24, 24\) +layers\.0\.attention\.query\.weight … ", printed)
    assert re.search(r"embedding +\(1280, 24\) +embedding", printed)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_inherited_is_refused_by_key_and_leaves_nothing(parent, child, tiny_data, tmp_path):
    cases = (
        ({"hidden": 12}, r"model\.hidden is 12, the parent's is 24"),
        ({"dense_layers": 2}, r"dense_layers \+ rre_layers is 4, the parent's is 3"),
        ({"heads": 4}, r"model\.heads is 4"),
    )
    for model, message in cases:
        with pytest.raises(ConfigError, match=message):
            inherit(open_parent(parent), tiny_config(tiny_data, model=model), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"rre_layers=2; only a dense model"):
        inherit(open_parent(child.path), child.config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LayoutError, match=r"is not there; a parent is a dense run .*\n.*\n.*filerted_\*\.ckpt"):
        open_parent(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists; choose another path"):
        inherit(open_parent(parent), child.config, child.path)


def test_the_command_prints_the_receipt_of_the_same_run(parent, child, tiny_data, tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_tree(tiny_data), allow_unicode=True), encoding="utf-8")
    options = [str(config), "--output", str(tmp_path / "run")]
    assert main(["inherit", str(parent), *options, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == asdict(child.receipt)
    for (name, mine), its in zip(arrays(child.path)[0].items(), arrays(tmp_path / "run")[0].values(), strict=True):
        assert (mine == its).all(), name
    assert main(["inherit", str(parent), *options]) == 2
    assert "exists; choose another path with --output" in capsys.readouterr().err


def test_a_slot_comes_from_the_parents_of_that_name_or_from_its_only_one():
    assert parent_slot("en", ["zh", "en"]) == 1
    assert parent_slot("law", ["zh"]) == 0
    with pytest.raises(ConfigError, match=r"slot 'law' has no parent: the parent's slots are zh, en"):
        parent_slot("law", ["zh", "en"])
