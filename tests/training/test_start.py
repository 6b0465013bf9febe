from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.failing_files import killed_after
from helpers.prepared import reseal
from helpers.saved import save_checkpoint

import pangu_sigma as ps
from experiments.chaos.runs import opened_whole
from experiments.tiny import STEPS, tiny_config
from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.config import ConfigError
from pangu_sigma.data.manifest import Manifest, load_manifest
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.errors import DataError
from pangu_sigma.rre.table import draw_tables
from pangu_sigma.sealed import DamagedFile, add_to_seal, sealed, unsealed
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.start import Progress, StartOptions, check_start, resume, start_run


def saved(run: Path, step: int = 3) -> Path:
    """Give a run a checkpoint, without arrays."""
    state = {"step": step, "updates": step, "cursor": {"taken": [step, 0, 0]}}
    return save_checkpoint(run / "checkpoints", step, {}, state, open_model(run, "run").identity, 2)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_created_is_opened(tiny_data, tmp_path):
    config = tiny_config(tiny_data)
    created = start_run(tmp_path / "new" / "run", config)
    opened = open_model(tmp_path / "new" / "run", "run")
    assert opened.config == created.config == config
    assert created.text_hash == load_manifest(tiny_data).content_hash is not None
    assert opened.identity == replace(created.identity, data_hash=None), "a reader has no data"
    assert opened.tokenizer.hash == PreparedData(tiny_data).tokenizer().hash
    assert opened.table.hash == created.table.hash
    assert opened.table.first_NDV.shape == (2, 3, opened.tokenizer.size)


def test_preparation_keys_of_training_that_the_data_do_not_have_are_warned_of(tiny_data, tmp_path, caplog):
    config = tiny_config(tiny_data)
    start_run(tmp_path / "usual", config)
    assert "was prepared with" not in caplog.text
    start_run(tmp_path / "run", config.model_copy(update={"data": config.data.model_copy(update={"held_out": 0.45})}))
    said = [text for text in caplog.messages if "was prepared with" in text]
    assert len(said) == 1 and said[0].startswith(f"data.held_out=0.45: {tiny_data} was prepared with ")


def test_a_run_knows_its_data_from_any_folder(tiny_data, tmp_path, monkeypatch):
    """A relative data.path is that of where the run was created."""
    monkeypatch.chdir(tiny_data.parent)
    config = tiny_config(Path(tiny_data.name))
    run = start_run(tmp_path / "run", config)
    assert run.config == tiny_config(tiny_data)
    monkeypatch.chdir(tmp_path)
    assert open_model(tmp_path / "run", "run").config == tiny_config(tiny_data)


def test_the_same_tables_continue_a_folder_and_others_do_not(tiny_data, tmp_path):
    start_run(tmp_path / "run", tiny_config(tiny_data))
    (tmp_path / "run" / "mine.txt").write_text("x")
    again = start_run(tmp_path / "run", tiny_config(tiny_data, train={"steps": 7}))
    assert open_model(tmp_path / "run", "run").config == again.config, "the newest configuration is the run's"
    saved(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"routing\.seed: 0 → 1: which .*once and for all\n.* choose another folder with --output"
    ):
        start_run(tmp_path / "run", tiny_config(tiny_data, routing={"seed": 1}))
    assert contents(tmp_path / "run") == before


def test_missing_data_and_data_for_other_slots_are_refused(tiny_data, tmp_path):
    model = tiny_config(tiny_data).model.model_dump() | {"slot_rows": 700}
    config = tiny_config(tiny_data, model=model)
    for call in (lambda: start_run(tmp_path / "run", config), lambda: check_start(tmp_path / "run", config)):
        with pytest.raises(ConfigError, match=r"has slots of 640 rows, .* has model\.slot_rows=700; run prepare-data"):
            call()
    with pytest.raises(DataError, match="run prepare-data"):
        start_run(tmp_path / "run", tiny_config(tmp_path / "none"))
    assert not (tmp_path / "run").exists()


def test_balanced_tables_are_made_from_the_frequencies_of_the_text(tiny_data, tmp_path):
    config = tiny_config(tiny_data, routing={"table": "balanced"})
    table = start_run(tmp_path / "run", config).table
    frequencies = PreparedData(tiny_data).frequencies()
    expected = draw_tables(config.routing, 2, 3, frequencies.shape[1], 2, frequencies)
    assert table.hash == expected.hash
    assert table.hash != draw_tables(tiny_config(tiny_data).routing, 2, 3, frequencies.shape[1], 2, None).hash


@pytest.mark.parametrize("name", ["configuration.json", "routing.npz", "tokenizer"])
def test_a_folder_that_misses_a_part_is_no_run(tiny_data, tmp_path, name):
    start_run(tmp_path / "run", tiny_config(tiny_data))
    path = tmp_path / "run" / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(ConfigError, match=f"is not a run folder: it has no {name}"):
        opened_whole(tmp_path / "run", "run")


@pytest.fixture
def run(tiny_data, tmp_path) -> Path:
    """A run with a checkpoint."""
    start_run(tmp_path / "run", tiny_config(tiny_data))
    saved(tmp_path / "run")
    return tmp_path / "run"


def damage(file: Path, fault: str) -> None:
    content = file.read_bytes()
    if fault == "gone":
        file.unlink()
    elif fault in ("cut", "empty"):
        file.write_bytes(content[: len(content) // 2 if fault == "cut" else 0])
    else:
        at = {"first bit": 0, "a bit": len(content) // 3, "last bit": len(content) - 1}[fault]
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


FAULTS = ["first bit", "last bit", "cut", "empty", "gone"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *(("routing.npz", fault) for fault in FAULTS),
        ("seal.json", "a bit"),
        ("tokenizer/english.model", "cut"),
        ("tokenizer/vocabulary.json", "gone"),
    ],
)
def test_a_damaged_file_is_named_with_the_way_back(tiny_data, run, tmp_path, name, fault):
    """The checkpoints tell the files of any other run from those of this one."""
    before = open_model(run, "run").identity
    damage(run / name, fault)
    damaged = contents(run)
    config = tiny_config(tiny_data)
    for call in (lambda: opened_whole(run, "run"), lambda: check_start(run, config), lambda: start_run(run, config)):
        with pytest.raises(
            (DamagedFile, ConfigError), match=rf"{name}.*together with seal.json, from a run that `train`"
        ):
            call()
    assert contents(run) == damaged
    other = start_run(tmp_path / "other", tiny_config(tiny_data)).path
    for file in ("seal.json", "routing.npz"):
        shutil.copy(other / file, run / file)
    shutil.copytree(other / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    start_run(run, tiny_config(tiny_data))
    assert open_model(run, "run").identity == before


@pytest.mark.parametrize("fault", ["a bit", "cut", "gone"])
def test_a_lost_or_damaged_configuration_is_replaced_by_the_one_of_the_newest_checkpoint_with_a_warning(
    tiny_data, run, fault, caplog
):
    whole = (run / "configuration.json").read_bytes()
    damage(run / "configuration.json", fault)
    assert run_config(run) == open_model(run, "run").config == tiny_config(tiny_data)
    assert "configuration.json: " in caplog.text
    assert "change keys with --set; the configuration of the newest checkpoint is used in its place" in caplog.text
    start_run(run, run_config(run))
    assert (run / "configuration.json").read_bytes() == whole


def test_a_lost_record_of_the_origin_is_damage(run):
    (run / "lineage.json").write_bytes(sealed({"kind": "inherit"}, record=True))
    add_to_seal(run, "lineage.json")
    assert open_model(run, "run").lineage == {"kind": "inherit"}
    (run / "lineage.json").unlink()
    with pytest.raises(DamagedFile, match=r"lineage\.json: No such file"):
        _ = open_model(run, "run").lineage


def test_a_format_of_the_future_is_told_from_damage(run):
    body = unsealed(run / "configuration.json", "")
    (run / "configuration.json").write_bytes(sealed(body | {"format": 5}, record=True))
    with pytest.raises(ConfigError, match="says format 5, this version reads 4: use the version that wrote it"):
        opened_whole(run, "run")


def test_a_run_keeps_its_tables_whatever_the_data_say_now(tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    config = tiny_config(data, routing={"table": "balanced"})
    before = start_run(tmp_path / "run", config).table.hash
    saved(tmp_path / "run")
    for file in data.glob("*/frequencies.npy"):
        np.save(file, np.load(file)[::-1])
    reseal(data)
    assert start_run(tmp_path / "run", config, options=StartOptions(allow_data_change=True)).table.hash == before


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["configuration.json", "model.mindir", "tokenizer/vocabulary.json"], "is an exported model, not a run folder"),
        (["config.json", "seal.json", "tokenizer/vocabulary.json"], "is a Hugging Face style folder, not a run folder"),
        (["zh/manifest.json", "zh/frequencies.npy", "tokenizer/english.model"], "is prepared data, not a run folder"),
        (["LOCK", "report/mine.txt", "tokenizer/mine.model"], "is a folder with report, not a run folder"),
        (["tokenizer/mine.model", "logs/mine.txt"], "is a folder with tokenizer, not a run folder"),
        (["configuration.json"], "configuration.json: is not the JSON that was written"),
    ],
)
def test_a_folder_with_files_that_is_no_run_is_refused_before_anything_is_written(tiny_data, tmp_path, files, kind):
    folder = tmp_path / "folder"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = contents(folder)
    for start_over in (False, True):
        with pytest.raises((ConfigError, DamagedFile), match=rf"{kind}; name another folder with output"):
            ps.train(tiny_config(tiny_data), folder, start_over=start_over)
    assert contents(folder) == before


def test_a_folder_with_nothing_but_the_logs_of_a_launch_begins_a_run(tiny_data, tmp_path):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    assert check_start(tmp_path / "run", tiny_config(tiny_data)) == []


def test_a_first_start_that_is_killed_anywhere_is_no_obstacle(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez_compressed", np.savez)  # half of the time of a start
    config, whole = tiny_config(tiny_data), tmp_path / "whole"
    start_run(whole, config)
    expected = {file.relative_to(whole): content for file, content in contents(whole).items()}
    kills, more = 0, True
    while more:
        run = tmp_path / f"killed_{kills}"
        more = killed_after(kills, lambda: start_run(run, config))  # noqa: B023
        if run.exists():
            (run / "LOCK").touch()  # `train` takes it first
            assert "data.shuffle" not in " ".join(check_start(run, config))
            (run / "LOCK").unlink()
        start_run(run, config)
        found = {file.relative_to(run): content for file, content in contents(run).items()}
        del found[Path("routing.npz")], found[Path("seal.json")]  # a zip file has times in it
        assert found.items() <= expected.items()
        assert found.keys() | {Path("routing.npz"), Path("seal.json")} == expected.keys()
        _ = open_model(run, "run").identity
        kills += 1
    assert kills > 10


def test_a_later_start_that_is_killed_anywhere_leaves_the_run_as_it_was_or_as_it_was_to_be(tiny_data, run, tmp_path):
    old, new = tiny_config(tiny_data), tiny_config(tiny_data, train={"steps": 7})
    kills, more = 0, True
    while more:
        copy = shutil.copytree(run, tmp_path / f"killed_{kills}")
        more = killed_after(kills, lambda: start_run(copy, new))  # noqa: B023
        assert open_model(copy, "run").config in (old, new)
        assert open_model(copy, "run").newest.path == copy / "checkpoints" / "step_00000003"
        start_run(copy, new)
        assert open_model(copy, "run").config == new
        kills += 1
    assert kills > 1


def test_a_refused_start_is_no_obstacle_to_the_next_one(tiny_data, tmp_path):
    """Without a checkpoint nothing is lost, so another configuration may have the folder."""
    run = tmp_path / "run"
    start_run(run, tiny_config(tiny_data, routing={"seed": 1}))
    assert start_run(run, tiny_config(tiny_data)).table.hash == open_model(run, "run").table.hash
    damage(run / "configuration.json", "cut")
    start_run(run, tiny_config(tiny_data))
    assert open_model(run, "run").config == tiny_config(tiny_data)


@pytest.mark.parametrize("path", ["/proc/run", "{}/file", "{}/file/run"])
def test_a_folder_that_cannot_be_is_refused_by_name(tiny_data, tmp_path, path):
    (tmp_path / "file").write_text("x")
    folder = Path(path.format(tmp_path))
    with pytest.raises(OSError, match=r"'(/proc/run|.*/file.*)'"):
        start_run(folder, tiny_config(tiny_data))


def test_nothing_is_written_twice_and_what_differs_is_said_as_old_and_new(tiny_data, run, caplog):
    before = {file: file.stat().st_mtime_ns for file in contents(run)}
    start_run(run, tiny_config(tiny_data))
    assert {file: file.stat().st_mtime_ns for file in contents(run)} == before
    with caplog.at_level("INFO"):
        start_run(run, tiny_config(tiny_data, train={"steps": 50, "batch_size": 8}))
    assert "train.steps: 30 → 50" in caplog.text
    assert "train.batch_size: 4 → 8 (no sample is lost or taken twice)" in caplog.text


def test_keys_of_a_run_without_a_step_left_are_refused_and_its_place_is_not(tiny_data, run):
    refused = r"{}: .*run is at step 3, nothing to do, and nothing was changed"
    before = contents(run)
    with pytest.raises(ConfigError, match=refused.format(r"train\.steps=2")):
        start_run(run, tiny_config(tiny_data, train={"steps": 2}))
    assert contents(run) == before
    start_run(run, tiny_config(tiny_data, train={"steps": 3}))
    before = contents(run)
    with pytest.raises(ConfigError, match=refused.format(r"optimizer\.peak_lr=1\.0")):
        start_run(run, run_config(run, ["train.optimizer.peak_lr=1"]))
    assert contents(run) == before
    start_run(run, run_config(run, ["name=other"]))
    start_run(run, run_config(run, ["train.optimizer.peak_lr=1", "train.steps=4"]))


def test_a_start_over_of_nothing_is_said(tiny_data, run, tmp_path, caplog):
    start_run(tmp_path / "new", tiny_config(tiny_data), options=StartOptions(start_over=True))
    assert f"start_over: {tmp_path / 'new'} holds no run, there was nothing to start over" in caplog.text


def test_other_text_is_refused_unless_asked_for(tiny_data, run, monkeypatch, caplog):
    def text(name: str) -> None:
        monkeypatch.setattr(Manifest, "content_hash", property(lambda _: name * 32))

    text("a")
    start_run(run, tiny_config(tiny_data))
    assert "its checkpoint has no hash of its text, so it could not be checked" in caplog.text
    state = {"step": 4, "updates": 4, "cursor": {"taken": [4, 0, 0]}}
    opened = start_run(run, tiny_config(tiny_data))
    save_checkpoint(run / "checkpoints", 4, {}, state, opened.identity, 2)
    text("b")
    with pytest.raises(
        ConfigError, match=r"holds other text than .* \(content hash b+…, not a+…\); .*allow_data_change"
    ):
        start_run(run, tiny_config(tiny_data))
    start_run(run, tiny_config(tiny_data), options=StartOptions(allow_data_change=True))
    assert "goes on with other text" in caplog.text


def test_data_that_was_moved_says_how_to_say_where(tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    start_run(tmp_path / "run", tiny_config(data))
    data.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"if it was moved, set data\.path"):
        start_run(tmp_path / "run", run_config(tmp_path / "run"))
    start_run(tmp_path / "run", run_config(tmp_path / "run", [("data.path", tmp_path / "moved")]))


def test_a_step_counts_and_an_applied_one_is_an_update():
    progress = Progress(7, 5, Cursor([1, 2]))
    progress.advance(True, Cursor([3, 2]))
    assert progress == Progress(8, 6, Cursor([3, 2]))
    progress.advance(False, Cursor([3, 4]))
    assert progress == Progress(9, 6, Cursor([3, 4]))
    assert Progress.from_state(json.loads(json.dumps(progress.state()))) == progress


@pytest.mark.usefixtures("graph_mode")
def test_a_run_goes_on_from_its_newest_checkpoint(tiny_data, tiny_run, drawn_segmented_run, caplog):
    """One that begins with weights of another run is not said to resume."""
    caplog.set_level("INFO")
    progress, checkpoint = resume(start_run(drawn_segmented_run, run_config(drawn_segmented_run)))
    assert checkpoint is not None and progress.step == checkpoint.step == 0
    assert "resuming" not in caplog.text
    run = start_run(tiny_run, tiny_config(tiny_data))
    progress, checkpoint = resume(run)
    assert checkpoint is not None and checkpoint.path == run.checkpoints / f"step_{STEPS:08d}"
    assert (progress.step, progress.updates, checkpoint.step) == (STEPS, STEPS, STEPS)
    assert sum(progress.cursor.taken) == STEPS * 4
    assert f"resuming {tiny_run} after step {STEPS}" in caplog.text
