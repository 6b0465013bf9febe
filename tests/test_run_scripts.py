"""The scripts of run_scripts/, started outside of the repository: a user's paths are relative to where the user stands.

They run in a copy of the repository whose environment counts as installed, so that no test can start an installation. Both the
repository and the user's folder have a space in their names.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.ascend_host import AscendHost

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "run_scripts").glob("*.sh"))
STAMP = ".venv/installed.sha256"


@pytest.fixture
def repository(tmp_path) -> Path:
    """A copy of what the scripts need of the repository; .venv only says that everything is installed."""
    copy = tmp_path / "the repository"
    shutil.copytree(ROOT / "run_scripts", copy / "run_scripts")
    shutil.copytree(ROOT / "model_configs", copy / "model_configs")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "activate").touch()
    content = (copy / "requirements.txt").read_bytes() + (copy / "pyproject.toml").read_bytes()
    (copy / STAMP).write_text(f"{hashlib.sha256(content).hexdigest()}  -\n")
    return copy


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where the user stands, with a configuration of the user's own."""
    own = tmp_path / "my folder"
    own.mkdir()
    shutil.copy(ROOT / "model_configs" / "sigma_1t.yaml", own / "conf.yaml")
    shutil.copy(ROOT / "model_configs" / "mindformers" / "sigma_tiny.yaml", own / "my words.yaml")
    return own


def run(script: str | Path, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the interpreter and the command `pangu-sigma` of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # without what MindSpore has set in this process when it joined ranks
    others = {name: value for name, value in os.environ.items() if not name.startswith("HCCL_")}
    environment = others | {"PATH": path, "PYTHON": sys.executable} | variables
    return subprocess.run(["bash", script, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def program(path: Path, text: str) -> None:
    """Write a program that stands in for another one."""
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def stand_ins(repository: Path, programs: dict[str, str]) -> None:
    """Write programs that the scripts then find in the repository's environment. programs: texts by name."""
    for name, text in programs.items():
        program(repository / ".venv" / "bin" / name, text)
    (repository / ".venv" / "bin" / "activate").write_text(f"PATH={shlex.quote(str(repository / '.venv/bin'))}:$PATH")


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_parse_each_script(name):
    done = subprocess.run(["bash", "-n", ROOT / "run_scripts" / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("script", "options", "commands"),
    [
        ("msrun_cpu.sh", [], 1),
        ("msrun_node.sh", ["--set", "parallel={tensor: 8}"], 1),
        ("msrun_cluster.sh", ["--nodes", "64"], 64),
    ],
)
def test_paths_of_a_launch_are_relative_to_the_folder_of_the_user(script, options, commands, repository, folder):
    before = set(folder.rglob("*"))
    arguments = ["conf.yaml", *options, "--run", "runs/x", "--dry-run"]
    done = run(repository / "run_scripts" / script, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    printed = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("msrun ")]
    assert len(printed) == commands
    for words in printed:
        assert words[words.index("train") :][:4] == ["train", "conf.yaml", "--run", "runs/x"]
        assert "--log_dir=runs/x/logs/START" in words
    assert ("HCCL_CONNECT_TIMEOUT" in done.stdout) == (script != "msrun_cpu.sh")  # the settings for NPUs
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize("by", ["PANGU_SIGMA_CHIP", "npu-smi info"])
def test_a_launch_on_npus_is_told_its_chip(by, repository, folder, tmp_path):
    tools = AscendHost(tmp_path / "host", "910b", 1).tools
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"PATH": path} if by == "npu-smi info" else {"PANGU_SIGMA_CHIP": "910b3"}
    script = repository / "run_scripts" / "msrun_cluster.sh"
    done = run(script, "conf.yaml", "--nodes", "64", "--dry-run", cwd=folder, **variables)
    assert done.returncode == 0, done.stderr
    assert f"chip 910b3, said by {by}" in done.stderr
    assert "export MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE" in done.stdout
    assert done.stdout.count("--set parallel.chip=910b3") == 64


def test_export_ascend_keeps_its_arguments_to_itself(repository, folder, tmp_path):
    """ascend_env.sh, which it sources, takes a chip as its own argument."""
    calls = shlex.quote(str(tmp_path / "calls"))
    python = (
        f"""case "$*" in *environment*) exec {shlex.quote(sys.executable)} "$@" ;; *) echo "$PWD $*" >{calls} ;; esac"""
    )
    stand_ins(repository, {"python": python})
    done = run(repository / "run_scripts" / "export_ascend.sh", "my run", "out", "int8", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text() == f"{folder} -m pangu_sigma.planning.export_ascend my run out int8\n"
    assert "chip 910a (Ascend 910A), said by nobody" in done.stderr


def test_a_shipped_configuration_is_found_by_name_from_any_folder(repository, folder):
    done = run(repository / "run_scripts" / "msrun_cpu.sh", "sigma_tiny", "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "--log_dir=runs/sigma_tiny/logs/START" in done.stdout


def test_the_run_entry_of_mindformers_takes_paths_of_the_user(repository, folder):
    before = set(folder.rglob("*"))
    script = repository / "run_scripts" / "mindformers_ascend.sh"
    shipped = str(repository / "model_configs" / "mindformers" / "sigma_tiny.yaml")
    for config, options in ((shipped, []), ("my words.yaml", ["--config", "my words.yaml", "--log-dir", "my logs"])):
        done = run(script, *options, "--dry-run", cwd=folder)
        assert done.returncode == 0, done.stderr
        words = shlex.split(done.stdout)
        assert words[words.index("pangu_sigma.mindformers_adapter") + 1] == config
        assert f"--log_dir={'my logs' if options else 'runs/mindformers_ascend_log'}" in words
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("msrun_cpu.sh", ["none.yaml"]),
        ("msrun_cluster.sh", ["none.yaml", "--nodes", "64"]),
        ("mindformers_ascend.sh", ["--config", "none.yaml"]),
        ("msrun_cpu.sh", ["model_configs/sigma_tiny.yaml"]),  # is in the repository, not where the user stands
    ],
)
def test_a_missing_configuration_is_refused_by_name(script, arguments, repository, folder):
    done = run(repository / "run_scripts" / script, *arguments, "--dry-run", cwd=folder)
    assert done.returncode == 2
    assert next(word for word in arguments if word.endswith(".yaml")) in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("script", ["quickstart.sh", "compare_dense.sh", "test.sh", "lint.sh", "docs.sh"])
def test_scripts_without_paths_of_the_user_work_in_the_repository(script, repository, folder, tmp_path):
    calls = shlex.quote(str(tmp_path / "calls"))
    stand_ins(
        repository, {name: f'echo "{name} $PWD" >> {calls}' for name in ("pangu-sigma", "python", "ruff", "mypy")}
    )
    before = set(folder.rglob("*"))
    done = run(repository / "run_scripts" / script, cwd=folder)
    assert done.returncode == 0, done.stderr
    calls = set((tmp_path / "calls").read_text().splitlines())
    expected = {"test.sh": {"python", "ruff", "mypy"}, "lint.sh": {"ruff", "mypy"}, "docs.sh": {"python"}}.get(
        script, {"pangu-sigma"}
    )
    assert calls == {f"{name} {repository}" for name in expected}
    assert set(folder.rglob("*")) == before


def test_comparing_with_a_dense_model_trains_both_by_the_same_seeds_and_evaluates_all(repository, folder, tmp_path):
    stand_ins(repository, {"pangu-sigma": f'echo "$@" >> {shlex.quote(str(tmp_path / "calls"))}'})
    arguments = ["--seeds", "1 3", "--folder", "runs/c", "--set", "train.steps=2", "--set", "data.path=data/x"]
    done = run(repository / "run_scripts" / "compare_dense.sh", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    prepared, *trained, evaluated = (tmp_path / "calls").read_text().splitlines()
    assert prepared == "prepare-data model_configs/sigma_tiny.yaml --set train.steps=2 --set data.path=data/x"
    names = [f"{kind}_tiny_{seed}" for seed in (1, 3) for kind in ("sigma", "alpha")]
    for line, name in zip(trained, names, strict=True):
        seed = int(name[-1])
        words = ["train", "model_configs/sigma_tiny.yaml", "--run", f"runs/c/{name}", "--set", f"seed={seed}"]
        assert line.split()[:8] == [*words, "--set", f"routing.seed={seed - 1}"]
        assert line.endswith("--set train.steps=2 --set data.path=data/x")
        assert ("--set model.rre_layers=0" in line) == name.startswith("alpha")
    runs = [f"runs/c/{kind}_tiny_{seed}" for kind in ("sigma", "alpha") for seed in (1, 3)]
    assert evaluated.split() == ["evaluate", *runs[:2], "--against", *runs[2:], "--all"]
    refused = run(repository / "run_scripts" / "compare_dense.sh", "--sets", "a=b", cwd=folder)
    assert (refused.returncode, "--sets is not an option; usage" in refused.stderr) == (2, True)


def test_comparing_what_is_inherited_trains_all_arms_alike_and_goes_on_where_it_stopped(repository, folder, tmp_path):
    calls, stop = tmp_path / "calls", tmp_path / "stop"
    stand_in = f"""printf '%s\\n' "$*" >> {shlex.quote(str(calls))}
    if [ -e {shlex.quote(str(stop))} ] && [[ $* = *continued_3_1e-3* ]]; then exit $(cat {shlex.quote(str(stop))}); fi
    echo "it ended"
    for word; do if [ "${{before:-}}" = --run ]; then mkdir -p "$word"; fi; before=$word; done"""
    python = f'echo python "$@" >> {shlex.quote(str(calls))}'
    stand_ins(repository, {"pangu-sigma": stand_in, "python": python})

    def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
        calls.write_text("")
        return run(repository / "run_scripts" / "compare_inherit.sh", *arguments, cwd=folder)

    arguments = ["--seeds", "1 3", "--rates", "1e-3 2e-3", "--folder", "runs/c", "--set", "train.steps=2"]
    stop.write_text("3")
    assert compare(*arguments).returncode == 3
    stopped = calls.read_text().splitlines()
    assert " --run runs/c/continued_3_1e-3 " in stopped[-1], "what fails ends the script"
    stop.write_text("0")
    asked = compare(*arguments)
    assert (asked.returncode, "continued_3_1e-3 was stopped before its end" in asked.stderr) == (1, True)
    stop.unlink()
    done = compare(*arguments)
    assert done.returncode == 0, done.stderr
    prepared, trained, compared = [calls.read_text().splitlines()[i] for i in (slice(2), slice(2, -1), -1)]
    assert [line.split()[0] for line in prepared] == ["prepare-data"] * 2
    assert " --run runs/c/continued_3_1e-3 " in trained[0], "it goes on with what had failed"
    trained = stopped[2:-1] + trained
    assert compared == "python - runs/c 1 3 1e-3 2e-3"
    by_run = {line.split("--run ")[1].split()[0].removeprefix("runs/c/"): line for line in trained}
    arms = ("inherited", "continued", "scratch")
    expected = []
    for seed in (1, 3):
        expected += [f"parent_{seed}", f"inherited_{seed}", f"continued_{seed}"]
        expected += [f"{arm}_{seed}_{rate}" for rate in ("1e-3", "2e-3") for arm in arms]
    assert list(by_run) == expected
    for name, line in by_run.items():
        seed = int(name.split("_")[1])
        assert f"--set seed={seed} --set routing.seed={seed - 1}" in line
        assert "--set train.steps=2" in line
        assert ("--set model.rre_layers=0" in line) == name.startswith(("parent", "continued"))
        assert ("--set data.path=data/c_zh" in line) == name.startswith("parent"), "the parent learns Chinese only"
        rate = f"--set train.optimizer.peak_lr={name.split('_')[-1]}"
        assert line.endswith(rate) == (name.count("_") == 2)
    assert len((repository / "runs/c/times.txt").read_text().splitlines()) == len(expected)
    assert "== 18 of 18: scratch_3_2e-3" in done.stderr

    compare(*arguments)
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["prepare-data", "prepare-data", "python"]
    other = compare(*arguments[:-1], "train.steps=3")
    assert (other.returncode, "begun with other --set options" in other.stderr) == (2, True)
    refused = compare("--sets", "a=b")
    assert (refused.returncode, "--sets is not an option; usage" in refused.stderr) == (2, True)


def test_comparing_methods_trains_five_arms_alike_and_goes_on_where_it_was_killed(repository, folder, tmp_path):
    calls, killed = tmp_path / "calls", tmp_path / "killed"
    stand_in = f"""if [ "$1" = - ]; then cat >{shlex.quote(str(tmp_path / "source.py"))}; fi
    printf '%s %s\\n' "$(basename "$0")" "$*" >> {shlex.quote(str(calls))}
    if [ -e {shlex.quote(str(killed))} ] && [[ $* = *gate_1_2e-3* ]]; then kill -9 $$; fi
    echo "it ended" """
    stand_ins(repository, dict.fromkeys(("pangu-sigma", "python"), stand_in))

    def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
        calls.write_text("")
        return run(repository / "run_scripts" / "compare_methods.sh", *arguments, cwd=folder)

    seeds_and_rates = ["--seeds", "1 4", "--rates", "1e-3 2e-3"]
    arguments = ["--steps", "40", *seeds_and_rates, "--folder", "runs/c", "--set", "model.hidden=32"]
    killed.touch()
    assert compare(*arguments).returncode == 137
    before = calls.read_text().splitlines()
    killed.unlink()
    done = compare(*arguments)
    assert done.returncode == 0, done.stderr
    (prepared, *trained), compared = calls.read_text().splitlines()[:-1], calls.read_text().splitlines()[-1]
    assert " --run runs/c/gate_1_2e-3 " in before[-1]
    assert " --run runs/c/gate_1_2e-3 " in trained[0], "it goes on with what was killed"
    assert prepared.startswith("pangu-sigma prepare-data model_configs/sigma_tiny.yaml ")
    assert compared == "python - runs/c 1 4 1e-3 2e-3"
    compile((tmp_path / "source.py").read_text(), "the comparison", "exec")
    trained = before[1:-1] + trained
    by_run = {line.split("--run ")[1].split()[0].removeprefix("runs/c/"): line for line in trained}
    arms = ("random", "dense", "balanced", "hash", "gate")
    assert list(by_run) == [f"{arm}_{seed}_{rate}" for seed in (1, 4) for rate in ("1e-3", "2e-3") for arm in arms]
    own = {
        "random": ("pangu-sigma train ", ""),
        "dense": ("pangu-sigma train ", "--set model.dense_layers=4 --set model.rre_layers=0 "),
        "balanced": ("pangu-sigma train ", "--set routing.table=balanced "),
        "hash": ("python -m pangu_sigma.bench.peer_runs hash ", ""),
        "gate": ("python -m pangu_sigma.bench.peer_runs gate ", ""),
    }
    same = set()
    for name, line in by_run.items():
        arm, seed, rate = name.split("_")
        command, options = own[arm]
        last = f"--set seed={seed} --set routing.seed={2 * int(seed) - 2} --set train.optimizer.peak_lr={rate}"
        assert line.startswith(f"{command}model_configs/sigma_tiny.yaml --run runs/c/{name} ")
        assert line.endswith(f" {options}{last}")
        same.add(line.removeprefix(command).split(" ", 3)[3].removesuffix(options + last))
    (options,) = same  # all that is left is the same for all
    for word in (
        "train.steps=40",
        "train.optimizer.warmup_steps=4",
        "train.optimizer.decay_steps=36",
        "ecss.enabled=false",
    ):
        assert f"--set {word} " in options
    assert options.endswith("--set data.path=data/c --set model.hidden=32 ")
    assert len((repository / "runs/c/times.txt").read_text().splitlines()) == 20
    assert "20 runs took 0 minutes" in done.stdout

    other = compare(*["60" if word == "40" else word for word in arguments])
    assert (other.returncode, "begun with other --set options" in other.stderr) == (2, True)
    for wrong, said in (
        (["--steps", "7"], "a number of at least 10 is needed"),
        (["--sets", "a=b"], "is not an option; usage"),
    ):
        refused = compare(*wrong)
        assert (refused.returncode, said in refused.stderr) == (2, True)


def test_finetuning_on_packages_tunes_all_arms_alike_and_goes_on_where_it_was_killed(repository, folder, tmp_path):
    calls, killed = tmp_path / "calls", tmp_path / "killed"
    stand_in = f"""if [ "$1" = - ]; then cat >{shlex.quote(str(tmp_path))}/source_$#.py; fi
    if [ "$1" = -c ]; then echo 2e-3; exit; fi
    printf '%s %s\\n' "$(basename "$0")" "$*" >> {shlex.quote(str(calls))}
    if [ -e {shlex.quote(str(killed))} ] && [[ $* = *qa_slot_1_2e-3* ]]; then kill -9 $$; fi
    echo "it ended" """
    stand_ins(repository, dict.fromkeys(("pangu-sigma", "python"), stand_in))

    def tune(*arguments: str) -> subprocess.CompletedProcess[str]:
        calls.write_text("")
        return run(repository / "run_scripts" / "finetune_packages.sh", *arguments, cwd=folder)

    arguments = ["--steps", "40", "--tune-steps", "10", "--seeds", "1 4", "--rates", "1e-3 2e-3", "--folder", "runs/p"]
    killed.touch()
    assert tune(*arguments).returncode == 137
    before = calls.read_text().splitlines()
    killed.unlink()
    done = tune(*arguments)
    assert done.returncode == 0, done.stderr
    prepared, packaged, *tuned, compared = calls.read_text().splitlines()
    assert " --run runs/p/qa_slot_1_2e-3 " in before[-1]
    assert " --run runs/p/qa_slot_1_2e-3 " in tuned[0], "it goes on with what was killed"
    assert prepared.startswith("pangu-sigma prepare-data model_configs/sigma_tiny.yaml ")
    assert packaged == "python - runs/p translation_en_zh qa model_configs/sigma_tiny.yaml data/p"
    assert compared == "python - runs/p 1 4 1e-3 2e-3"
    for number in (4, 5):
        compile((tmp_path / f"source_{number}.py").read_text(), "a program in the script", "exec")
    by_run = {line.split("--run ")[1].split()[0].removeprefix("runs/p/"): line for line in before[2:-1] + tuned}
    names = ("experts", "slot", "all", "dense")
    expected = [f"{model}_{seed}" for seed in (1, 4) for model in ("sigma", "dense")]
    for task in ("translation_en_zh", "qa"):
        expected += [f"{task}_{arm}_{end}" for arm in names for end in ("1_1e-3", "1_2e-3", "4_2e-3")]
    assert list(by_run) == expected
    learn = {"experts": "experts", "slot": "experts+slot", "all": "all", "dense": "all"}
    schedules = set()
    for name in expected[4:]:
        task, arm, seed, rate = name.rsplit("_", 3)
        line, parent = by_run[name], f"runs/p/{'dense' if arm == 'dense' else 'sigma'}_{seed}"
        assert line.startswith(f"pangu-sigma finetune {parent} --task {task} --learn {learn[arm]} ")
        assert line.endswith(f" --set seed={seed} --set train.optimizer.peak_lr={rate}")
        assert f" --data runs/p/tasks/{task}/train.jsonl --eval runs/p/tasks/{task}/dev.jsonl " in line
        assert (" --domain en " in line) == (task == "qa")
        schedules.add(line.partition(f"--run runs/p/{name} ")[2].partition(" --set seed=")[0])
    (schedule,) = schedules  # the same for all arms
    assert "--set train.steps=12 --set train.eval_interval=4 --set train.checkpoint_interval=4 " in schedule
    trained = {name: by_run[name] for name in expected[:4]}
    own = "--set model.dense_layers=4 --set model.rre_layers=0 "
    for seed in (1, 4):
        pair = [trained[f"{model}_{seed}"].replace(f"{model}_{seed}", "it") for model in ("sigma", "dense")]
        assert (pair[0], own in pair[1]) == (pair[1].replace(own, ""), True), "pre-trained alike"
    assert len((repository / "runs/p/times.txt").read_text().splitlines()) == len(expected)
    assert f"== {len(expected)} of {len(expected)}: qa_dense_4_2e-3" in done.stderr
    other = tune(*["60" if word == "40" else word for word in arguments])
    assert (other.returncode, "begun with other --set options" in other.stderr) == (2, True)
    refused = tune("--tune-steps", "0")
    assert (refused.returncode, "need a number of at least 1" in refused.stderr) == (2, True)


@pytest.mark.parametrize(("script", "venv"), [("install.sh", ".venv"), ("peers.sh", ".venv-peers")])
def test_installing_from_another_folder_touches_only_the_repository(script, venv, repository, folder, tmp_path):
    (repository / STAMP).unlink()
    pip = 'printf "%s\\n" "$@" >> "$(dirname "$0")/arguments"'
    make = f'mkdir -p "$3/bin"; touch "$3/bin/activate"; echo {shlex.quote(pip)} > "$3/bin/pip"; chmod +x "$3/bin/pip"'
    program(folder / "my python", make)
    before = set(folder.rglob("*"))
    # A relative path to the script, found by CDPATH too: `cd` prints the folder then.
    variables = {"PYTHON": "./my python", "CDPATH": str(folder)}
    (folder / "link").symlink_to(repository)
    done = run(f"link/run_scripts/{script}", cwd=folder, **variables)
    assert done.returncode == 0, done.stderr
    arguments = (repository / venv / "bin" / "arguments").read_text().splitlines()
    assert arguments[-1] == "check"
    if script == "install.sh":
        assert {str(repository), str(repository / "requirements.txt")} <= {
            str(Path(word).resolve()) for word in arguments
        }
    assert set(folder.rglob("*")) == before | {folder / "link"}
    again = run(f"link/run_scripts/{script}", cwd=folder, **variables)
    assert (again.returncode, again.stdout) == (0, "")  # the stamp matches now
