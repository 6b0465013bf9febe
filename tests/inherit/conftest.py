"""What a trained run of three domains grows into, and what is cut out of it; made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.grown import law_tree, write_law

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config


@pytest.fixture(scope="session")
def law_config(tiny_data, tiny_run, made_once) -> Config:
    """A configuration of the three domains and a new one, whose text is prepared with the run's pieces."""
    from pangu_sigma.data.prepare.prepare import prepare

    def config_in(folder: Path) -> Config:
        return parse_config(law_tree(folder / "prepared", tiny_run))

    def make(folder: Path) -> None:
        write_law(folder / "law.jsonl", tiny_data.parent / "text.jsonl")
        prepare(config_in(folder), [folder / "law.jsonl"], folder / "prepared")

    return config_in(made_once("law_data", make))


@pytest.fixture(scope="session")
def extended(tiny_run, law_config, made_once) -> Path:
    """The run with the new domain, which begins as zh. Read only."""
    from pangu_sigma.inherit.extend import extend_run

    return made_once("extended", lambda f: extend_run(tiny_run, law_config, f / "law", "zh")) / "law"


@pytest.fixture(scope="session")
def extracted(tiny_run, made_once) -> Path:
    """The domain zh of the run. Read only."""
    from pangu_sigma.inherit.extract import extract_domains

    return made_once("extracted", lambda folder: extract_domains(tiny_run, folder / "zh", ["zh"])) / "zh"
