"""A task's file and --set make the configuration of a tuned run; what nobody has set follows from the samples."""

from __future__ import annotations

import pytest
from helpers.tasks import write_task
from lm_eval.tasks._yaml_loader import load_yaml

from experiments.tiny import tiny_config
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import config_path, load_config, shipped_configs
from pangu_sigma.domains import domains_of
from pangu_sigma.evaluate.benchmarks import TASKS
from pangu_sigma.finetune.task import read_task
from pangu_sigma.finetune.tuning import training_extent
from pangu_sigma.generate.chat_template import ChatTemplate
from pangu_sigma.held_out.batches import samples_of_evaluation


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Config:
    return tiny_config(tmp_path_factory.mktemp("data"), parallel={"data": 2})


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path / "test.yaml")


def test_what_nobody_has_set_follows_from_the_sequences(parent, task):
    config = read_task(task).config(parent, ["en"], 30)
    train, options = config.train, config.finetune
    assert (train.steps, train.eval_interval, train.checkpoint_interval) == (30, 8, 8)  # 4 passes over 30, 4 at a time
    assert (train.optimizer.warmup_steps, train.optimizer.decay_steps) == (3, 27)
    assert (config.data.domains_per_step, config.data.domain_sets, config.parallel.ranks) == (1, 1, 1)
    assert (options.task, options.domains, options.learn, config.name) == ("test", ["en"], "all", "tiny_test")
    assert config.chat.user == " {content} then"
    assert config.data.path == parent.data.path
    two = read_task(task).config(parent, ["zh", "en"], 30)
    assert two.data.domains_per_step == 2
    assert two.finetune.domains == ["zh", "en"]


@pytest.mark.parametrize("name", ["translation_en_zh", "translation_zh_en"])
def test_a_benchmark_of_translation_asks_as_its_task_was_tuned(name):
    config = read_task(name).config(load_config(config_path("sigma_tiny")), ["bilingual"], 30)
    asked = load_yaml(TASKS / f"{name}.yaml")["doc_to_text"]
    template = ChatTemplate.of(domains_of(config).named("bilingual"), config.chat)
    assert template.prompt([("user", "{source}")]) == asked.replace("{{source}}", "{source}")


def test_what_is_set_stays(parent, task):
    sets = ("train.steps=7", "train.checkpoint_interval=3", "train.optimizer.warmup_steps=0", "chat.stop=[a]")
    config = read_task(task, "experts+slot", "zh", sets).config(parent, ["zh"], 100)
    assert (config.train.steps, config.train.checkpoint_interval, config.train.eval_interval) == (7, 3, 9)
    assert config.train.optimizer.warmup_steps == 0
    assert (config.finetune.learn, config.finetune.domain, config.chat.stop) == ("experts+slot", "zh", ["a"])


def test_each_choice_says_how_many_parameters_learn(parent, task):
    config = read_task(task, "experts").config(parent, ["en"])
    experts = 2 * 2 * (2 * 24 * 32 + 32 + 24)
    assert training_extent(config)["parameters"]["learn"] == experts
    slot = read_task(task, "experts+slot").config(parent, ["en", "code"])
    assert training_extent(slot)["parameters"]["learn"] == 2 * experts + 640 * 24, "they share a slot"
    whole = read_task(task, "all").config(parent, ["zh", "en", "code"])
    assert training_extent(whole)["parameters"]["learn"] == whole.num_params().total


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["model.ffn=64"], r"(?s)that do not go with\n  model\.ffn: 32 → 64: the saved arrays.*\n  leave these keys out$"),
        (["ecss.moments=bfloat16"], r"ecss\.moments: .*the saved moments have this precision"),
        (["finetune.lern=all"], r"finetune\.lern: unknown key .*nearest valid key: learn"),
        (["finetune.learn=lora"], r"finetune\.learn: 'lora' is not allowed"),
        (["finetune.epochs=0"], r"finetune\.epochs: 0"),
        (["finetune.domain=fr"], r"finetune\.domain=fr is not a domain of this run; it has zh, en, code: add domain"),
        (["ecss.enabled=false", "finetune.learn=experts"], r"needs experts that are updated alone, and ecss\.enabled=false"),
        (["train.eval_interval=5", "train.checkpoint_interval=2"], r"eval_interval \(5\) is not divisible by .* \(2\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_key(parent, task, sets, message):
    with pytest.raises(ConfigError, match=message):
        read_task(task, overrides=sets).config(parent, ["en"], 30)


def test_a_set_that_contradicts_learn_or_domain_is_refused(task):
    message = r"^learn experts, and by overrides finetune\.learn is all; leave one of them away"
    for sets in (["finetune.learn=all"], [("finetune", {"task": "a", "learn": "all", "domain": "en"})]):
        with pytest.raises(ConfigError, match=message):
            read_task(task, "experts", overrides=sets)
    with pytest.raises(ConfigError, match=r"^domain zh, and by overrides finetune\.domain is left out; leave"):
        read_task(task, domain="zh", overrides=["finetune={task: a}"])
    assert read_task(task, "all", "zh", ["finetune.learn=all", "finetune.domain=zh"])


def test_a_set_that_takes_the_section_away_is_refused(task, parent):
    with pytest.raises(ConfigError, match=r"finetune\.domains: finetune holds the value None, not a section"):
        read_task(task, overrides=["finetune=null"]).config(parent)


def test_a_file_that_is_no_task_is_refused(tmp_path, parent):
    (tmp_path / "a.yaml").write_text("model: {}\nfinetune: {}")
    with pytest.raises(ConfigError, match="model is no section of a task; allowed: finetune, chat, train"):
        read_task(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("chat: {}")
    with pytest.raises(ConfigError, match="has no section finetune"):
        read_task(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("finetune: {task: a}")
    with pytest.raises(ConfigError, match=r"finetune\.domain: required key is missing"):
        read_task(tmp_path / "c.yaml").config(parent)
    with pytest.raises(ConfigError, match=r"task 'chatter' is neither shipped nor a file; shipped: code, dialogue, qa"):
        read_task("chatter")


@pytest.mark.parametrize("name", shipped_configs("finetune"))
def test_a_shipped_task_is_named_as_its_file_and_says_all_that_a_task_should(name):
    parent = load_config(config_path("sigma_tiny"))
    config = read_task(name).config(parent, [], 1_000)
    assert config.finetune.task == name
    assert None not in (config.chat.user, config.chat.assistant, config.chat.stop)
    assert config.train.steps == 375
    assert samples_of_evaluation(config) == samples_of_evaluation(parent), "evaluate reads as many of both"
    assert config.train.optimizer.peak_lr < parent.train.optimizer.peak_lr


def test_a_tuned_run_as_a_parent_leaves_nothing_of_its_task_behind(parent, task):
    first = read_task(task, "experts", "zh").config(parent, ["zh"], 30)
    second = read_task("qa", domain="en").config(first, ["en"], 30)
    assert (second.finetune.task, second.finetune.learn, second.finetune.domains) == ("qa", "all", ["en"])
