"""A configuration is read from a file and overrides, in the form "key=value" or as pairs; what cannot be is refused in words."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.chaos.config_faults import FAULTS, arguments_of, file_of, missing_words
from pangu_sigma.cli import main
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import _PATTERNS, dump_config, load_config, read_tree

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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(os.mkfifo, "is not a file but a folder, a pipe or a device", id="a pipe"),
        pytest.param(os.mkdir, "is not a run folder: it has no configuration.json", id="a folder"),
    ],
)
def test_what_is_no_ordinary_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], message: str, capsys
):
    """Reading a pipe waits for ever."""
    make(tmp_path / "config.yaml")
    assert main(["prepare-data", str(tmp_path / "config.yaml")]) == 2
    assert f"{tmp_path / 'config.yaml'} {message}" in capsys.readouterr().err
    assert main(["prepare-data", "/dev/zero"]) == 2


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


def test_a_number_of_numpy_is_a_number(file: Path):
    assert load_config(
        file, [("train.steps", np.int64(5)), ("train.optimizer.peak_lr", np.float32(0.5))]
    ) == load_config(file, ["train.steps=5", "train.optimizer.peak_lr=0.5"])


def test_a_missing_file_is_one_of_a_wrong_path(file: Path):
    with pytest.raises(ConfigError, match=r"config\.yml: No such file or directory; check the path$"):
        load_config(file.with_suffix(".yml"))


def test_an_empty_list_is_told_in_plain_words(file: Path):
    with pytest.raises(
        ConfigError, match=r"^model\.segments: \[\] is not allowed: it must have at least 1 item, not 0$"
    ):
        load_config(file, ["model.segments=[]"])


def test_the_later_override_wins_in_either_form(file: Path):
    for overrides in ([("seed", 1), "seed=2"], ["seed=1", "seed=2"], ["seed=1", ("seed", 2)]):
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


def test_a_value_is_taken_as_it_is_and_no_yaml(file: Path):
    assert read_tree(file, [("data.path", "a: b")])["data"]["path"] == "a: b"
    with pytest.raises(ConfigError, match=r"^train\.steps: '7' is not allowed: it must be a whole number"):
        load_config(file, [("train.steps", "7")])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("train.stpes", 3), r"^train\.stpes: unknown key .*nearest valid key: steps"),
        (("model.hidden.x", 3), r"^override model\.hidden\.x: hidden holds the value 8, not a section"),
        (("domains.1.name", "x"), r"^override domains\.1\.name: '1' is not an index of a list of 1; use 0 … 0"),
        ((5, "x"), r"^5: unknown key"),
        ("domains.zh.name=x", r"override domains\.zh\.name: 'zh' is not an index"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(file: Path, pair: Any, message: str):
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


@pytest.mark.parametrize("name", ["tiny", "PanGu Σ v0.1", "盘古", "a-b_c+d=e", "7"])
def test_ordinary_names_are_names(file: Path, name: str):
    assert load_config(file, [("name", name)]).name == name


@pytest.mark.parametrize("name", ["../../x", "/x", ".x", "-x", "a/b", "a\nb", "", " a", "a\0", "~", "a" * 101])
def test_a_name_that_decides_a_path_is_refused(file: Path, name: str):
    limit = "must have at most 100 characters" if len(name) > 100 else "becomes the name of a folder"
    with pytest.raises(ConfigError, match=rf"^name: .* is not allowed: it {limit}"):
        load_config(file, [("name", name)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nmodel:\n\thidden: 3\n", r"line 3, column 1: .*\\t.*; .* indent .*, with blanks"),
        ("seed: 1\nname: a\nseed: 2\n", "line 3, column 1: key 'seed' is written twice, first in line 1"),
        ("data: [1, 2\nseed: 3\n", r"line 2, .* expected ',' or '\]', .* \(.* of line 1\); "),
        ("name: a: b\n", "line 1, column 8: .*; .* put a text with : .* into quotes"),
        ("a: 1\n b: 2\n", "line 2, column 3: .*; .* indent the keys of a section alike"),
    ],
    ids=["a tab", "twice", "a bracket", "a colon", "indentation"],
)
def test_broken_yaml_is_told_with_file_line_and_fix(tmp_path: Path, text: str, said: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^configuration {path} is not valid YAML: {said}"):
        load_config(path)


def test_bytes_that_are_no_utf_8_are_told_with_their_line(tmp_path: Path):
    (tmp_path / "config.yaml").write_bytes(b"name: a\nseed: \xff\n")
    with pytest.raises(ConfigError, match=r"line 2: byte 14 is no UTF-8; save the file as UTF-8"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("domains.0.name", "A b"), "it must have a to z, 0 to 9 and _ only"),
        (("train.steps", 1.5), "it must be a whole number"),
        (("ecss.enabled", "maybe"), "it must be true or false"),
        (("data.path", 3), "it must be a text; put it into quotes"),
        (("train.optimizer.peak_lr", [1]), "it must be a number"),
        (("model", 3), "it must be a section of keys"),
        (("domains", {}), "it must be a list"),
        (("domains.0.format", "x"), "it must be 'text', "),
    ],
)
def test_what_a_value_must_be_is_said_in_words_and_not_in_pydantics(file: Path, pair: Any, said: str):
    with pytest.raises(ConfigError) as refused:
        load_config(file, [pair])
    assert said in str(refused.value)
    assert not re.search("Input|pattern|valid|instance", str(refused.value))


def test_every_pattern_of_the_configuration_is_said_in_words():
    schema = str(Config.model_json_schema())
    patterns = re.findall(r"'pattern': '(.*?)'", schema) + re.findall(r"'patternProperties': \{'(.*?)'", schema)
    assert {re.sub(r"\\\\", r"\\", pattern) for pattern in patterns} == _PATTERNS.keys()
