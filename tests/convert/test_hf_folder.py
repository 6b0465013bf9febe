"""A run becomes a Hugging Face style folder and a run again with the same bits; anything else than what was written is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.dense_runs import write_dense_run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from experiments.chaos.runs import whole
from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import newest_checkpoint
from pangu_sigma.checkpoint.state import restore_rows
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.convert import conversion
from pangu_sigma.convert.conversion import convert_model, write_hf_folder
from pangu_sigma.convert.readmes import model_card
from pangu_sigma.ecss.rows import RowStore
from pangu_sigma.ecss.tiers import HostTier
from pangu_sigma.errors import DataError, LayoutError, UserError
from pangu_sigma.inherit.from_alpha import inherit
from pangu_sigma.inherit.parent import open_parent
from pangu_sigma.sealed import SEAL, DamagedFile, seal_folder, sealed
from pangu_sigma.stored.hf_folder import name_in_folder
from pangu_sigma.stored.model import read_lineage, weight_shapes
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.start import StartOptions, start_run

FIRST, SHARD = "model-00001-of-00005.safetensors", "model-00002-of-00005.safetensors"
BIAS, ONES = "layers.2.attention.key.bias", np.ones(3, np.float32)
MODEL, BALANCED = {"experts_per_domain": 4}, {"table": "balanced", "seed": 3}
DENSE = {"dense_layers": 3, "rre_layers": 0}


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> Path:
    """A sparse run with drawn weights, whose frequent ids are spread over experts."""
    config = tiny_config(tiny_data, model=MODEL, routing=BALANCED)
    return write_dense_run(config, tmp_path_factory.mktemp("run") / "sparse")


@pytest.fixture(scope="module")
def rows_run(tiny_data, tmp_path_factory) -> Path:
    """A run with drawn weights, common experts, and rows, of which every other one was met, but of the last entry none."""
    rows = [
        {"order": 1, "rows": 900, "width": 8},
        {"order": 2, "rows": 70, "width": 14, "kind": "own"},
        {"order": 2, "rows": 1, "width": 2},
    ]
    config = tiny_config(tiny_data, model={"segments": ["own", "common"], "common_experts": 3, "rows": rows})
    return write_dense_run(config, tmp_path_factory.mktemp("run") / "rows")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """That run as a folder of five files of weights. Read only."""
    model = open_model(run, "run")
    written = write_hf_folder(model, tmp_path_factory.mktemp("hf") / "folder", 160_000)
    assert len(list(written.glob("*.safetensors"))) == 5
    return written


def weights(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder, as another program reads it."""
    return {name: value for file in sorted(path.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.mark.parametrize("kind", ["run", "drawn_segmented_run", "rows_run"])
def test_there_and_back_is_the_same_run_bit_for_bit(request, tiny_data, tmp_path, caplog, monkeypatch, kind):
    caplog.set_level("INFO")
    run = request.getfixturevalue(kind)
    monkeypatch.chdir(tiny_data.parent)
    written = convert_model(run, tmp_path / "hf", "hf")
    again = convert_model(written, tmp_path / "again", "run")
    old, new = open_model(run, "run"), open_model(again, "run")
    assert (old.config, old.tokenizer.hash, old.table.hash) == (new.config, new.tokenizer.hash, new.table.hash)
    before, after = whole(newest_checkpoint(run / "checkpoints")), whole(newest_checkpoint(again / "checkpoints"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert (value.dtype, value.tobytes()) == (after[name].dtype, after[name].tobytes()), name
    assert "Adam's state and the position in the data start from nothing" in caplog.text
    assert new.tokenizer.hash[:12] in caplog.text
    monkeypatch.chdir(tiny_data.parent.parent)
    third = convert_model(again, tmp_path / "third", "hf")
    assert open_model(third, "hf").config == old.config, "paths below the working folder are kept from there"
    assert all(value.tobytes() == weights(third)[name].tobytes() for name, value in weights(written).items())


def test_another_library_reads_every_weight_by_its_name(run, folder):
    found, shapes = weights(folder), weight_shapes(open_model(run, "run").config)
    assert found.keys() == {*map(name_in_folder, shapes), "tid2eid", "tid2eid_spread", "tid2row"}
    saved = whole(newest_checkpoint(run / "checkpoints"))
    for name, shape in shapes.items():
        assert (found[name_in_folder(name)].dtype, found[name_in_folder(name)].shape) == (np.float32, shape), name
    for theirs, ours in (
        ("embedding.weight", "embedding"),
        ("layers.2.attention.query.weight", "layers.2.attention.query.weight"),
        ("norm.weight", "norm.gain"),
        ("layers.0.ffn.down.bias", "layers.0.ffn.b2"),
    ):
        assert (found[theirs] == saved[f"dense/{ours}"]).all(), theirs
    assert (found["tid2row"] == open_model(run, "run").tokenizer.row_of).all()
    for expert in range(12):
        for name, theirs in (("w1", "up.weight"), ("b1", "up.bias"), ("w2", "down.weight"), ("b2", "down.bias")):
            mine = saved[f"experts_layer_1/{name}"][expert]
            assert (found[f"layers.2.ffn.experts.{expert}.{theirs}"] == mine).all()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "numpy") as opened:
            assert name in opened.keys()  # noqa: SIM118
            assert opened.metadata() == {"format": "pt"}


def test_the_routing_table_is_a_tensor_that_routes_as_the_run_does(run, folder):
    """By the sentence of the model card, and nothing of ours."""
    table, found = open_model(run, "run").table, weights(folder)
    first_NDV, spread_DV = found["tid2eid"], found["tid2eid_spread"]
    assert first_NDV.shape == (2, 3, open_model(run, "run").tokenizer.size)
    assert spread_DV.max() > 1, "some ids are spread"
    ids = np.concatenate([np.arange(0, first_NDV.shape[2], 97), np.argsort(-spread_DV[0])[:20]])
    for domain in range(3):
        for position in (0, 1, 5):
            start = domain * 4
            mine = start + (first_NDV[:, domain, ids] - start + position % spread_DV[domain, ids]) % 4
            its = table.route(ids, np.full_like(ids, domain), np.full_like(ids, position))
            assert (mine == its).all()


def test_files_are_as_large_as_asked_and_a_larger_tensor_is_alone(run, tmp_path):
    model = open_model(run, "run")
    sizes = {name: tensor.nbytes for name, tensor in model.tensors.items()}
    written = write_hf_folder(model, tmp_path / "many", 20_000)
    for file in written.glob("*.safetensors"):
        names = load_file(file)
        assert sum(value.nbytes for value in names.values()) <= 20_000 or len(names) == 1, file.name
    assert [*load_file(sorted(written.glob("*.safetensors"))[0])] == ["embedding.weight"]
    assert sizes["embedding"] > 20_000
    assert (tmp_path / "many" / "README.md").exists()
    one = write_hf_folder(model, tmp_path / "one")
    assert [file.name for file in one.glob("*.safetensors")] == ["model-00001-of-00001.safetensors"]


def test_config_json_says_sizes_domains_and_the_whole_configuration(run, folder, tiny_data):
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert str(tiny_data.parent) not in (folder / "config.json").read_text(encoding="utf-8")
    assert tree["pangu_sigma"]["config"]["data"]["path"] == tiny_data.name
    tree["pangu_sigma"]["config"]["data"]["path"] = str(tiny_data)
    assert tree["model_type"] == "pangu_sigma"
    assert (tree["hidden_size"], tree["num_dense_layers"], tree["num_rre_layers"], tree["n_routed_experts"]) == (
        *(24, 1, 2),
        12,
    )
    assert tree["domains"][2] == {
        **{"name": "code", "format": "code", "language": "python", "slot": 1, "first_expert": 8}
    }
    assert tree["embedding_slots"] == ["zh", "en"]
    assert tree["routing"] == {"table": "balanced", "seed": 3}
    assert tree["hidden_act"] == "fast_gelu"
    assert tree["pangu_sigma"]["config"] == open_model(run, "run").config.model_dump(mode="json")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"], generation["do_sample"]) == (9, 6, False)
    assert generation["max_new_tokens"] <= tree["max_position_embeddings"] // 2, "a prompt must fit, too"
    assert "max_new_tokens" not in (folder / "README.md").read_text(encoding="utf-8")
    for file in (run / "tokenizer").iterdir():
        assert (folder / "tokenizer" / file.name).read_bytes() == file.read_bytes()


def test_the_model_card_says_sources_licences_and_lineage_or_that_they_are_unknown(run, tiny_data, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)
    receipt = {"kind": "inherit", "parent": "/alpha", "layout": "mindspore", "parent_hash": "abc"}
    (tmp_path / "run" / "lineage.json").write_bytes(sealed(receipt, record=True))
    written = convert_model(tmp_path / "run", tmp_path / "hf", "hf")
    card = (written / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["language"] == ["zh", "en", "code"]
    assert header["license"] == "unknown"
    assert "kind `inherit`, parent `/alpha`, layout `mindspore`, parent_hash `abc`" in card
    assert "text.jsonl" in card
    assert "| code | code | python | en | 8 … 11 |" in card
    assert read_lineage(written) == receipt
    again = convert_model(written, tmp_path / "again", "run")
    assert json.loads((again / "lineage.json").read_text())["before"] == receipt
    shutil.rmtree(tmp_path / "hf")
    (tmp_path / "run" / "lineage.json").write_bytes(sealed(receipt, record=True).replace(b'"abc"', b'"abd"'))
    with pytest.raises(DamagedFile, match=r"lineage\.json: its content does not match its own hash"):
        convert_model(tmp_path / "run", tmp_path / "hf", "hf")
    model = open_model(run, "run")
    elsewhere = model.config.model_copy(
        update={"data": model.config.data.model_copy(update={"path": str(tmp_path / "no")})}
    )
    object.__setattr__(model, "config", elsewhere)
    card = (write_hf_folder(model, tmp_path / "hf") / "README.md").read_text(encoding="utf-8")
    assert "licences are not known: the prepared data is not there" in card


def test_names_in_the_model_card_are_text_whatever_they_say(run):
    harm = "<img src=x onerror=alert(1)>\n\n| `a` ![b](c) &lt;"
    model = open_model(run, "run")
    tree = model.config.model_dump()
    for domain in tree["domains"]:
        domain["slot"] = harm
    tree["routing"] = {"table": "`<b>.npz"}
    model.config, model.lineage = parse_config(tree), {"kind": harm, "parent": "`a"}
    card = model_card(model)
    cell = r"&lt;img src=x onerror=alert(1)&gt; \| \`a\` \!\[b\](c) &amp;lt;"
    assert card.count(f"| {cell} |") == len(tree["domains"])
    code = "`<img src=x onerror=alert(1)> | 'a' ![b](c) &lt;`"
    assert f"kind {code}, parent `'a`" in card and card.count("<img") == card.count(code) == 1, "in code it is text"
    assert "table `'<b>.npz`" in card


def test_a_run_is_made_without_prepared_data_and_trains_on_with_it(run, folder, tiny_data, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "hf")
    edit_json(changed / "config.json", lambda tree: tree["pangu_sigma"]["config"]["data"].update(path="/nowhere"))
    reseal(changed)
    again = convert_model(changed, tmp_path / "again", "run")
    config = open_model(again, "run").config
    with pytest.raises(DataError, match=r"data\.path=/nowhere is not there"):
        start_run(again, config)
    there = tiny_config(tiny_data, model=MODEL, routing=BALANCED)
    checkpoint = start_run(again, there).newest
    assert checkpoint is not None
    assert checkpoint.step == 0
    with pytest.raises(ConfigError, match="starting over would draw new ones"):
        start_run(again, there, options=StartOptions(start_over=True))


def test_a_failure_leaves_nothing_behind(run, folder, tmp_path, monkeypatch):
    def fail(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    for name, source, to in (("write_arrays", run, "hf"), ("seal_folder", run, "hf")):
        with monkeypatch.context() as patch:
            patch.setattr(conversion, name, fail)
            with pytest.raises(OSError, match="No space left"):
                convert_model(source, tmp_path / "out", to)
        assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(conversion, "write_step_0", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_model(folder, tmp_path / "out", "run")
    assert list(tmp_path.iterdir()) == []


def test_every_file_says_what_segments_are(drawn_segmented_run, tmp_path):
    written = convert_model(drawn_segmented_run, tmp_path / "hf", "hf")
    arrays, saved = weights(written), whole(newest_checkpoint(drawn_segmented_run / "checkpoints"))
    # layer 2 of the network has the segments 4 … 7 of all RRE layers
    assert (arrays["layers.2.ffn.experts.5.up.weight"] == saved["experts_layer_4/w1"][5]).all()
    assert (arrays["layers.2.ffn.segments.3.experts.2.up.weight"] == saved["experts_layer_7/w1"][2]).all()
    assert "layers.2.ffn.segments.3.experts.3.up.weight" not in arrays
    assert "layers.2.ffn.segments.3.experts.2.down.bias" not in arrays
    tree, card = json.loads((written / "config.json").read_text()), (written / "README.md").read_text(encoding="utf-8")
    assert (tree["expert_segments"], tree["num_common_experts"]) == (["own", "own", "common", "common"], 3)
    assert (tree["num_experts_per_tok"], tree["n_routed_experts"]) == (4, 6)
    assert "of 4 segments (own, own, common, common)" in card
    assert "`layers.<layer>.ffn.segments.<segment>.experts.<number>" in card


def test_the_tables_of_segments_route_as_the_run_does(drawn_segmented_run, tmp_path):
    """By the sentences of the model card, and nothing of ours."""
    found = weights(convert_model(drawn_segmented_run, tmp_path / "hf", "hf"))
    table, first_LPDV = open_model(drawn_segmented_run, "run").table, found["tid2eid"]
    vocabulary = table.first_NDV.shape[2]
    assert first_LPDV.shape == (2, 4, 3, vocabulary)
    ids = np.concatenate([np.arange(0, vocabulary, 97), np.argsort(-found["tid2eid_common_spread"])[:9]])
    for domain, position in ((0, 0), (1, 1), (2, 5)):
        start, its = 2 * domain, table.route(ids, np.full_like(ids, domain), np.full_like(ids, position))
        spread, common_spread = found["tid2eid_spread"][domain, ids], found["tid2eid_common_spread"][ids]
        own = start + (first_LPDV[:, :2, domain, ids] - start + position % spread) % 2
        common = (first_LPDV[:, 2:, domain, ids] + position % common_spread) % 3
        assert (np.concatenate([own, common], axis=1).reshape(8, -1) == its).all()


def test_every_file_says_what_rows_are(rows_run, tmp_path):
    written = convert_model(rows_run, tmp_path / "hf", "hf")
    run, folder, arrays = open_model(rows_run, "run"), open_model(written, "hf"), weights(written)
    assert (run.config.model, run.table.hash) == (folder.config.model, folder.table.hash)
    saved = whole(newest_checkpoint(rows_run / "checkpoints"))
    for e, met in enumerate((450, 105, 0)):
        of_entry = {name: arrays[f"rows.{e}.{name}"] for name in ("tid2key", "before2key", "keys", "weight")}
        assert (of_entry["tid2key"] == run.table.row_EV[e]).all()
        assert (of_entry["before2key"] == run.table.before_EV1[e]).all()
        for name, values in zip(("keys", "weight"), folder.rows(e), strict=True):
            assert (of_entry[name].dtype, of_entry[name].tobytes()) == (values.dtype, values.tobytes())
            assert of_entry[name].tobytes() == saved[f"rows_{e}/{name}"].tobytes() and len(values) == met
    listed = {shard: shape for shard, name, shape, _ in folder.listed() if shard and name == "weight"}
    assert listed == {"rows_0": (450, 8), "rows_1": (105, 14), "rows_2": (0, 2)}
    assert arrays["layers.1.row_scale"] == saved["dense/layers.1.row_scale"]
    tree, card = json.loads((written / "config.json").read_text()), (written / "README.md").read_text(encoding="utf-8")
    assert tree["rows"][1] == {"order": 2, "rows": 70, "width": 14, "kind": "own"} and tree["rows_met"] == [450, 105, 0]
    assert "5,070 parameters besides" in card and "order 2, 70 own of width 14, 105 of them met" in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: put((5,), 9)(t["rows.1.keys"]), r"rows\.1\.keys does not ascend"),
        (lambda t: put((0,), -1)(t["rows.1.keys"]), r"rows\.1\.keys does not ascend from 0 to 209"),
        (lambda t: put((104,), 210)(t["rows.1.keys"]), r"rows\.1\.keys does not ascend from 0 to 209"),
        (
            lambda t: put((7,), 900)(t["rows.0.tid2key"]),
            "tid2eid… are no routing table of this model: keys of rows that there are not",
        ),
        (lambda t: put((7,), -1)(t["rows.1.before2key"]), "tables of rows have numbers that are negative"),
        (lambda t: put((7,), 3)(t["rows.0.before2key"]), r"config\.json: routing_hash is"),
        (
            lambda t: t.update({name: t[name][:-1] for name in ("rows.0.keys", "rows.0.weight")}),
            r"config\.json: rows_met is \[450, 105, 0\], the folder says \[449, 105, 0\]",
        ),
        (
            lambda t: t.update({"rows.1.weight": t["rows.1.weight"][1:]}),
            r"rows\.1\.weight is float32 of shape \(104, 14\), .* needs float32 of shape \(105, 14\)",
        ),
        (lambda t: t.pop("rows.0.keys"), r"rows\.0\.keys of shape .* is in no file of weights"),
    ],
)
def test_rows_that_are_not_what_was_written_are_refused(rows_run, tmp_path, change, message):
    check_refused(rows_run, tmp_path / "hf", change, message)


def test_rows_of_a_run_that_is_made_of_a_folder_learn_and_are_there_once(rows_run, tmp_path):
    """They begin with a step count of 0."""
    model = open_model(convert_model(convert_model(rows_run, tmp_path / "hf", "hf"), tmp_path / "again", "run"), "run")
    store, (keys_U, weight_UW) = RowStore(model.config, HostTier()), model.rows(0)
    restore_rows(store, model.checkpoint)
    keys_EGBS = np.zeros((3, 1, 1, 3), np.int64)
    keys_EGBS[0] = 0, 1, 3  # the first is new
    rate_of_one = np.array([1, 1, 1, 0.9, 0.99, 1e-12], np.float32)
    store.update(keys_EGBS, np.ones((3, 24), np.float32), rate_of_one)
    met = store.met(0)
    assert met.tolist() == [0, *keys_U] and store.read(0, "step", met)[:5].tolist() == [1, 1, 1, 0, 0]
    assert np.allclose(store.read(0, "weight", met)[1:3], weight_UW[:2] - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: put((1, 3, 1, 7), 3)(t["tid2eid"]), "first_NDV has numbers outside of 0 … 2"),
        (lambda t: put((1, 1, 1, 7), 4)(t["tid2eid"]), "first_NDV has numbers outside of 0 … 1"),
        (lambda t: put((7,), 4)(t["tid2eid_common_spread"]), "common_spread_V has numbers outside of 1 … 3"),
        (lambda t: t.pop("tid2eid_common_spread"), "tid2eid_common_spread of shape .* is in no file"),
    ],
)
def test_tables_of_segments_that_are_not_what_was_written_are_refused(drawn_segmented_run, tmp_path, change, message):
    check_refused(drawn_segmented_run, tmp_path / "hf", change, message)


def test_a_dense_folder_is_a_parent_and_a_sparse_one_is_not(folder, tiny_data, tmp_path, monkeypatch):
    dense = write_dense_run(tiny_config(tiny_data, model=DENSE), tmp_path / "dense")
    written = convert_model(dense, tmp_path / "hf", "hf")
    receipt = inherit(open_parent(written), tiny_config(tiny_data), tmp_path / "child")
    assert [each.exact for each in receipt.agreement.values()] == [0.0, 0.0, 0.0]
    assert (receipt.layout, receipt.parent_step, receipt.parameters["rows drawn anew"]) == ("hf", 0, 0)
    by_run = inherit(open_parent(dense), tiny_config(tiny_data), tmp_path / "of_the_run")
    assert receipt.parent_hash == by_run.parent_hash
    assert weights(written)["tid2eid"].shape[0] == 0
    assert convert_model(written, tmp_path / "back", "run").exists()
    with pytest.raises(ConfigError, match=r"has model\.rre_layers=2; only a dense model"):
        open_parent(folder)


# what is refused


def edit_json(file: Path, change: Callable[[Any], object]) -> None:
    tree = json.loads(file.read_text(encoding="utf-8"))
    change(tree)
    file.write_text(json.dumps(tree), encoding="utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object], file: str = SHARD) -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def check_refused(run: Path, copy: Path, change: Callable[[dict[str, np.ndarray]], object], message: str) -> None:
    """The tables of a sealed folder whose only file of weights was changed."""
    written = convert_model(run, copy, "hf")
    edit_tensors(written, change, "model-00001-of-00001.safetensors")
    reseal(written)
    with pytest.raises(LayoutError, match=message):
        _ = open_model(written, "hf").table


def reseal(folder: Path) -> None:
    """Seal a folder as it is now, as somebody would who means the change."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    seal_folder(folder, [name for name in names if name not in (SEAL, "README.md")], {"kind": "pangu_sigma"})


def config(**keys: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda tree: tree.update(keys))


def within(section: str, **keys: Any) -> Callable[[Path], None]:
    """Changes keys of the whole configuration in `config.json`."""
    return lambda folder: edit_json(
        folder / "config.json", lambda tree: tree["pangu_sigma"]["config"][section].update(keys)
    )


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, change)


def table(name: str, change: Callable[[np.ndarray], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
        edit_tensors(folder, lambda found: change(found[name]), where)

    return edit


def put(at: tuple[int, ...], value: int) -> Callable[[np.ndarray], object]:
    return lambda values: values.__setitem__(at, value)  # type: ignore[func-returns-value]


def twice(folder: Path) -> None:
    """A tensor of the second file in the first one, too."""
    value = load_file(folder / SHARD)[BIAS]
    edit_tensors(folder, lambda found: found.update({BIAS: value}), FIRST)


def other_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer" / "vocabulary.json", lambda tree: tree.update(rows_per_slot=641))


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])  # type: ignore[return-value]


def flip(name: str) -> Callable[[Path], None]:
    def flipped(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-50] ^= 1
        (folder / name).write_bytes(content)

    return flipped


MEANT: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", tensors(lambda t: t.pop(BIAS)), rf"{BIAS} of shape \(24,\) is in no file of weights"),
    ("extra", tensors(lambda t: t.update(more=ONES)), "more is no tensor"),
    ("wrong shape", tensors(lambda t: t.update({BIAS: ONES})), rf"{BIAS} is float32 of shape \(3,\).*of shape \(24,\)"),
    ("wrong type", tensors(lambda t: t.update({BIAS: t[BIAS].astype(np.float16)})), "is float16 .*needs float32"),
    (
        "type not read",
        tensors(lambda t: t.update({BIAS: t[BIAS].astype(np.int8)})),
        "is I8 of shape .* is not read here",
    ),
    ("in two files", twice, rf"00002.*: has {BIAS}, which is in another file, too"),
    (
        "another table",
        table("tid2eid", lambda first: np.copyto(first, np.roll(first, 1, axis=2))),
        "config.json: routing_hash",
    ),
    ("rows of another", table("tid2row", put((1, 40_100), 3)), "tid2row is not what the tokenizer says"),
    ("expert of another domain", table("tid2eid", put((1, 2, 77), 3)), "first_NDV has numbers outside of 0 … 3"),
    ("huge expert", table("tid2eid", put((0, 0, 0), 65_536)), "first_NDV has numbers outside of 0 … 3"),
    ("spread over none", table("tid2eid_spread", put((1, 5), 0)), "spread_DV has numbers outside of 1 … 4"),
    ("size", config(hidden_size=48), "config.json: hidden_size is 48, pangu_sigma.config says 24"),
    (
        "both sizes",
        lambda f: [config(max_position_embeddings=64)(f), within("model", seq_length=64)(f)],
        "positions.weight is",
    ),
    ("unknown key within", within("model", color=1), "config.json: pangu_sigma.config: model.color: unknown key"),
    ("nothing within", config(pangu_sigma=None), "config.json: pangu_sigma has no config"),
    ("format", config(pangu_sigma_format=9), "pangu_sigma_format is 9, this version reads 2"),
    ("model type", config(model_type="llama"), "model_type is 'llama'"),
    ("vocabulary", config(vocab_size=5), "config.json: vocab_size is 5, the folder says"),
    ("tokenizer", other_tokenizer, "tokenizer"),
    ("no JSON", lambda f: (f / "config.json").write_text("{"), "config.json: is not JSON"),
]
"""Changes of somebody who seals the folder again: what is wrong, how, and the message."""

DAMAGE = [
    ("cut off", cut(SHARD), rf"{SHARD}: "),
    ("flipped", flip(SHARD), rf"{SHARD}: xxh3_128 is"),
    ("flipped configuration", flip("config.json"), r"config\.json: "),
    ("flipped seal", flip(SEAL), rf"{SEAL}: "),
    ("no seal", lambda f: (f / SEAL).unlink(), rf"{SEAL}: No such file"),
    ("no tokenizer", lambda f: shutil.rmtree(f / "tokenizer"), r"tokenizer/.*: No such file"),
    ("lineage of another", lambda f: (f / "lineage.json").write_text("{}"), r"lineage\.json: is not among the files"),
]


@pytest.mark.parametrize(("change", "message"), [pytest.param(*rest, id=name) for name, *rest in MEANT])
def test_what_contradicts_itself_is_refused_by_name(folder, tmp_path, change, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy)
    reseal(copy)
    refused(copy, tmp_path, message, UserError)


@pytest.mark.parametrize(("change", "message"), [pytest.param(*rest, id=name) for name, *rest in DAMAGE])
def test_damage_is_refused_by_name(folder, tmp_path, change, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy)
    refused(copy, tmp_path, message, (DamagedFile, LayoutError))


def refused(copy: Path, tmp_path: Path, message: str, kind: Any) -> None:
    """Refused with a message that has what is wrong and what to do, and nothing half-written is left."""
    with pytest.raises(kind, match=message) as error:
        convert_model(copy, tmp_path / "out", "run")
    assert "; " in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]
    assert str(copy) in str(error.value)


def saved_by_transformers(folder: Path, copy: Path) -> Path:
    """What `save_pretrained` leaves of a folder: one file of weights, no seal, no index, and its version in config.json."""
    shutil.copytree(folder, copy)
    joined = weights(copy)
    for name in (
        SEAL,
        "model.safetensors.index.json",
        "README.md",
        *(file.name for file in copy.glob("*.safetensors")),
    ):
        (copy / name).unlink()
    save_file(joined, copy / "model.safetensors", {"format": "pt"})
    config(transformers_version="5.24.0")(copy)
    return copy


def test_what_transformers_saved_comes_back_with_its_bits_and_it_is_said_that_no_hash_is_there(
    folder, tmp_path, caplog
):
    saved = saved_by_transformers(folder, tmp_path / "saved")
    edit_tensors(saved, lambda found: found.update({BIAS: found[BIAS] + 1}), "model.safetensors")
    again = open_model(convert_model(saved, tmp_path / "again", "run"), "run")
    assert "transformers 5.24.0 saved this folder, without hashes and lineage" in caplog.text
    found = weights(saved)
    assert all(again.tensor(name).tobytes() == found[name_in_folder(name)].tobytes() for name in again.tensors)
    assert (again.tensor(BIAS) == open_model(folder, "hf").tensor(BIAS) + 1).all()
    one = open_model(saved, "hf").hash
    edit_tensors(saved, lambda found: found.update({BIAS: found[BIAS] + 1}), "model.safetensors")
    assert again.lineage["parent_hash"] == one != open_model(saved, "hf").hash


def test_a_run_of_values_that_are_not_finite_is_refused_in_one_true_message(folder, tmp_path, capsys, caplog):
    saved = shutil.copytree(folder, tmp_path / "saved")
    edit_tensors(saved, lambda found: put((3,), np.nan)(found[BIAS]))
    reseal(saved)
    assert main(["export", str(saved), "--output", str(tmp_path / "run"), "--format", "run"]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "the model has values that are not finite: dense: " in message
    assert "has 1, first at [3]. No run begins with them, and nothing was written; name another model" in message
    assert "not finite" not in caplog.text, "it is said once"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f / "tokenizer"), r"save the tokenizer, too: tokenizer\.save_pretrained\("),
        (lambda f: (f / "model.safetensors").unlink(), "is in no file of weights"),
        (config(dtype="float16"), r"was saved in 'float16'; load it with dtype=float32 and save it again$"),
        (config(transformers_version=None), r"seal\.json: No such file"),
    ],
)
def test_what_transformers_saved_is_refused_where_it_contradicts_itself(folder, tmp_path, change, message):
    saved = saved_by_transformers(folder, tmp_path / "copy")
    change(saved)
    refused(saved, tmp_path, message, UserError)


def test_what_a_reader_may_change_is_no_damage(folder, tmp_path):
    """The card is edited on the Hub, and its tools add files and keys."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("mine")
    (copy / ".gitattributes").write_text("x")
    assert open_model(copy, "hf").step == 0


def test_a_conversion_to_itself_or_of_nothing_or_over_something_is_refused(run, folder, tmp_path):
    nothing = "is not a run folder or a Hugging Face style folder: it has no configuration.json and no config.json"
    for source, to, message in (
        (run, "run", "a run folder already"),
        (folder, "hf", "folder already"),
        (tmp_path, "hf", nothing),
    ):
        with pytest.raises(UserError, match=message):
            convert_model(source, tmp_path / "out", to)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out exists; choose another path with output"):
        convert_model(run, tmp_path / "out", "hf")
