"""A run that is tuned to a task: what learns and what does not, what is kept, and that a stop changes nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.dense_runs import write_dense_run
from helpers.grown import saved_arrays
from helpers.tasks import pairs, write_lines, write_task

from experiments.chaos.runs import digests
from experiments.tiny import tiny_config
from pangu_sigma.checkpoint import saver
from pangu_sigma.checkpoint.checkpoint import CheckpointError, newest_checkpoint
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.finetune import best as best_state
from pangu_sigma.finetune.best import BestState
from pangu_sigma.finetune.tuning import TuningRequest, finetune_run, learns_text
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.inherit.equality import compare
from pangu_sigma.inherit.extract import extract_domains
from pangu_sigma.sealed import DamagedFile, sealed
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.health import UnhealthyRun
from pangu_sigma.training.log.metrics import read_metrics
from pangu_sigma.training.loop import Trainer, train

pytestmark = pytest.mark.usefixtures("graph_mode")

BAD = ["not json", '{"prompt": "the cat"}']


def ask(folder: Path, **options: Any) -> TuningRequest:
    """A request in a folder that gets the files which it names."""
    folder.mkdir(exist_ok=True)
    task = write_task(folder / "test.yaml", **options.pop("sections", {}))
    data = write_lines(folder / "train.jsonl", [*pairs(0, 24), *BAD])
    dev = write_lines(folder / "dev.jsonl", pairs(24, 30))
    return TuningRequest(task, data, dev, **options)


@pytest.fixture(scope="module")
def tuned(tiny_run, made_once) -> Path:
    """The tiny run with the experts of `en` tuned, and `asked`, the files that it was tuned on. Read only."""

    def make(folder: Path) -> None:
        finetune_run(tiny_run, ask(folder / "asked", learn="experts"), folder / "tuned")

    return made_once("tuned_experts", make) / "tuned"


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "finetune" / "result.json").read_text(encoding="utf-8"))


def assert_only_own_experts_of_en_change(parent: Path, run: Path, segments: int = 1) -> None:
    """Weights, moments, step counts: experts 2 and 3 of six are those of `en`. Of several segments of a layer half are own."""
    old, new = saved_arrays(parent), saved_arrays(run)
    assert old.keys() == new.keys()
    for name, values in new.items():
        experts = name.startswith("experts_layer_")
        if experts and int(name.split()[0].rpartition("_")[2]) % segments < (segments + 1) // 2:
            assert np.delete(values, [2, 3], 0).tobytes() == np.delete(old[name], [2, 3], 0).tobytes(), name
            assert values[2:4].tobytes() != old[name][2:4].tobytes(), name
        elif not name.startswith("loss_scale"):
            assert values.tobytes() == old[name].tobytes(), name


def test_only_the_experts_of_the_domain_change_and_they_do(tiny_run, tuned):
    assert_only_own_experts_of_en_change(tiny_run, tuned)


def test_common_segments_keep_their_bits_where_experts_learn(segmented_run, tmp_path):
    """Their Adam state too, though the samples' tokens go to them; counts are of own experts."""
    run = tmp_path / "tuned"
    result = finetune_run(segmented_run, ask(tmp_path / "asked", learn="experts"), run)
    assert_only_own_experts_of_en_change(segmented_run, run, segments=4)
    unit = 2 * 24 * 8 + 8
    assert result is not None
    assert result["parameters"]["learn"] == 4 * (2 * unit + 24)
    assert result["common_kept"] == 2 * 2 * 3 * unit
    assert f"; the {2 * 2 * 3 * unit:,} of common segments keep their bits" in learns_text(result)
    forgotten = {name: own["difference"]["nats_per_token"] for name, own in result["forgetting"]["domains"].items()}
    assert (forgotten["zh"], forgotten["code"]) == (0.0, 0.0)
    notes = json.loads((run / "lineage.json").read_text(encoding="utf-8"))["notes"]
    assert notes[-1] == learns_text(result)


@pytest.mark.slow
def test_where_experts_learn_only_own_rows_of_the_domain_do(rows_run, tmp_path):
    """Common rows are read, and neither learn nor are met; state and scale of all other rows stay."""
    run = tmp_path / "tuned"
    result = finetune_run(rows_run, ask(tmp_path / "asked", learn="experts"), run)
    old, new = saved_arrays(rows_run), saved_arrays(run)
    keys = new.pop("rows_2 keys")
    assert set(keys) > set(old["rows_2 keys"]), "rows that the parent had not met are met"
    assert set(keys) - set(old["rows_2 keys"]) <= set(range(700, 1400))
    for name, values in new.items():
        if name.startswith(("rows_0", "rows_1")) or "row_scale" in name:
            assert values.tobytes() == old[name].tobytes(), name
        elif name.startswith("rows_2"):
            others, had = keys // 700 != 1, old["rows_2 keys"] // 700 != 1
            assert values[others].tobytes() == old[name][had].tobytes(), name
            assert values[~others].tobytes() != old[name][~had].tobytes(), name
    assert result is not None
    assert learns_text(result).endswith("; common rows keep their bits; own rows that samples meet learn")
    own = result["forgetting"]["domains"]
    changed = {name: each["difference"]["nats_per_token"] != 0.0 for name, each in own.items()}
    assert changed == {"zh": False, "en": True, "code": False}
    notes = json.loads((run / "lineage.json").read_text(encoding="utf-8"))["notes"]
    assert notes[-1] == learns_text(result)


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["experts", "all"])
def test_common_rows_alone_learn_with_everything_or_have_no_gradient(tiny_data, tmp_path, learn):
    rows = [{"order": 2, "rows": 500, "width": 24}]
    parent = write_dense_run(tiny_config(tiny_data, model={"rows": rows}), tmp_path / "parent")
    asked = ask(tmp_path / "asked", learn=learn, overrides=["train.steps=2"])
    finetune_run(parent, replace(asked, dev_file=None), tmp_path / "tuned")
    old, new = saved_arrays(parent), saved_arrays(tmp_path / "tuned")
    assert np.array_equal(new["rows_0 keys"], old["rows_0 keys"]) == (learn == "experts")
    assert np.array_equal(new["rows_0 weight"], old["rows_0 weight"]) == (learn == "experts")


def test_the_other_domains_answer_as_before_bit_for_bit(tiny_run, tiny_data, tuned):
    parent, run = open_model(tiny_run, "run"), open_model(tuned, "run")
    found = compare(run, parent, {each.name: each for each in domains_of(parent.config)}, tiny_data)
    assert (found["zh"].exact, found["code"].exact) == (0.0, 0.0)
    assert found["en"].exact > 0.0


def test_what_came_of_it_is_counted_measured_and_kept(tiny_run, tuned):
    result, run = result_of(tuned), open_model(tuned, "run")
    best = result["best"]
    assert best["loss"] < best["before"] - 0.1, "it learns the task"
    assert [path.name for path in (tuned / "checkpoints").glob("step_*")] == [f"step_{best['step']:08d}"]
    evaluations = [line for line in read_metrics(tuned) if line["kind"] == "evaluation"]
    means = [line["per_domain_loss"]["en"] for line in evaluations]
    assert [line["step"] for line in evaluations][int(np.argmin(means))] == best["step"]
    assert best["loss"] == pytest.approx(min(means), rel=1e-6)
    assert result["parameters"] == {"learn": 4 * (2 * 24 * 32 + 32 + 24), "all": run.config.num_params().total}
    assert result["train_file"]["skipped"] == {"not JSON": 1, "wrong keys": 1}
    assert len((tuned / "finetune" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    forgotten = {name: own["difference"]["nats_per_token"] for name, own in result["forgetting"]["domains"].items()}
    assert (forgotten["zh"], forgotten["code"]) == (0.0, 0.0)
    assert forgotten["en"] != 0.0
    assert result["parent"] == str(tiny_run)
    assert result["losses"] == {"before": best["before"], "after": best["loss"]}
    lineage = json.loads((tuned / "lineage.json").read_text(encoding="utf-8"))
    assert (lineage["kind"], lineage["parent"], lineage["parent_step"]) == ("finetune", str(tiny_run), 30)
    assert lineage["options"]["task"] == "test"
    assert lineage["options"]["train_file"]["samples"] == result["train_file"]["samples"]
    assert lineage["domains"] == {"zh": "as it was", "en": "learns the task", "code": "as it was"}


def test_of_a_tuned_run_a_run_to_train_is_made_by_extraction_and_itself_it_is_not_trained_on_text(tuned, tmp_path):
    extract_domains(tuned, tmp_path / "en", ["en"])
    assert open_model(tmp_path / "en", "run").config.finetune is None
    assert evaluate_run(tuned)["zh"]["loss"] == result_of(tuned)["forgetting"]["domains"]["zh"]["after"]["loss"]
    with pytest.raises(ConfigError, match=r"finetune\.task=test: .* is tuned to a task; go on with .*finetune"):
        train(open_model(tuned, "run").config, tuned)


def test_a_run_that_was_stopped_ends_in_the_bits_of_the_one_that_was_not(tiny_run, tuned, tmp_path, monkeypatch):
    """Stopped between two checkpoints, by an error; then the same command goes on."""

    class Stop(Exception):
        pass

    advance = Trainer.advance

    def stopping(self):
        if self.progress.step == 3:
            raise Stop
        return advance(self)

    folder = shutil.copytree(tuned.parent / "asked", tmp_path / "asked")
    asked = TuningRequest(folder / "test.yaml", folder / "train.jsonl", folder / "dev.jsonl", learn="experts")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "advance", stopping)
        finetune_run(Path(os.path.relpath(tiny_run)), asked, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints").exists()
    result = finetune_run(tiny_run, asked, tmp_path / "run")
    same_end(tuned, tmp_path / "run")
    assert result["best"] == result_of(tuned)["best"]
    assert result["forgetting"] == result_of(tuned)["forgetting"]
    assert finetune_run(tiny_run, asked, tmp_path / "run") == result, "a finished run is not trained again"
    with pytest.raises(ConfigError, match="was begun on other samples: train_file or dev_file"):
        write_lines(folder / "train.jsonl", pairs(0, 23))
        finetune_run(tiny_run, asked, tmp_path / "run")


def again(tuned: Path, learn: str = "experts", **overrides: Any) -> TuningRequest:
    """The request that tuned the run, with other options."""
    folder = tuned.parent / "asked"
    files = [folder / name for name in ("test.yaml", "train.jsonl", "dev.jsonl")]
    return TuningRequest(*files, learn, overrides=[f"train.{key}={value}" for key, value in overrides.items()])


@pytest.mark.slow
def test_neither_a_full_disk_nor_a_stop_at_an_evaluation_loses_the_best_state(tiny_run, tuned, tmp_path, monkeypatch):
    """The best state of step 2 cannot be saved at first; then SIGTERM comes in the step before its evaluation."""
    take, seal, advance = BestState.take, saver.seal_folder, Trainer.advance
    loss_of_step = [3.0, 2.0, 1.0, 1.5, 1.6]

    def scripted(best, step, losses, is_dev_set):
        monkeypatch.setattr(best_state, "mean_loss", lambda _: loss_of_step[step])
        take(best, step, losses, is_dev_set)

    def full(folder, *arguments):
        if folder.name.endswith("step_00000002"):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        seal(folder, *arguments)

    def stopping(trainer):
        if trainer.progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(trainer)

    asked = again(tuned, steps=4, eval_interval=1, checkpoint_interval=1, keep_checkpoints=1)
    monkeypatch.setattr(BestState, "take", scripted)
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left"):
        patch.setattr(saver, "seal_folder", full)
        finetune_run(tiny_run, asked, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", stopping)
        assert finetune_run(tiny_run, asked, tmp_path / "run") is None
    result = finetune_run(tiny_run, asked, tmp_path / "run")
    assert result is not None and (result["best"]["step"], result["best"]["loss"], result["steps"]) == (2, 1.0, 4)


@pytest.mark.parametrize(("overrides", "started"), [(["parallel.expert=2"], "1"), ([], "2")])
def test_several_ranks_are_refused_before_anything_is_written(tiny_run, tmp_path, monkeypatch, overrides, started):
    monkeypatch.setenv("MS_WORKER_NUM", started)
    asked = ask(tmp_path / "asked", overrides=overrides)
    with pytest.raises(ConfigError, match=r"^parallel \(.*\): fine-tuning is one process, .* start one process$"):
        finetune_run(tiny_run, asked, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["asked"]


def test_finetune_again_with_other_learn_advises_what_finetune_has(tiny_run, tuned):
    with pytest.raises(ConfigError, match=r"finetune\.learn: \"experts\" → \"all\"(?s:.*)give the options") as refused:
        finetune_run(tiny_run, again(tuned, "all"), tuned)
    assert "--start-over" not in str(refused.value)
    assert "train" not in str(refused.value).splitlines()[-1]


def test_other_steps_for_a_finished_fine_tuning_leave_its_configuration_alone(tiny_run, tuned):
    before = (tuned / "configuration.json").read_bytes()
    for steps in (40, 1):
        with pytest.raises(ConfigError, match=rf"is finished, and was tuned with\n  train\.steps: 20 → {steps}\n"):
            finetune_run(tiny_run, again(tuned, steps=steps), tuned)
    assert (tuned / "configuration.json").read_bytes() == before


def test_a_run_tuned_into_itself_is_told_so(tuned, tmp_path):
    (tmp_path / "link").symlink_to(tuned)
    with pytest.raises(ConfigError, match="link is the run to tune, which stays as it is; name another folder"):
        finetune_run(tuned, again(tuned), tmp_path / "link")


def test_a_result_with_a_changed_digit_is_told_and_removes_no_checkpoint(tiny_run, tuned, tmp_path):
    run, asked = shutil.copytree(tuned, tmp_path / "tuned"), ask(tmp_path / "asked", learn="experts")
    file, kept = run / "finetune" / "result.json", sorted(path.name for path in (run / "checkpoints").iterdir())
    content = file.read_bytes()
    at = content.index(b'"step": ', content.index(b'"best"')) + len(b'"step": ')
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(
        DamagedFile, match=r"result\.json: its content does not match its own hash; take it from a copy"
    ):
        finetune_run(tiny_run, asked, run)
    file.write_bytes(sealed({"best": {"step": 7}}, record=True))
    with pytest.raises(CheckpointError, match="step_00000007 is to be kept and is not there, so nothing was removed"):
        finetune_run(tiny_run, asked, run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept


def test_training_samples_as_dev_set_are_refused(tiny_run, tmp_path):
    asked = ask(tmp_path / "asked")
    copy = shutil.copy(asked.train_file, tmp_path / "copy.jsonl")
    with pytest.raises(
        ConfigError, match=r"dev_file .*copy\.jsonl is the train_file: .* give other lines, or leave it"
    ):
        finetune_run(tiny_run, replace(asked, dev_file=copy), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_diverged_fine_tuning_without_a_dev_set_is_an_error(tiny_run, tmp_path):
    """A state whose loss is not finite is no success."""
    asked = ask(tmp_path / "asked", learn="experts", overrides=["train.optimizer.peak_lr=1e20", "train.steps=2"])
    with pytest.raises(UnhealthyRun, match=r"training samples is not finite after step 2.* lower .*peak_lr=1e\+20"):
        finetune_run(tiny_run, replace(asked, dev_file=None), tmp_path / "run")
    assert not (tmp_path / "run" / "finetune" / "result.json").exists()


def same_end(run: Path, other: Path) -> None:
    """Both have the same best state, and have logged the same."""
    ends = [next((each / "checkpoints").glob("step_*")) for each in (run, other)]
    assert ends[0].name == ends[1].name
    assert digests(ends[0]) == digests(ends[1])
    logs = [[line for line in read_metrics(each) if line["kind"] == "evaluation"] for each in (run, other)]
    assert logs[0] == logs[1]


def test_what_stands_in_the_way_is_refused_and_leaves_nothing(tiny_run, tmp_path):
    asked = ask(tmp_path / "asked")
    with pytest.raises(ConfigError, match="is a run that is not tuned to a task; choose another folder with output"):
        finetune_run(tiny_run, asked, shutil.copytree(tiny_run, tmp_path / "other"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="exists; choose another path with output"):
        finetune_run(tiny_run, asked, tmp_path / "folder")
    with pytest.raises(DataError, match=r"(?s)2 lines are unusable.*has no sample that can be used"):
        write_lines(asked.train_file, BAD)
        finetune_run(tiny_run, asked, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked", "folder", "other"]


@pytest.mark.slow
def test_with_everything_learning_the_forgetting_of_every_domain_is_printed(tiny_run, tmp_path, capsys):
    asked = ask(tmp_path / "asked")
    options = [f"--task={asked.task}", f"--train-file={asked.train_file}", f"--output={tmp_path / 'run'}"]
    assert main(["finetune", str(tiny_run), *options, "--set", "finetune.epochs=2"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"loss of the training samples: [\d.]+ before, [\d.]+ at the end \(no --dev-file\), after step", printed
    )
    result = result_of(tmp_path / "run")
    assert result["losses"]["after"] < result["losses"]["before"], "of the training samples"
    for name, own in result["forgetting"]["domains"].items():
        if name != "en":
            assert own["difference"]["nats_per_token"] > 0.01, f"{name} is forgotten, its layers are shared"
        assert re.search(rf"^{name} +{own['before']['loss']:.4f} +{own['after']['loss']:.4f} ", printed, re.MULTILINE)
    assert "learn all: " in printed


@pytest.mark.slow
def test_patience_ends_a_run_and_the_best_state_is_kept(tiny_run, tmp_path):
    """A rate that is far too high: the loss of the dev set soon gets worse."""
    high = {"train": {"optimizer": {"peak_lr": 0.5, "end_lr": 0.4}}, "finetune": {"patience": 2, "epochs": 12}}
    result = finetune_run(tiny_run, ask(tmp_path / "asked", sections=high, learn="experts"), tmp_path / "run")
    config = open_model(tmp_path / "run", "run").config
    assert result["steps"] < config.train.steps
    assert result["best"]["stale"] == 2
    assert result["steps"] == result["best"]["step"] + 2 * config.train.eval_interval
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").step == result["best"]["step"]


def test_the_report_of_a_tuned_run_tells_parent_dev_loss_and_forgetting(tiny_run, tuned, tmp_path, capsys):
    result, page = result_of(tuned), (tuned / "report" / "report.html").read_text(encoding="utf-8")
    for part in (f"<td>parent</td><td>{tiny_run}</td>", "<td>parent_step</td><td>30</td>", "<th>dev_loss</th>"):
        assert part in page, part
    assert main(["report", str(shutil.copytree(tuned, tmp_path / "run"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("loss on the dev set, nats per token")
    assert lines[1].split()[:3] == ["en", *(f"{result['best'][when]:.3f}" for when in ("before", "loss"))]
    for name, own in result["forgetting"]["domains"].items():
        cells = [f"{own[when]['loss']:.4f}" for when in ("before", "after")]
        assert [line.split()[1:3] for line in lines if line.startswith(name)][-1] == cells
