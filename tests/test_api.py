"""The Python face does what it promises: from any folder, in any thread, twice in one process, with strings or paths."""

from __future__ import annotations

import json
import pydoc
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import pangu_sigma as ps
from experiments.tiny import tiny_config, tiny_tree, write_text
from pangu_sigma import config_file
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.training.log.metrics import read_metrics

ROOT = Path(__file__).parents[1]


def losses(run: Path) -> dict[int, float]:
    """Training loss of each step that the run logged; there are some."""
    found = {line["step"]: line["loss"] for line in read_metrics(run) if line["kind"] == "step"}
    assert found
    return found


@pytest.fixture(scope="module")
def model(graph_mode, tiny_run) -> ps.Model:
    return ps.load(tiny_run)


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns outside the main thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_importing_is_light_and_every_promised_name_is_there_and_documented():
    code = (
        "import sys, pangu_sigma as ps; heavy = ('mindspore', 'mindformers', 'numpy', 'pydantic');"
        "print([m for m in heavy if m in sys.modules]); import pangu_sigma.config; ps.load_config('sigma_tiny');"
        "print('mindspore' in sys.modules, sorted(set(ps.__all__) - set(dir(ps))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False []"]
    for name in set(ps.__all__) - {"__version__"}:
        assert getattr(ps, name).__doc__, name
    for name, member in vars(ps.Model).items():
        assert name.startswith("_") or member.__doc__ or name in ("config", "engine"), name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        ps.trian  # noqa: B018


def test_mindspores_warnings_are_off_unless_asked_for():
    code = "import pangu_sigma, os; print(os.environ['GLOG_v'])"
    for environment, level in (({}, "3"), ({"GLOG_v": "1"}, "1")):
        path = {"PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], env=path | environment, capture_output=True, text=True)
        assert done.stdout.strip() == level


def test_a_function_is_not_hidden_by_the_folder_of_its_name():
    import pangu_sigma.training.loop  # noqa: F401

    assert ps.train.__module__ == "pangu_sigma.api"
    assert sys.modules["pangu_sigma.training"] is not ps.train


def test_load_config_takes_names_files_and_a_mapping(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ps.load_config("sigma_tiny", {"train.steps": 7, "data.path": tmp_path / "data"})
    assert isinstance(config, ps.Config)
    assert (config.name, config.train.steps, config.data.path) == ("sigma_tiny", 7, str(tmp_path / "data"))
    assert ps.load_config(ROOT / "model_configs" / "sigma_tiny.yaml") == ps.load_config("sigma_tiny")
    for overrides in (["train.steps=7"], "train.steps=7", [("train.steps", 7)]):
        assert ps.load_config("sigma_tiny", overrides).train.steps == 7
    with pytest.raises(
        ps.UserError,
        match=r"^override 'steps' is not KEY=VALUE, such as steps=10$",
    ):
        ps.load_config("sigma_tiny", "steps")


def test_a_configuration_may_be_given_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        ps.train,
        ps.prepare_data,
        lambda name: ps.extend("runs/x", name),
        lambda name: ps.plan(name, devices=8),
    ):
        with pytest.raises(ps.UserError, match="'sigma_tinny' is neither shipped nor a file; shipped: alpha_13b"):
            call("sigma_tinny")
    assert ps.plan("sigma_38b", devices=32) == ps.plan(ps.load_config("sigma_38b"), devices=32)


def test_an_argument_of_another_kind_is_one_message_that_names_it(model, tmp_path):
    """tests/test_arguments.py has the kinds; these show that every function checks."""
    generate, none, config = model.generate, tmp_path / "none", model.config
    calls: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: generate("the ", "en", max_tokens=3),
            "^generate: .* 'max_tokens'; allowed here: .* max_new_tokens, seed, ",
        ),
        (lambda: generate(["a", 3], "en"), r"prompt=\['a', 3\] is not allowed: a text"),
        (lambda: generate({"a": "b"}, "en"), "prompt={'a': 'b'} is not allowed: a text"),
        (lambda: generate("a", "en", stop=[b"x"]), r"stop=\[b'x'\] is not allowed: a text"),
        (lambda: generate("\ud800", "en"), "prompt=.* is not allowed: it is not Unicode text: character 0"),
        (lambda: generate("the ", "en", top_p=2), r"top_p=2 is not allowed"),
        (lambda: generate(["a", "b", "c"], ["en", "zh"]), "domain has 2 names for 3 prompts"),
        (lambda: generate("a", "fr"), "unknown domain 'fr'; this configuration has zh, en, code"),
        (lambda: model.stream(["a", "b"], "en"), r"prompt=\['a', 'b'\] is not allowed: a text"),
        (
            lambda: model.stream("a", "en", temprature=1),
            "temprature: unknown argument; allowed here: max_new_tokens, .* temperature",
        ),
        (lambda: model.logits([1.7], "en"), r"text_or_ids=\[1.7\] is not allowed: a text, or .* not 1\.7"),
        (lambda: model.logits([True], "en"), "a text, or whole numbers, ids of tokens, and not True"),
        (lambda: model.score("a", None), "domain=None is not allowed: a text"),
        (
            lambda: model.export(none, weights="int4"),
            "'int4' is not allowed: it must be 'float32', 'float16' or 'int8'",
        ),
        (lambda: ps.report(model, {"a": "b"}), "against={'a': 'b'} is not allowed: a path"),
        (lambda: ps.train(config, ""), "output='' is not allowed: a path, .* not blank"),
        (lambda: ps.train(config, steps=3), "^train: got an unexpected .* 'steps'; allowed here: config, output"),
        (lambda: ps.train(config, none, device="gpu"), "device='gpu' is not allowed: it must be 'cpu' or 'ascend'"),
        (lambda: ps.load(None), "model=None is not allowed: a path"),
        (lambda: ps.load(tmp_path), "is not a run folder"),
        (lambda: ps.load_config("sigma_tiny", 5), "overrides=5 is not allowed: values by key path, such as"),
        (lambda: ps.load_config("sigma_tiny", [("a", 3, 4)]), "overrides=.*3, 4.* is not allowed: values by"),
        (lambda: ps.evaluate([model, model]), "2 models without against; evaluate them one at a time"),
        (lambda: ps.inspect(None), "what=None is not allowed: a path"),
        (lambda: ps.inspect(model, drop=["zh", "en", "code"]), "^drop zh, en, code: no domain would be left"),
        (lambda: ps.plan(config), "plan needs devices N, .*; or scan, for a table"),
        (lambda: ps.plan(config, devices=0), "devices=0 is not allowed: it must be greater than or equal to 1"),
        (lambda: ps.benchmark(none, [3]), r"names=\[3\] is not allowed: a text"),
        (lambda: ps.prepare_data(config, none), "input .*none: there is no such file or folder; "),
        (lambda: ps.finetune(model, "qa", None, none), "train_file=None is not allowed: a path"),
        (lambda: ps.extract(model, none), "name the domains to keep with keep, or those to leave away with drop"),
        (lambda: ps.inherit(model, config, none, heads="4"), "heads='4' is not allowed: it must be a whole number"),
        (lambda: ps.extend(model, config, none, from_scratch="no"), "from_scratch='no' is not allowed: it must be"),
    ]
    for call, message in calls:
        with pytest.raises(ps.UserError, match=message):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ps.launch("sigma_tiny", nodes=2), "^node_rank is missing: with nodes 2 each is told its rank"),
        (lambda: ps.launch("sigma_tiny", max_restarts=-1), "^max_restarts=-1 is not allowed: it must be greater than"),
        (lambda: ps.launch("sigma_tiny", grace=float("nan")), "^grace=nan is not allowed: it must be"),
        (lambda: ps.launch("sigma_tiny", wait=float("inf")), "^wait=inf is not allowed: it must be a finite number"),
        (lambda: ps.launch("sigma_tiny", master_port=80), "^master_port 80 is not allowed: 1024 to 65534$"),
        (lambda: ps.serve("nix", api_key_file="nix"), "^api_key_file nix: No such file"),
        (lambda: ps.train("sigma_tiny", overrides={"data.path": "nix"}), "or, if it was moved, set data.path$"),
    ],
)
def test_a_message_names_arguments_as_python_does(call, message, tmp_path, monkeypatch):
    """Where a command runs it names options, as tests/test_mistakes.py has them."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ps.UserError, match=message) as refused:
        call()
    assert "--" not in str(refused.value)


def test_one_name_is_a_name_and_not_its_letters(model, tmp_path):
    assert ps.inspect(model, keep="en")["extract"] == ps.inspect(model, keep=["en"])["extract"]
    whole = model.generate("the cat", "en", max_new_tokens=8)
    assert model.generate("the cat", "en", max_new_tokens=8, stop=whole[2:4]) == whole.split(whole[2:4])[0]


def test_an_option_without_effect_is_warned_of(model, tmp_path, caplog):
    for option in ({"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"seed": 3}):
        ((name, value),) = option.items()
        caplog.clear()
        assert model.generate("the ", "en", max_new_tokens=1, temperature=1.0, **option) is not None
        assert "no effect" not in caplog.text
        assert model.generate("the ", "en", max_new_tokens=1, **option) is not None
        assert f"{name}={value} has no effect: temperature=0 takes the likeliest token" in caplog.messages
    ps.inspect(model.config, verify=True)
    assert "verify has no effect: it is about files of weights, and this is a configuration" in caplog.messages
    ps.inspect(model, overrides=["train.steps=3"])
    assert f"overrides has no effect: {model.path} is not a configuration" in caplog.messages
    model.evaluate(domain="en")
    assert any(said.startswith("domain, reader or overrides has no effect: held-out text") for said in caplog.messages)
    ps.evaluate(ps.load(model.path, weights="int8"), against=model)
    assert "weights=int8 has no effect: runs are compared by their weights as they are stored" in caplog.messages
    model.export(tmp_path / "hf", format="hf", weights="int8")
    assert "weights=int8 has no effect: format=hf has the weights as they are" in caplog.messages


def test_every_function_with_a_configuration_takes_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ps.load_config("sigma_tiny", {"model.ffn": 96})
    assert ps.inspect("sigma_tiny", overrides={"model.ffn": 96}) == ps.inspect(config)
    assert ps.load_config(config, {"model.ffn": 768}) == ps.load_config("sigma_tiny")
    with pytest.raises(ps.UserError, match=r"data\.path=nix"):
        ps.train("sigma_tiny", overrides=["data.path=nix"])


def test_help_begins_with_the_functions_and_is_short():
    text = pydoc.render_doc(ps, renderer=pydoc.plaintext)
    before = text[: text.index("CLASSES")]
    for name in (set(ps.__all__) | {"Config", "Receipt", "Score", "UserError"}) - {"__version__"}:
        assert re.search(rf"\b{name}\b", before), name
    assert len(text.splitlines()) <= 600


def test_a_callback_sees_every_step_and_stops_the_training(tiny_data, tiny_run, tmp_path, caplog):
    """The run then goes on from there, to the numbers of one that was never stopped. An error in a callback ends it, too."""
    caplog.set_level("INFO")
    with pytest.raises(ZeroDivisionError):
        ps.train(tiny_config(tiny_data), tmp_path / "run", on_step=lambda step: 1 / (step["step"] - 3))
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    seen: list[Any] = []
    run = ps.train(
        tiny_config(tiny_data), tmp_path / "run", on_step=lambda step: seen.append(step) or step["step"] == 7
    )
    assert [each["step"] for each in seen] == [*range(1, 8)] and run.outcome is None and run.stopped
    assert "stopped after step 7, which is saved" in caplog.text
    means = [np.mean([each["loss"] for each in seen[:5]]), np.mean([each["loss"] for each in seen[5:]])]
    assert list(losses(tmp_path / "run").values()) == pytest.approx(means)
    assert seen[0]["load_max_over_mean"] >= 1 and all(isinstance(value, int | float) for value in seen[0].values())
    rest: list[int] = []
    whole = ps.train(run.path, on_step=lambda step: rest.append(step["step"]))
    assert whole.outcome is not None and not whole.stopped
    assert rest == [*range(8, 31)]
    assert ps.metrics(run)["loss"][-4:].tolist() == ps.metrics(tiny_run)["loss"][-4:].tolist()


@pytest.mark.usefixtures("graph_mode")
def test_the_lines_of_the_readme_run_outside_the_main_thread(tmp_path, monkeypatch, capfd):
    """As they stand there, from an empty folder, with a tiny configuration and text for the shipped ones."""
    tree, shipped_as = tiny_tree(Path("data/prepared")), tmp_path / "sigma_tiny.yaml"
    shipped_as.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    monkeypatch.setattr(config_file, "shipped_configs", lambda folder="": {"sigma_tiny": shipped_as})
    write_text(tmp_path / "mine.jsonl")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    block = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert block and 'ps.load_config("sigma_tiny", {"train.steps": 100, "data.path": "data/python"})' in block[1]
    assert "\nps.prepare_data(config) " in block[1]
    lines = block[1].replace('"train.steps": 100', '"train.steps": 6')
    lines = lines.replace("ps.prepare_data(config)", "ps.prepare_data(config, input=['../mine.jsonl'])")
    names: dict[str, Any] = {}
    in_a_thread(lambda: exec(lines, names))
    printed = capfd.readouterr().out
    monkeypatch.chdir(tmp_path)
    model = names["model"]
    assert model.generate("The", domain="en", max_new_tokens=32, temperature=0.8) in printed
    assert max(losses(folder / "runs/python")) == 6
    assert set(model.evaluate()) == {"zh", "en", "code"}, "from another folder than the one of the data's relative path"
    exported = ps.load(str(folder / "exports/python"))
    assert exported.generate("the cat", "en") == model.generate("the cat", "en")


@pytest.mark.slow
@pytest.mark.usefixtures("graph_mode")
def test_training_after_other_work_gives_the_same_numbers(tiny_data, tiny_run, tmp_path):
    """tiny_run was trained before; in between a model answered, and another seed was set."""
    other = tiny_config(tiny_data, train={"steps": 2, "eval_interval": 2})
    ps.train(other.model_copy(update={"seed": 77}), tmp_path / "other")
    again = in_a_thread(lambda: ps.train(tiny_config(tiny_data), str(tmp_path / "again")))
    assert losses(tmp_path / "again") == losses(tiny_run)
    assert again.evaluate() == ps.load(tiny_run).evaluate()


def test_an_answer_that_the_models_length_ends_is_told(model, caplog):
    model.generate(["The ", "A "], domain="en", max_new_tokens=1)
    assert "model.seq_length" not in caplog.text
    answers = model.answers("The ", domain="en", max_new_tokens=10_000, temperature=1.0)
    assert ("1 of 1 answers end because" in caplog.text) == (not answers[0].finished)


def test_training_again_only_opens_a_finished_run(model, tiny_data, tiny_run):
    before = read_metrics(tiny_run)
    assert ps.train(tiny_config(tiny_data), tiny_run).path == model.path
    assert read_metrics(tiny_run) == before


def test_a_resumed_run_keeps_what_cannot_change(tiny_run):
    with pytest.raises(ps.UserError, match=r"model\.hidden: 24 → 48"):
        ps.train(ps.load_config(tiny_run / "configuration.json", {"model.hidden": 48}), tiny_run)


def test_prepare_data_takes_one_path_or_several_or_packaged_text(tiny_data, tmp_path, monkeypatch):
    requests: list[Any] = []
    monkeypatch.setattr(
        "pangu_sigma.data.prepare.prepare.prepare",
        lambda config, inputs, output, *_: requests.append((inputs, output)) or load_manifest(tiny_data),
    )
    config = tiny_config(tmp_path / "data")
    for inputs in ("a.jsonl", (Path("a.jsonl"),)):
        ps.prepare_data(config, inputs)
        assert requests.pop() == ([Path("a.jsonl")], tmp_path / "data")
    result = ps.prepare_data(config)
    assert result["domains"].keys() == {"zh", "en", "code"} and "held out" in str(result).splitlines()[0]
    assert [file.name.partition("-")[0] for file in requests.pop()[0]] == ["zh", "en", "code"]


def test_one_prompt_gives_a_text_and_a_list_gives_texts(model):
    one = model.generate("the cat", "en", max_new_tokens=4)
    assert isinstance(one, str)
    assert model.generate(["the cat"], "en", max_new_tokens=4) == [one]
    several = model.generate(["the cat", "今天"], domain=["en", "zh"], max_new_tokens=4)
    assert several == [one, model.generate("今天", "zh", max_new_tokens=4)]


def test_evaluate_is_what_the_run_logged_last(model, tiny_run):
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "evaluation"][-1]["per_domain_loss"]
    assert {name: found["loss"] for name, found in model.evaluate().items()} == pytest.approx(logged, rel=1e-5)


def test_evaluate_against_a_run_says_how_much_it_loses_more(model, tiny_run):
    (pair,) = model.evaluate(all_samples=True, against=str(tiny_run))["pairs"]
    plain = ps.evaluate(model, all_samples=True)
    for name, figures in plain.items():
        found = pair["domains"][name]
        assert found == figures | {"against": figures, "difference": found["difference"]}
        assert set(found["difference"].values()) == {0.0}
    assert str(plain) == repr(plain) and str(plain).startswith("domain "), "what a command prints, in a notebook too"


def test_an_export_answers_as_text_or_path_and_says_what_it_has_not(model, tiny_export):
    exported = ps.load(str(tiny_export))
    assert exported.generate("the cat", "en", max_new_tokens=4) == model.generate("the cat", "en", max_new_tokens=4)
    for call in (lambda: exported.evaluate(against=tiny_export), lambda: exported.export("elsewhere")):
        with pytest.raises(
            ps.UserError, match="is an exported model, not a run folder; name the run that it came from"
        ):
            call()
