"""Under mindformers.Trainer the same configuration is the same training, bit for bit, and its folder is a run folder.

MindFormers' context is one for a process and binds it to cores, so trainings run in processes of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import yaml
from helpers.edited import stopped_at
from helpers.toy import randomise, toy_batches, toy_config, weights_of
from mindspore import Tensor, nn

from experiments.tiny import SAVED_AT, STEPS, tiny_tree
from pangu_sigma.checkpoint.changes import leaves
from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import load_config, read_tree
from pangu_sigma.data.order import Cursor
from pangu_sigma.held_out.run import evaluate_run
from pangu_sigma.mindformers_adapter import register
from pangu_sigma.mindformers_adapter.yaml_keys import KEYS, sigma_config
from pangu_sigma.training.start import Progress

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "model_configs" / "mindformers" / "sigma_tiny.yaml"
SCRIPT = ROOT / "run_scripts" / "mindformers_ascend.sh"
PLAIN = """
import sys
from mindformers import MindFormerConfig, Trainer, build_context
config = MindFormerConfig(sys.argv[1])
build_context(config)
Trainer(args=config).train()
"""
"""All that MindFormers' own run entry does."""


def tiny_yaml(data: Path, folder: Path, steps: int) -> dict[str, Any]:
    """`tiny_tree` in MindFormers' words."""
    tree = tiny_tree(data)
    model = {"type": "PanGuSigmaConfig", **tree["model"], "domains": tree["domains"], "vocabulary": tree["vocabulary"]}
    peak, end, warmup, decay = tree["train"]["optimizer"].values()
    rates = {"learning_rate": peak, "lr_end": end, "warmup_steps": warmup, "total_steps": warmup + decay}
    runner = {"epochs": 1, "sink_mode": False, "gradient_accumulation_steps": 1}
    loader = {"dataset_dir": str(data), "domains_per_step": 2, "steps": steps, "shuffle": "permutation"}
    scale = {"type": "DynamicLossScaleUpdateCell", "scale_factor": 2}
    return {
        "output_dir": str(folder),
        "run_mode": "train",
        "use_parallel": False,
        "seed": 0,
        "trainer": {"type": "PanGuSigmaTrainer", "model_name": tree["name"]},
        "context": {"mode": 0, "device_target": "CPU"},
        "runner_config": runner | {"batch_size": tree["train"]["batch_size"]},
        "model": {"model_config": model, "arch": {"type": "PanGuSigmaForCausalLM"}},
        "train_dataset": {"data_loader": loader},
        "train_dataset_task": {"type": "PanGuSigmaDataset"},
        "optimizer": {"type": "PanGuSigmaAdam"},
        "lr_schedule": {"type": "CosineWithWarmUpLR", **rates},
        "runner_wrapper": {"type": "PanGuSigmaTrainOneStepCell", "scale_sense": scale},
        "callbacks": [{"type": "MFLossMonitor"}, {"type": "PanGuSigmaCheckpoint", "save_checkpoint_steps": SAVED_AT}],
    }


def run(*command: str | Path, **environment: str) -> str:
    """Output of a command that must succeed, in a working directory that its own output does not name."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def write_yaml(tree: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def same_checkpoint(left: Path, right: Path, step: int) -> None:
    ours, theirs = (load_checkpoint(folder / "checkpoints" / f"step_{step:08d}") for folder in (left, right))
    own = [{key: value for key, value in found.state.items() if key != "health"} for found in (ours, theirs)]
    assert own[0] == own[1], "but MindFormers' loop does not watch the health of a run"
    assert ours.files.keys() == theirs.files.keys()
    for file, arrays in ours.files.items():
        left, right = ({n: a.values.tobytes() for n, a in found.items()} for found in (arrays, theirs.files[file]))
        assert left == right


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory) -> tuple[Path, str]:
    """Folder and output of a training under MindFormers up to the tiny run's first checkpoint."""
    folder = tmp_path_factory.mktemp("mindformers")
    path = write_yaml(tiny_yaml(tiny_data, folder / "run", SAVED_AT), folder / "tiny.yaml")
    return folder / "run", run(sys.executable, "-m", "pangu_sigma.mindformers_adapter", path)


def test_the_shipped_yaml_is_sigma_tiny_without_rows_which_mindformers_has_not():
    ours = load_config(ROOT / "model_configs" / "sigma_tiny.yaml", ["model.rows=[]"]).model_dump()
    theirs = sigma_config(read_tree(SHIPPED)).model_dump()
    assert ours["train"].pop("eval_interval") and theirs["train"].pop("eval_interval")  # nothing evaluates there
    assert theirs == ours
    assert yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) == read_tree(SHIPPED)  # MindFormers reads it so


MEANINGS = {
    "trainer.model_name": ("name", "other"),
    "seed": ("seed", 7),
    "runner_config.batch_size": ("train.batch_size", 12),
    "train_dataset.data_loader.dataset_dir": ("data.path", "elsewhere"),
    "train_dataset.data_loader.domains_per_step": ("data.domains_per_step", 2),
    "train_dataset.data_loader.domain_sets": ("data.domain_sets", 1),
    "train_dataset.data_loader.shuffle": ("data.shuffle", "keyed"),
    "train_dataset.data_loader.steps": ("train.steps", 70),
    "optimizer.betas.0": ("train.optimizer.beta1", 0.5),
    "optimizer.betas.1": ("train.optimizer.beta2", 0.6),
    "optimizer.eps": ("train.optimizer.eps_dense", 1e-5),
    "optimizer.eps_experts": ("train.optimizer.eps_experts", 1e-6),
    "optimizer.weight_decay": ("train.optimizer.weight_decay", 0.3),
    "lr_schedule.learning_rate": ("train.optimizer.peak_lr", 0.04),
    "lr_schedule.lr_end": ("train.optimizer.end_lr", 0.03),
    "lr_schedule.warmup_steps": ("train.optimizer.warmup_steps", 9),
    "lr_schedule.total_steps": ("train.optimizer.decay_steps", 40),
    "runner_wrapper.accumulation": ("train.accumulation", 3),
    "runner_wrapper.max_grad_norm": ("train.optimizer.clip_norm", 0.7),
    "runner_wrapper.scale_sense.loss_scale_value": ("train.loss_scale.initial", 32.0),
    "runner_wrapper.scale_sense.scale_window": ("train.loss_scale.window", 11),
    "callbacks.1.save_checkpoint_steps": ("train.checkpoint_interval", 13),
    "callbacks.1.keep_checkpoint_max": ("train.keep_checkpoints", 5),
    "model.model_config.compute_dtype": ("train.compute_dtype", "float16"),
    "model.model_config.routing.table": ("routing.table", "balanced"),
    "model.model_config.ecss.cache_gib": ("ecss.cache_gib", 2.5),
}
"""Key of MindFormers → our key, and a value. All numbers differ, so that none can stand in another's place."""


def test_every_key_means_its_own():
    tree = read_tree(SHIPPED, [f"{key}={json.dumps(value)}" for key, (_, value) in MEANINGS.items()])
    values = leaves(sigma_config(tree).model_dump(mode="json"))
    expected = dict(MEANINGS.values()) | {"train.optimizer.decay_steps": 40 - 9}
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.model_config.hiden=3", "unknown key; nearest valid key: model.model_config.hidden;"),
        ("model.model_config.routing.tabel=random", "unknown key (value 'random')"),
        ("model.model_config.ecss.store=file", "'file' is not allowed"),
        ("model.model_config.rows=[3]", "[3] is not allowed: MindFormers' trainer, whose"),
        ("model.model_config.checkpoint_name_or_path=x", "'x' is not allowed"),
        ("optimizer.beta=0.9", "unknown key; nearest valid key: optimizer.betas"),
        ("optimizer.type=AdamW", "'AdamW' is not allowed: it must be 'PanGuSigmaAdam'"),
        ("lr_schedule.total_steps=20", "20 must be more than lr_schedule.warmup_steps=50"),
        ("lr_schedule.lr_end=-1.0", "-1.0 is not allowed"),
        ("runner_wrapper.scale_sense.scale_factor=4", "4 is not allowed"),
        ("runner_config.epochs=2", "2 is not allowed: it must be 1"),
        ("use_parallel=true", "True is not allowed"),
        ("callbacks=3", "3 is not allowed: it must be a list"),
        ("load_checkpoint=somewhere", "'somewhere' is not allowed: a training goes on from the newest"),
        ("do_eval=true", "True is not allowed: `pangu-sigma evaluate`"),
        ("optimizer=3", "optimizer.type: None is not allowed"),
        ("optimizer.betas=[0.9, 1.5]", "optimizer.betas.1: 1.5 is not allowed: it must be less than 1"),
        ("callbacks.1.type=CheckpointMonitor", "callbacks: CheckpointMonitor is not allowed"),
        ("callbacks.1.save_steps=5", "callbacks.PanGuSigmaCheckpoint.save_steps: unknown key; nearest valid key:"),
        ("model.model_config.hidden=100", "configuration: model.model_config.hidden (100) is not divisible by model."),
        (
            "train_dataset.data_loader.domains_per_step=3",
            "configuration: runner_config.batch_size (8) is not divisible",
        ),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_its_name(override: str, said: str):
    with pytest.raises(ConfigError) as error:
        sigma_config(read_tree(SHIPPED, [override]))
    assert str(error.value).startswith((said, f"{override.partition('=')[0]}: {said}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("lr_schedule.")])
def test_a_rate_is_not_left_to_mindformers_default(key: str):
    tree = read_tree(SHIPPED)
    del tree["lr_schedule"][key.removeprefix("lr_schedule.")]
    with pytest.raises(ConfigError, match=f"{key}: required key is missing"):
        sigma_config(tree)


def test_a_wrong_yaml_ends_before_mindspore_is_loaded():
    program = (
        "import sys; from pangu_sigma.mindformers_adapter.__main__ import main; status = main(sys.argv[1:]); "
        "print([m for m in sys.modules if m.split('.')[0] in ('mindspore', 'mindformers')]); sys.exit(status)"
    )
    command = [sys.executable, "-c", program, SHIPPED, "--set", "optimizer.beta=0.9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr.startswith("error: optimizer.beta: unknown key") and done.stderr.count("\n") == 1


def test_the_same_training_bit_for_bit(trained, tiny_run):
    same_checkpoint(trained[0], tiny_run, SAVED_AT)


def test_the_losses_that_mindformers_prints_are_those_of_the_run(trained, tiny_run):
    printed = [float(loss) for loss in re.findall(r"loss:\[([0-9.]+)/", trained[1])]
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    ours = [line["loss"] for line in lines if line["kind"] == "step" and line["step"] <= SAVED_AT]
    assert len(printed) == SAVED_AT
    np.testing.assert_allclose(np.reshape(printed, (len(ours), -1)).mean(axis=1), ours, atol=1e-6)


def test_its_folder_can_be_evaluated(trained, tiny_run, tmp_path):
    earlier = stopped_at(tiny_run, SAVED_AT, tmp_path / "earlier")
    shutil.copy(trained[0] / "configuration.json", earlier / "configuration.json")  # as many held-out batches
    before = {name: losses["loss"] for name, losses in evaluate_run(earlier).items()}
    after = {name: losses["loss"] for name, losses in evaluate_run(trained[0]).items()}
    assert set(after) == {"zh", "en", "code"}
    assert all(after[name] == pytest.approx(before[name], rel=1e-6) for name in before)


def test_mindformers_goes_on_from_a_checkpoint_of_the_projects_trainer(tiny_run, tiny_data, tmp_path):
    """Through MindFormers' own registration, and with the worker, which changes no bit."""
    folder = stopped_at(tiny_run, SAVED_AT, tmp_path / "run")
    tree = tiny_yaml(tiny_data, folder, STEPS)
    tree["model"]["model_config"]["ecss"] = {"update": "worker"}
    tree["trainer"]["auto_register"] = "registration.PanGuSigmaTrainer"
    path = write_yaml(tree, tmp_path / "tiny.yaml")
    import pangu_sigma.mindformers_adapter as adapter

    run(
        *(sys.executable, "-c", PLAIN, path),
        REGISTER_PATH=str(Path(adapter.__file__).parent),
        OM_MODULES_CACHE=str(tmp_path / "modules"),
        LOG_MF_PATH=str(tmp_path / "log"),
    )
    same_checkpoint(folder, tiny_run, STEPS)


@pytest.mark.slow
def test_a_step_that_overflows_is_said_to_and_does_not_advance_the_rate(graph_mode, tmp_path):
    register()
    from pangu_sigma.mindformers_adapter.model import PanGuSigmaConfig, PanGuSigmaForCausalLM
    from pangu_sigma.mindformers_adapter.train_one_step import (
        PanGuSigmaAdam,
        PanGuSigmaTrainOneStepCell,
        make_dataset,
    )

    config = toy_config(ecss={"enabled": False})
    batches = toy_batches(config, tmp_path)
    model = PanGuSigmaForCausalLM(PanGuSigmaConfig(tree=config.model_dump(mode="json")))
    randomise([*model.network.trainable_params(), *weights_of(model.store)], 0)
    progress = Progress(0, 0, Cursor([0] * len(batches.domains)))
    optimizer = PanGuSigmaAdam([], nn.PolynomialDecayLR(0.5, 0.1, 4, 1.0))
    cell = PanGuSigmaTrainOneStepCell(model, optimizer, config, batches, None, progress).set_train()
    cell.step.scale.value.set_data(Tensor(1e20, ms.float32))
    rows = make_dataset({}, 40)
    assert rows.get_dataset_size() == 40
    outputs = []
    for columns in rows.create_tuple_iterator(num_epochs=1):
        outputs.append([tensor.asnumpy() for tensor in cell(*columns)])
        if not outputs[-1][1]:
            break
    loss, overflow, scale, rate, norm = zip(*outputs, strict=True)
    assert list(overflow) == [True] * (len(outputs) - 1) + [False] and len(outputs) > 1
    assert np.isfinite(loss).all() and np.isfinite(norm[-1]) and not np.isfinite(norm[0])
    assert scale[0] / scale[-1] == 2.0 ** (len(outputs) - 1)
    assert len(set(map(float, rate))) == 1 and optimizer.rate(1) != optimizer.rate(2)
    taken = Cursor([0] * len(config.domains))
    for _ in outputs:
        batches.next(taken)
    assert (progress.step, progress.updates, progress.cursor) == (len(outputs), 1, taken)
    assert isinstance(cell(*columns)[0], Tensor)


def test_more_than_one_process_is_refused(monkeypatch):
    register()
    from mindformers.tools.register import MindFormerConfig

    from pangu_sigma.mindformers_adapter.trainer import PanGuSigmaTrainer

    monkeypatch.setenv("RANK_SIZE", "2")
    config = MindFormerConfig(**read_tree(SHIPPED))
    with pytest.raises(ConfigError, match="2 processes were started"):
        PanGuSigmaTrainer("sigma_tiny").train(config)


def test_everything_is_in_the_registry():
    register()
    from mindformers.tools.register import MindFormerRegister

    tree = read_tree(SHIPPED)
    for kind, section in {
        "trainer": tree["trainer"],
        "config": tree["model"]["model_config"],
        "models": tree["model"]["arch"],
        "dataset": tree["train_dataset_task"],
        "optimizer": tree["optimizer"],
        "wrapper": tree["runner_wrapper"],
        "callback": tree["callbacks"][1],
    }.items():
        assert MindFormerRegister.is_exist(kind, section["type"]), kind


def test_the_keys_of_a_yaml_make_the_model(graph_mode):
    register()
    from mindformers.models import build_network
    from mindformers.tools.register import MindFormerConfig

    config = toy_config()
    sections = {"domains": [d.model_dump() for d in config.domains], "routing": config.routing.model_dump()}
    keys = {"type": "PanGuSigmaConfig", **config.model.model_dump(), **sections}
    model = build_network(MindFormerConfig(model_config=keys, arch={"type": "PanGuSigmaForCausalLM"}))
    assert model.config.sigma.model == config.model
    assert type(model.config)(tree=model.config.to_dict()["tree"]).sigma == model.config.sigma


def test_the_launch_script_prints_what_it_would_start():
    said = run("bash", SCRIPT, "--dry-run", "--device", "3", "train_dataset.data_loader.steps=100")
    assert said.startswith("ASCEND_RT_VISIBLE_DEVICES=3 'msrun' '--worker_num=1'")
    overrides = [part.strip("'") for part in said.split() if "=" in part and not part.startswith(("'--", "ASCEND"))]
    assert "train_dataset.data_loader.steps=100" in overrides
    entry = said.split("'pangu_sigma.mindformers_adapter' ")[1].split()[0].strip("'")
    config = sigma_config(read_tree(ROOT / entry, overrides))  # what the entry would make of it
    assert (config.train.compute_dtype, config.train.steps) == ("float16", 100)


@pytest.mark.parametrize("wrong", [["--devise", "3"], ["--device", "x"], ["--port"], ["steps"]])
def test_the_launch_script_refuses_what_it_does_not_know(wrong: list[str]):
    done = subprocess.run(["bash", SCRIPT, "--dry-run", *wrong], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
