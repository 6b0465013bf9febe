from __future__ import annotations

from pathlib import Path

import pytest

from pangu_sigma.config_file import config_path, shipped_configs

FOLDER = Path(__file__).parents[1] / "model_configs"


def test_the_shipped_configurations_are_those_of_the_checkout():
    assert {name: path.read_text("utf-8") for name, path in shipped_configs().items()} == {
        path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.yaml")
    }


@pytest.mark.parametrize("path", ["none.yaml", "folder/sigma_tiny", "sigma_tiny.yml"])
def test_a_path_stays_as_it_is(path):
    assert config_path(path) == Path(path)


def test_a_file_without_ending_wins_over_a_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sigma_tiny").mkdir()
    assert config_path(Path("sigma_tiny")).samefile(FOLDER / "sigma_tiny.yaml")
    Path("sigma_small").write_text("name: mine")
    assert config_path("sigma_small") == Path("sigma_small")
