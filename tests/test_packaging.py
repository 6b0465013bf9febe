"""What is installed: the wheel's files and requirements, one list of requirements, one list of lint commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from setuptools import find_namespace_packages

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BUILT_FROM = ("src", "ascend_ops", "experiments", "model_configs", "pyproject.toml", "README.md", "LICENSE")
DEVELOPMENT = {"pytest", "hypothesis", "ruff", "mypy", "types-PyYAML"}


def sources() -> set[str]:
    """Files that a wheel must hold, as it names them: code, kernels to compile, configurations."""
    wanted = [*(ROOT / "ascend_ops").rglob("*"), *(ROOT / "src/pangu_sigma").rglob("*")]
    found = {
        str(file.relative_to(ROOT / "src" if ROOT / "src" in file.parents else ROOT))
        for file in wanted
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
        if file.suffix not in (".md", ".png")  # READMEs and their pictures are for the repository
    }
    return found | {f"pangu_sigma/{file.relative_to(ROOT)}" for file in (ROOT / "model_configs").rglob("*.yaml")}


def packaged() -> set[str]:
    """Files that pyproject.toml puts into the wheel: those of the packages it finds, and their package data."""
    options = PYPROJECT["tool"]["setuptools"]
    found: set[str] = set()
    for where in options["packages"]["find"]["where"]:
        for package in find_namespace_packages(str(ROOT / where), include=options["packages"]["find"]["include"]):
            inside = package.replace(".", "/")
            folder = ROOT / where / inside
            for pattern in ["*.py", *options["package-data"].get(package, [])]:
                found |= {f"{inside}/{file.relative_to(folder)}" for file in folder.glob(pattern) if file.is_file()}
    return found


def names(requirements: list[str]) -> set[str]:
    return {Requirement(text).name for text in requirements}


def test_the_wheel_holds_what_running_needs_and_nothing_else():
    assert {file for file in packaged() if not file.endswith(".md")} == sources()
    assert (ROOT / "experiments" / "bench").is_dir()
    assert not {file for file in packaged() if file.startswith("experiments")}
    assert {"pangu_sigma/model_configs/sigma_tiny.yaml", "ascend_ops/cpu/adam.cc"} <= sources()


def test_requirements_txt_is_what_running_needs_and_the_extras_of_tests_and_evaluation():
    lines = (
        re.split(r"(?:^|\s)#", line)[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    )
    project = PYPROJECT["project"]
    test, evaluate = (project["optional-dependencies"][extra] for extra in ("test", "evaluate"))
    assert sorted(filter(None, lines)) == sorted(project["dependencies"] + test + evaluate)
    assert names(test) >= DEVELOPMENT
    assert not names(project["dependencies"]) & names(test + evaluate)
    assert not names(test) & names(evaluate)


def test_running_needs_no_tool_of_development():
    """Nothing in the product imports one, and the modules that it does import are required."""
    imported = set()
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "ascend_ops").rglob("*.py")]:
        imported |= set(re.findall(r"^\s*(?:from|import) (\w+)", file.read_text("utf-8"), re.MULTILINE))
    assert not imported & {"pytest", "hypothesis", "ruff", "mypy", "xdist"}


def test_test_sh_and_pre_commit_lint_with_the_same_commands():
    lint = "bash run_scripts/lint.sh"
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    (hook,) = repo["hooks"]
    assert (repo["repo"], hook["language"], hook["entry"]) == ("local", "system", lint)
    assert (hook["pass_filenames"], hook["always_run"]) == (False, True)
    lines = (ROOT / "run_scripts/test.sh").read_text("utf-8").splitlines()
    assert lint in lines
    assert not [line for line in lines if re.search(r"^[^#].*\b(ruff|mypy)\b", line)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built by pip from a copy, as `pip install .` does; it fetches setuptools."""
    copy, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            shutil.copy(ROOT / name, copy / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(output), str(copy)], check=True)
    (found,) = output.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_built_wheel_is_what_pyproject_says(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().split("\n\n")[0].splitlines()
    assert {name for name in found if not name.endswith(".md")} == sources()
    assert {name.split("/")[0] for name in found} == {"pangu_sigma", "ascend_ops"}
    required = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    always = {Requirement(text).name for text in required if Requirement(text).marker is None}
    assert always == names(PYPROJECT["project"]["dependencies"])
    assert not always & DEVELOPMENT


@pytest.mark.slow
def test_an_installed_wheel_runs_the_lines_of_the_readme_in_an_empty_folder(wheel, tmp_path):
    """In an environment of its own, which sees the packages of this one but for the project itself."""
    home, here = tmp_path / "venv", tmp_path / "here"
    here.mkdir()
    venv.create(home, with_pip=True)
    site = next(home.glob("lib/python*/site-packages"))
    (site / "packages_of_the_tests.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{home / 'bin'}:{environment['PATH']}"

    def run(*command: Any) -> str:
        done = subprocess.run(list(map(str, command)), cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    run("pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    assert run("python", "-c", "import pangu_sigma as ps; print(ps.__file__)").startswith(str(home))
    assert run("pangu-sigma", "--version").strip() == f"pangu-sigma {PYPROJECT['project']['version']}"
    listed = run("python", "-c", "from pangu_sigma.machine import _requirements as r; print([c.name for c in r()])")
    assert "mindspore" in listed and "pytest" not in listed
    assert "1,085" in run("pangu-sigma", "inspect", "sigma_1t")
    block = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert block
    lines = block[1].replace('"train.steps": 100', '"train.steps": 4')
    assert '"train.steps": 4' in lines
    (here / "lines.py").write_text(lines, encoding="utf-8")
    run("python", "lines.py")
    assert sorted(path.name for path in here.iterdir()) == ["data", "exports", "lines.py", "runs"]
    answer = run("pangu-sigma", "generate", "exports/python", "--domain", "en", "--prompt", "The ")
    assert answer.startswith("[en] The |")
