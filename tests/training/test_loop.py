from __future__ import annotations

import errno
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from helpers.edited import stopped_at
from helpers.losses import held_out_losses
from helpers.threads import on_ranks
from mindspore import Tensor

from ascend_ops.adam_worker import AdamWorkerError
from experiments.chaos.runs import digests
from experiments.tiny import SAVED_AT, STEPS, tiny_config
from pangu_sigma.checkpoint import saver as saving
from pangu_sigma.checkpoint.checkpoint import CheckpointError, Identity, UnhealthyState, checkpoints, newest_checkpoint
from pangu_sigma.checkpoint.parts import Part, SavedArray
from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.cli import main
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.batches import BatchLoader, open_samples
from pangu_sigma.data.order import Cursor
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.model.declare import as_input
from pangu_sigma.optimizer.update import Schedule
from pangu_sigma.ranks.heartbeat import Heartbeat
from pangu_sigma.ranks.ranks import Ranks
from pangu_sigma.rre.table import draw_tables
from pangu_sigma.sections import RoutingConfig
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.log.metrics import load_max_over_mean, read_metrics
from pangu_sigma.training.loop import Trainer, _remarks, train
from pangu_sigma.training.start import Progress, start_run
from pangu_sigma.writable import NotWritable, folder_lock

pytestmark = pytest.mark.usefixtures("graph_mode")


DAMAGED = f"checkpoints/step_{STEPS:08d}/experts_layer_0.safetensors"


@pytest.fixture(scope="module")
def resumed(tiny_data, tiny_run, tmp_path_factory) -> Path:
    """The tiny run, whose last checkpoint was damaged, trained again from the one before to its end."""
    copy = shutil.copytree(tiny_run, tmp_path_factory.mktemp("resumed") / "tiny")
    (copy / DAMAGED).write_bytes((copy / DAMAGED).read_bytes()[:-1] + b"\x7f")
    np.random.seed(99)  # states that must not matter
    ms.set_seed(99)
    train(tiny_config(tiny_data), copy)
    return copy


FILES = {"store": "file", "cache_gib": 5e-5, "update": "worker"}
"""Experts in files, of which about a quarter may be in memory, updated behind the steps."""

KILLED = f"""
import os, signal, sys
from pathlib import Path
from experiments.tiny import SAVED_AT, tiny_config
from pangu_sigma.training import loop

def metrics(trainer, *step):
    if trainer.progress.step == SAVED_AT + 4:
        print(Path("/proc/self/maps").read_text(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(trainer, *step)

whole, loop.Trainer.metrics = loop.Trainer.metrics, metrics
loop.train(tiny_config(Path(sys.argv[1]), ecss={FILES}), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def file_run(tiny_data, tmp_path_factory) -> Path:
    """The tiny run with its experts in files, updated behind the steps, killed while it moves them for step 20, and resumed."""
    folder = tmp_path_factory.mktemp("files") / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tiny_data), str(folder)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    mapped = [line for line in killed.stdout.splitlines() if f" {folder}/" in line]
    assert mapped and all(line.endswith(" (deleted)") for line in mapped), killed.stdout
    assert [path.name for path in checkpoints(folder / "checkpoints")] == [f"step_{SAVED_AT:08d}"]
    train(tiny_config(tiny_data, ecss=FILES), folder)
    return folder


def test_it_learns(tiny_run):
    before, after = held_out_losses(tiny_run)
    assert set(before) == {"zh", "en", "code"}
    for name, loss in before.items():
        assert loss == pytest.approx(math.log(640), rel=0.05), "an untrained model knows nothing"
        assert after[name] < 0.75 * loss, name


def test_a_run_leaves_metrics_and_checkpoints(tiny_run):
    lines, schedule = read_metrics(tiny_run), Schedule(run_config(tiny_run).train.optimizer)
    assert lines[0]["kind"] == "run"
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(5, STEPS + 1, 5))
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [0, STEPS]
    for line in lines:
        if line["kind"] == "step":
            losses = {name: loss for name, loss in line.items() if name.startswith("loss/")}
            assert set(losses) <= {"loss/zh", "loss/en", "loss/code"}
            assert line["loss"] == pytest.approx(np.mean(list(losses.values())), rel=0.2)
            assert line["tokens"] == 5 * 4 * 32
            assert (line["skipped"], line["gradient_norm"] > 0) == (0, True)
            assert line["learning_rate"] == pytest.approx(schedule(line["step"]), rel=1e-6)
    load = sum(np.array(line["tokens_NK"]) for line in lines if line["kind"] == "load")
    assert load.shape == (2, 6)
    assert (load.sum(axis=1) == STEPS * 4 * 32).all()
    names = sorted(path.name for path in (tiny_run / "checkpoints").iterdir())
    assert names == [f"step_{SAVED_AT:08d}", f"step_{STEPS:08d}"]
    assert list((tiny_run / "tensorboard").iterdir())


def test_a_resumed_run_ends_in_the_bits_of_the_uninterrupted_one_and_logs_each_step_once(tiny_run, resumed):
    """Weights, moments, step counts, loss scale, counters, data cursor."""
    expected, actual = (digests(run / "checkpoints" / f"step_{STEPS:08d}") for run in (tiny_run, resumed))
    assert len(expected) > 100
    assert [name for name in expected if expected[name] != actual.get(name)] == []
    assert expected == actual
    logs = ([line for line in read_metrics(run) if line["kind"] == "step"] for run in (tiny_run, resumed))
    uninterrupted, continued = ([(line["step"], line["loss"]) for line in steps] for steps in logs)
    assert uninterrupted == continued
    loads = (
        sum(np.array(line["tokens_NK"]) for line in read_metrics(run) if line["kind"] == "load")
        for run in (tiny_run, resumed)
    )
    assert (next(loads) == next(loads)).all()
    assert (resumed / "set_aside_1" / DAMAGED).exists(), "the damaged checkpoint is set aside"


def test_a_run_with_experts_in_files_that_was_killed_ends_in_the_bits_of_the_one_in_memory(tiny_run, file_run):
    """Whatever the file held when it was killed, the run goes on from its checkpoint. Its log has the worker's times."""
    for step in (SAVED_AT, STEPS):
        expected, actual = (digests(run / "checkpoints" / f"step_{step:08d}") for run in (tiny_run, file_run))
        assert [name for name in expected if expected[name] != actual.get(name)] == []
        assert expected == actual
    lines = [[line for line in read_metrics(run) if line["kind"] == "evaluation"] for run in (tiny_run, file_run)]
    assert lines[0] == lines[1]
    for line in [line for line in read_metrics(file_run) if line["kind"] == "step"][1:]:
        assert 0.0 < line["update_busy"] < 1.0 and 0.0 <= line["update_stall"] < 1.0
    assert not {"update_busy", "update_stall"} & set(read_metrics(tiny_run)[2])


def test_nothing_reads_or_saves_the_experts_of_a_step_that_failed(tiny_data, tiny_run, tmp_path, monkeypatch):
    """The worker has the gradients of the first segment, and those of the second name a row that the store does not have."""
    trainer = Trainer(
        start_run(stopped_at(tiny_run, SAVED_AT, tmp_path / "run"), tiny_config(tiny_data, ecss={"update": "worker"}))
    )
    trainer.advance()
    fed = trainer.feed.take()
    active = [active_A.asnumpy().copy() for active_A in fed.arrays.active_A]
    active[1][0] = 1_000_000
    known, register = fed.batch.active_A, trainer.step.worker_update.register
    monkeypatch.setattr(trainer.step.worker_update, "register", lambda _: register(known))
    with pytest.raises(RuntimeError, match="StartUpdate"):
        trainer.step.take(1e-3, fed.arrays._replace(active_A=as_input(tuple(active))))
    for read in (trainer.store.settle, trainer.save, trainer.evaluator().losses):
        with pytest.raises(AdamWorkerError, match="half updated; go on from the last checkpoint"):
            read()
    with pytest.raises(RuntimeError, match="An error occurred in the previous step"):  # MindSpore's own
        trainer.advance()
    assert trainer.run.newest.path.name == f"step_{SAVED_AT:08d}"


@pytest.mark.parametrize("ecss", [{}, FILES, {"enabled": False}], ids=["memory", "files", "device"])
def test_any_store_takes_a_checkpoint_of_files(tiny_data, file_run, tmp_path, ecss):
    trainer = Trainer(start_run(stopped_at(file_run, SAVED_AT, tmp_path / "run"), tiny_config(tiny_data, ecss=ecss)))
    assert trainer.progress.step == SAVED_AT
    saved, loaded = newest_checkpoint(trainer.run.checkpoints).files, trainer.setup.shards
    for shard, arrays in saved.items():
        for name, array in arrays.items():
            assert loaded[shard][name].asnumpy().tobytes() == array.values.tobytes(), name
    assert loaded.keys() == saved.keys()
    expected = digests(file_run / "checkpoints" / f"step_{SAVED_AT:08d}")
    assert digests(trainer.save()) == expected


def test_a_trained_run_with_experts_in_files_is_evaluated_to_the_losses_of_its_end(file_run):
    losses = {name: values["loss"] for name, values in evaluate_run(file_run).items()}
    assert losses == held_out_losses(file_run)[1]


def test_the_traffic_of_the_log_is_that_of_the_batches(tiny_data, tiny_run):
    """From the active experts of each batch; those that fill the four places in a row do not move."""
    run = open_model(tiny_run, "run")
    samples = open_samples(run.config, tiny_data, "train", run.tokenizer.size)
    batches = BatchLoader(run.config, samples, run.tokenizer, run.table)
    cursor, mib = Cursor([0] * len(batches.domains)), 4 * (2 * 24 * 32 + 32 + 24) / (1 << 20)
    used = [sum(int((row < 6).sum()) for row in batches.next(cursor).active_A) for _ in range(STEPS)]
    for line in (line for line in read_metrics(tiny_run) if line["kind"] == "step"):
        expected = pytest.approx(np.mean(used[line["step"] - 5 : line["step"]]) * mib)
        assert line["fetched_mib"] == line["returned_mib"] == expected


def test_other_routing_is_refused_by_the_checkpoint_itself(tiny_data, tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(copy / "tokenizer")
    (copy / "routing.npz").unlink()
    (copy / "configuration.json").unlink()
    with pytest.raises(ConfigError, match=r"routing\.seed: 0 → 5"):
        Trainer(start_run(copy, tiny_config(tiny_data, routing={"seed": 5})))
    run = start_run(tiny_run, tiny_config(tiny_data))
    table = draw_tables(RoutingConfig(seed=5), 2, 3, run.tokenizer.size, 2, None)
    other = StoredRun(run.path)
    other.table = table
    with pytest.raises(CheckpointError, match=r"routing_hash.*routing\.seed"):
        newest_checkpoint(other.checkpoints, other.identity)


def changes(run: Path) -> list[tuple[int, list]]:
    """The history of a run's configuration after its start."""
    return [(line["step"], line["changes"]) for line in read_metrics(run) if line["kind"] == "config"]


def test_the_history_of_a_run_has_its_configuration_and_every_change(tiny_data, tiny_run, tmp_path, monkeypatch):
    """Also if it was stopped before the next checkpoint, and changed again or not at all."""
    copy = stopped_at(tiny_run, SAVED_AT, tmp_path / "run")
    first = read_metrics(copy)[0]
    assert first["config"] == tiny_config(tiny_data).model_dump(mode="json")
    monkeypatch.setattr(Trainer, "advance", lambda _: 1 / 0)
    for weight, expected in ((2.0, [(SAVED_AT, [["domains.1.weight", 1.0, 2.0]])]), (1.0, [])):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                train(run_config(copy, [("domains.1.weight", weight)]), copy)
            assert changes(copy) == expected
    first_change = (SAVED_AT, [["train.steps", STEPS, 40], ["train.optimizer.peak_lr", 0.01, 0.02]])
    with pytest.raises(ZeroDivisionError):
        train(run_config(copy, ["train.steps=40", "train.optimizer.peak_lr=0.02"]), copy)
    assert changes(copy) == [first_change]
    trainer = Trainer(start_run(copy, run_config(copy)))
    trainer.progress.step += 1
    trainer.save()
    with pytest.raises(ZeroDivisionError):
        train(run_config(copy, ["train.steps=41"]), copy)
    assert changes(copy) == [first_change, (SAVED_AT + 1, [["train.steps", 40, 41]])]


def test_a_second_writer_is_refused_and_touches_nothing_of_the_first(tiny_data, tiny_run, tmp_path):
    copy = stopped_at(tiny_run, SAVED_AT, tmp_path / "run")
    unfinished = copy / "checkpoints" / ".unfinished-step_00000030"
    unfinished.mkdir()
    with folder_lock(copy):
        before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
        with pytest.raises(NotWritable, match=rf"is written by process {os.getpid()} on .* since"):
            train(tiny_config(tiny_data, train={"steps": 7}), copy)
        assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
        assert set(evaluate_run(copy)) == {"zh", "en", "code"}, "a reader is always allowed"


@pytest.mark.slow
def test_a_disk_that_refuses_a_save_is_logged_and_only_the_last_save_ends_the_run(
    tiny_data, tiny_run, tmp_path, monkeypatch, caplog
):
    """Training goes on to the next save; its numbers are those of a run whose disk never failed."""
    write, full = saving.write_arrays, {"step_00000005", f"step_{SAVED_AT:08d}"}

    def refusing(path, *rest):
        if path.parent.name.removeprefix(".unfinished-") in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *rest)

    monkeypatch.setattr(saving, "write_arrays", refusing)
    options = tiny_config(tiny_data).train.model_dump() | {"steps": SAVED_AT, "checkpoint_interval": 5}
    config = tiny_config(tiny_data, train=options)
    with pytest.raises(CheckpointError, match=rf"step_{SAVED_AT:08d}: .*No space left"):
        train(config, tmp_path / "run")
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert re.search(r"step_00000005: .*No space left.* Training goes on.* due after step \d+", said)
    found = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in found.iterdir()) == ["step_00000010"]
    monkeypatch.undo()
    train(config, tmp_path / "run")
    latest = f"checkpoints/step_{SAVED_AT:08d}"
    assert digests(tmp_path / "run" / latest) == digests(tiny_run / latest)


class Saving(Trainer):
    """What a rank needs to save an array of its own, without a network."""

    def __init__(self, ranks: Ranks, config: Config, root: Path):
        self.ranks, self.config, self.best, self.setup, self.heart = ranks, config, None, None, Heartbeat(ranks.rank)
        self.progress = Progress(Cursor([]), 0, 0)
        part = SavedArray(Part.of_rows((3, 2), np.array([ranks.rank])), np.zeros((1, 2), np.float32))
        self.backend = SimpleNamespace(checkpoint_files=lambda _: {f"experts_layer_0.{ranks.rank:05d}": {"w1": part}})
        self.saver = saving.Saver(root, Identity("", "", {}, ""), 2, ranks=ranks)

    def state(self) -> dict:
        return {}


def test_a_disk_error_of_one_rank_is_logged_there_and_on_rank_0_with_the_next_checkpoint(
    tiny_data, tmp_path, monkeypatch, caplog
):
    """At once after steps 5 and 10, and behind the training after step 5, which step 10 notices: its own save is then the next."""
    write = saving.write_arrays

    def refusing(path, *rest):
        if "00002" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *rest)

    monkeypatch.setattr(saving, "write_arrays", refusing)
    options = tiny_config(tiny_data).train.model_dump() | {"steps": 12, "checkpoint_interval": 5}
    config = tiny_config(tiny_data, train=options)

    def work(ranks: Ranks) -> None:
        trainer = Saving(ranks, config, tmp_path / "checkpoints")
        for behind, step in ((False, 5), (False, 10), (True, 5)):
            trainer.saver.behind, trainer.progress.step = behind, step
            trainer.save_in_turn(last=False)
        trainer.progress.step = 10
        trainer.complete_save()

    assert on_ranks(3, work) == [None] * 3
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    due_steps = [int(re.search(r"due after step (\d+)", message)[1]) for message in messages]
    reasons = ["No space left" if "No space left" in message else "on another rank" for message in messages]
    expected = [(reason, due) for due in (10, 10, 12) for reason in ("No space left", "on another rank")]
    assert sorted(zip(reasons, due_steps, strict=True)) == sorted(expected)
    assert all("call the command again if it has ended" in message for message in messages)


def test_a_weight_that_is_not_finite_is_named_by_the_save_that_meets_it(trainer, caplog):
    """Behind the training: the error comes at a later step, and whatever is saved then is no checkpoint."""
    trainer.save()
    before = checkpoints(trainer.run.checkpoints)
    weight = trainer.store.segments[1].named["w2"].asnumpy()
    kept = weight[4].copy()
    weight[4, 3] = np.nan
    try:
        trainer.save_in_turn(last=False)
        weight[4] = kept
        with pytest.raises(
            UnhealthyState, match=r"w2 has \d+, first at \[4, 3, 0\] \(layer 1, expert 4 of domain code\)"
        ):
            trainer.complete_save()
    finally:
        weight[4] = kept
    assert before == checkpoints(trainer.run.checkpoints) != []
    trainer.save()


def test_a_finished_run_whose_log_a_crash_took_ends_well_and_says_what_is_lost(tiny_run, tmp_path, caplog):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    log = copy / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:60])
    assert main(["train", str(copy)]) == 0
    assert f"the lines of steps 1 to {STEPS} are lost" in caplog.text
    assert "no report is drawn: " in caplog.text
    assert "no summary: " in caplog.text
    assert main(["evaluate", str(copy)]) == 0


def test_a_skipped_step_moves_the_data_but_not_the_schedule(trainer):
    _, rate, result = trainer.advance()
    assert result.applied.asnumpy() == 1
    before = (trainer.progress.step, trainer.progress.updates, sum(trainer.progress.cursor.taken))
    trainer.step.scale.value.set_data(Tensor(2.0**126, ms.float32))
    batch, skipped_rate, result = trainer.advance()
    assert result.applied.asnumpy() == 0
    assert (trainer.progress.step, trainer.progress.updates) == (before[0] + 1, before[1])
    assert sum(trainer.progress.cursor.taken) == before[2] + 4
    metrics = trainer.metrics(batch, skipped_rate, result)
    assert metrics["skipped"]
    assert not math.isfinite(metrics["gradient_norm"])
    trainer.step.scale.value.set_data(Tensor(1024.0, ms.float32))
    _, next_rate, *_ = trainer.advance()
    assert next_rate == skipped_rate > rate


def test_a_warm_up_that_is_longer_than_the_training_is_warned_of(trainer, tiny_data, monkeypatch):
    assert _remarks(trainer) == []
    for steps, warned in ((5, False), (4, True)):
        monkeypatch.setattr(
            trainer, "config", tiny_config(tiny_data, train={**trainer.config.train.model_dump(), "steps": steps})
        )
        remarks = "\n".join(_remarks(trainer))
        assert ("train.optimizer.warmup_steps=5 is more than train.steps=4: " in remarks) == warned


def test_metrics_are_means_per_token_of_each_domain(trainer):
    batch, rate, result = trainer.advance()
    metrics = trainer.metrics(batch, rate, result)
    assert metrics["loss"] == pytest.approx(float(result.block_loss_GM[0].asnumpy().sum()))
    names = [["zh", "en", "code"][d] for d in batch.domains_M]
    assert [name for name in metrics if name.startswith("loss/")] == [f"loss/{name}" for name in dict.fromkeys(names)]
    if len(set(names)) == 2:
        shares = batch.block_weights_GM[0]
        assert metrics["loss"] == pytest.approx(
            sum(metrics[f"loss/{n}"] * share for n, share in zip(names, shares, strict=True))
        )
    assert metrics["tokens"] == 4 * 32
    assert all(isinstance(value, int | float) for value in metrics.values()), "a record is numbers alone"
    load_NK, reachable_N = trainer.expert_load(batch)
    assert metrics["load_max_over_mean"] == load_max_over_mean(load_NK, reachable_N)
    assert (load_NK.sum(axis=1) == 4 * 32).all()
    for load_K, reachable in zip(load_NK, reachable_N, strict=True):
        assert {*np.flatnonzero(load_K)} <= {*reachable} and len(reachable) == 2 * len(set(names))
