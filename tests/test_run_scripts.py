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
        ("msrun_cpu.sh", ["--set", "parallel={expert: 2}"], 1),
        ("msrun_node.sh", ["--set", "parallel={tensor: 8}"], 1),
        ("msrun_cluster.sh", ["--nodes", "64", "--set", "parallel.chip=910b3"], 64),
    ],
)
def test_paths_of_a_launch_are_relative_to_the_folder_of_the_user(script, options, commands, repository, folder):
    before = set(folder.rglob("*"))
    arguments = ["conf.yaml", *options, "--output", "runs/x", "--dry-run"]
    done = run(repository / "run_scripts" / script, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    printed = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("msrun ")]
    assert len(printed) == commands
    for words in printed:
        assert words[words.index("train") :][:4] == ["train", "conf.yaml", "--output", "runs/x"]
        assert "--log_dir=runs/x/logs/START" in words
    assert ("HCCL_CONNECT_TIMEOUT" in done.stdout) == (script != "msrun_cpu.sh")  # the settings for NPUs
    is_for_910b = "export MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE" in done.stdout
    assert is_for_910b == ("parallel.chip=910b3" in options) == ("--set parallel.chip=910b3" in done.stdout)
    assert set(folder.rglob("*")) == before


def test_export_ascend_keeps_its_arguments_to_itself(repository, folder, tmp_path):
    """ascend_env.sh, which it sources, takes a chip as its own argument."""
    calls = shlex.quote(str(tmp_path / "calls"))
    python = (
        f"""case "$*" in *environment*) exec {shlex.quote(sys.executable)} "$@" ;; *) echo "$PWD $*" >{calls} ;; esac"""
    )
    stand_ins(repository, {"python": python})
    done = run(repository / "run_scripts" / "export_ascend.sh", "my run", "out", "int8", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text() == f"{folder} -P -m pangu_sigma.npu.export_ascend my run out int8\n"
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


@pytest.mark.parametrize("script", ["minute.sh", "quickstart.sh", "test.sh", "lint.sh", "docs.sh"])
def test_scripts_without_paths_of_the_user_work_in_the_repository(script, repository, folder, tmp_path):
    calls = shlex.quote(str(tmp_path / "calls"))
    stand_ins(
        repository, {name: f'echo "{name} $PWD" >> {calls}' for name in ("pangu-sigma", "python", "ruff", "mypy")}
    )
    before = set(folder.rglob("*"))
    done = run(repository / "run_scripts" / script, cwd=folder)
    assert done.returncode == 0, done.stderr
    calls = set((tmp_path / "calls").read_text().splitlines())
    expected = {
        "test.sh": {"python", "ruff", "mypy"},
        "lint.sh": {"ruff", "mypy"},
        "quickstart.sh": {"pangu-sigma"},
    }.get(script, {"python"})
    assert calls == {f"{name} {repository}" for name in expected}
    assert set(folder.rglob("*")) == before


def test_installing_from_another_folder_touches_only_the_repository(repository, folder):
    (repository / STAMP).unlink()
    pip = 'printf "%s\\n" "$@" >> "$(dirname "$0")/arguments"'
    make = f'mkdir -p "$3/bin"; touch "$3/bin/activate"; echo {shlex.quote(pip)} > "$3/bin/pip"; chmod +x "$3/bin/pip"'
    program(folder / "my python", make)
    before = set(folder.rglob("*"))
    # A relative path to the script, found by CDPATH too: `cd` prints the folder then.
    variables = {"PYTHON": "./my python", "CDPATH": str(folder)}
    (folder / "link").symlink_to(repository)
    done = run("link/run_scripts/install.sh", cwd=folder, **variables)
    assert done.returncode == 0, done.stderr
    arguments = (repository / ".venv" / "bin" / "arguments").read_text().splitlines()
    assert arguments[-1] == "check"
    assert {str(repository), str(repository / "requirements.txt")} <= {str(Path(word).resolve()) for word in arguments}
    assert set(folder.rglob("*")) == before | {folder / "link"}
    again = run("link/run_scripts/install.sh", cwd=folder, **variables)
    assert (again.returncode, again.stdout) == (0, "")  # the stamp matches now
