"""A configuration is read from a file and overrides, in the form "key=value" or as pairs; what cannot be is refused in words."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.chaos.config_faults import FAULTS, arguments_of, file_of, missing_words
from pangu_sigma import config_file
from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import as_text, dump_config, load_config, shipped_configs

SMALL = (
    "name: small\nmodel: { hidden: 8, ffn: 16, heads: 2, dense_layers: 1, rre_layers: 0 }\ndomains: [ { name: zh } ]\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("train.steps=7", ("train.steps", 7)),
        ("train.optimizer.peak_lr=3e-4", ("train.optimizer.peak_lr", 3e-4)),
        ("domains.0.name=en", ("domains.0.name", "en")),
        ("domains=[{name: a}, {name: b}]", ("domains", [{"name": "a"}, {"name": "b"}])),
        ("ecss.enabled=false", ("ecss.enabled", False)),
        ("data={path: null-island}", ("data", {"path": "null-island"})),
        ("data.path=here", ("data.path", Path("here"))),
        ("data.path=a=b", ("data.path", "a=b")),
    ],
)
def test_a_pair_is_the_same_as_its_text(file: Path, text: str, pair: tuple[str, Any]):
    assert load_config(file, [pair]) == load_config(file, [text]) != load_config(file)
    assert load_config(file, [as_text(pair)]) == load_config(file, [text]), "as a launch hands it on"


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path, capsys):
    """Reading a pipe waits for ever."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name, message in (
        ("pipe.yaml", "is not a file of at most 262,144 bytes; pass a YAML file"),
        ("folder.yaml", "is not a run folder: it has no configuration.json"),
        ("/dev/zero", "is not a file of at most"),
    ):
        assert main(["prepare-data", str(tmp_path / name)]) == 2
        assert f"{tmp_path / name} {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("steps", "nearest valid key: train.steps; "),
        ("epochs", "nearest valid key: finetune.epochs; "),
        ("optimizer.peak_lr", "nearest valid key: train.optimizer or parallel.optimizer; "),
        ("weight", "nearest valid key: domains.0.weight; "),
        ("TRAIN.STEPS", "nearest valid key: train; "),
        ("train.optimizer.lr", ""),
        ("xyzzy", ""),
    ],
)
def test_an_unknown_key_is_looked_for_in_the_whole_tree_before_anything_like_it_is_guessed(
    file: Path, key: str, hint: str
):
    with pytest.raises(ConfigError) as refused:
        load_config(file, [f"{key}=1"])
    assert str(refused.value).partition("); ")[2].startswith(f"{hint}allowed here: ")


def test_a_missing_file_is_one_of_a_wrong_path(file: Path):
    with pytest.raises(ConfigError, match=r"config\.yml: No such file or directory; check the path$"):
        load_config(file.with_suffix(".yml"))


def test_the_later_override_wins_in_either_form(file: Path):
    for overrides in ([("seed", 1), "seed=2"], ["seed=1", "seed=2"], ["seed=1", ("seed", np.int64(2))]):
        assert load_config(file, overrides).seed == 2


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "2.0e-5", "+2e-05", ".2e-4"])
def test_floats_are_yaml_1_2(file: Path, text: str):
    file.write_text(f"{SMALL}train: {{ optimizer: {{ end_lr: {text} }} }}")
    assert load_config(file).train.optimizer.end_lr == 2e-5


@pytest.mark.parametrize("text", ["010", "08", "1:30", "0b11", "0x1F", "1__0", "_1"])
def test_what_is_no_decimal_number_is_no_whole_number(file: Path, text: str):
    with pytest.raises(ConfigError, match=rf"train\.steps: '{text}' is not allowed: it must be a whole number"):
        load_config(file, [f"train.steps={text}"])
    config = load_config(file, ["train.steps=16_000", ("data.path", text)])
    assert config.train.steps == 16_000
    file.write_text(dump_config(config))
    assert load_config(file) == config


CONFIG = load_config(shipped_configs()["sigma_tiny"])
TEXTS = st.text(max_size=20) | st.from_regex(r"\A[-+.0-9eExob_:~]{1,8}\Z")


@given(TEXTS)
@example("1e5")
@example("-.5E+3")
@example("010")
def test_every_text_comes_back_as_a_text(text: str):
    dumped = dump_config(CONFIG.model_copy(update={"name": text}))
    assert yaml.load(dumped, config_file._Loader)["name"] == text
    assert yaml.safe_load(dumped)["name"] == text, "for other readers, too"


def test_names_that_look_like_numbers_are_read_back(file: Path):
    config = load_config(file, [("name", "1e5"), ("domains.0.name", "1e5")])
    file.write_text(dump_config(config))
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("train.steps", "7"), r"^train\.steps: '7' is not allowed: it must be a whole number"),
        (("train.stpes", 3), r"^train\.stpes: unknown key .*nearest valid key: steps"),
        (("domains.1.name", "x"), r"^override domains\.1\.name: '1' is not an index of a list of 1; use 0 … 0"),
        ((5, "x"), r"^5: unknown key"),
        (("model.segments", []), r"^model\.segments: \[\] is not allowed: it must have at least 1 item, not 0$"),
        (("domains.0.name", "A b"), "it must have a to z, 0 to 9 and _ only$"),
        (("data.path", 3), "it must be a text; put it into quotes$"),
        (("data.path", "\0"), "it must have no null character$"),
        (("data.domain_of", {"./": "zh"}), "it must have a character besides dots and slashes$"),
        (("routing.table", "mine"), "it must be 'random' or 'balanced', or a file of tables, NAME.npz$"),
        (("chat.user", "{content}{content}"), "it must have {content} once, and no other brace$"),
        (("train.optimizer.peak_lr", [1]), "it must be a number$"),
        (("model", 3), "it must be a section of keys$"),
        (("domains", {}), "it must be a list$"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_words(file: Path, pair: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(file, [pair])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_refused_in_5_seconds_with_key_and_nearest_key(fault, tmp_path, capsys):
    started = time.process_time()
    assert main(arguments_of(fault, file_of(fault, tmp_path))) == 2
    assert time.process_time() - started < 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert missing_words(fault, captured.err) == []
    assert len(captured.err) < 20_000, "however large the value"


def test_aliases_are_read_where_they_are_few(tmp_path: Path):
    path = tmp_path / "config.yaml"
    domains = "domains: [ { name: zh, format: text }, { name: en, <<: &d { weight: 2.0 } }, { name: fr, <<: *d } ]\n"
    path.write_text(SMALL.partition("domains")[0] + domains)
    assert [domain.weight for domain in load_config(path).domains] == [1.0, 2.0, 2.0]


def test_a_name_decides_a_path(file: Path):
    for name in ("tiny", "PanGu Σ v0.1", "盘古", "a-b_c+d=e", "7"):
        assert load_config(file, [("name", name)]).name == name
    for name in ("../../x", "/x", ".x", "-x", "a/b", "a\nb", "", " a", "a\0", "~", "a" * 101):
        limit = "must have at most 100 characters" if len(name) > 100 else "becomes the name of a folder"
        with pytest.raises(ConfigError, match=rf"^name: .* is not allowed: it {limit}"):
            load_config(file, [("name", name)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: a\nmodel:\n\thidden: 3\n", r"line 3, column 1: .*\\t.*; .* indent .*, with blanks"),
        (b"seed: 1\nname: a\nseed: 2\n", "line 3, column 1: key 'seed' is written twice, first in line 1"),
        (b"data: [1, 2\nseed: 3\n", r"line 2, .* expected ',' or '\]', .* \(.* of line 1\); "),
        (b"name: a: b\n", "line 1, column 8: .*; .* quote a text with : "),
        (b"a: 1\n b: 2\n", "line 2, column 3: .*; .* indent keys of a section alike"),
        (b"name: a\nseed: \xff\n", "line 2 is not UTF-8; save the file as UTF-8"),
    ],
    ids=["a tab", "twice", "a bracket", "a colon", "indentation", "no UTF-8"],
)
def test_broken_yaml_is_told_with_file_place_and_fix(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^configuration {path} is not valid YAML: {said}"):
        load_config(path)
