"""The configuration tree refuses everything it cannot use, with a message that a user can act on."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import dump_config, load_config, parse_config
from pangu_sigma.errors import UserError

TREE: dict[str, Any] = {
    "name": "test",
    "model": {"hidden": 8, "ffn": 16, "heads": 2, "dense_layers": 1, "rre_layers": 1, "experts_per_domain": 3},
    "domains": [{"name": "zh", "slot": "zh"}, {"name": "en"}, {"name": "code", "format": "code", "language": "java"}],
    "data": {"domains_per_step": 2},
}


def tree(**changes: Any) -> dict[str, Any]:
    """TREE with dotted keys changed: tree(**{"model.hidden": 9})."""
    result = copy.deepcopy(TREE)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node: Any = result
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[last] = value
    return result


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


SMALL = """
name: small
model: { hidden: 8, ffn: 16, heads: 2, dense_layers: 1, rre_layers: 0 }
domains: [ { name: zh } ]
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.hiden": 8},
            r"^model\.hiden: unknown key \(value 8\); nearest valid key: hidden; allowed here: hidden,",
        ),
        ({"train.optimizer.lr": 1.0}, r"^train\.optimizer\.lr: unknown key .* allowed here: peak_lr, end_lr"),
        ({"domains.1.formt": "x"}, r"^domains\.1\.formt: unknown key .*nearest valid key: format; allowed here: name"),
        ({"modle": {}}, r"^modle: unknown key .*nearest valid key: model;"),
        ({"model": {"hidden": 8}}, r"model\.ffn: required key is missing; allowed here: hidden, ffn"),
        ({"model.hidden": "8"}, r"^model\.hidden: '8' is not allowed: it must be a whole number"),
        ({"model.hidden": 8.0}, r"^model\.hidden: 8\.0 is not allowed"),
        ({"model.hidden": 0}, r"^model\.hidden: 0 is not allowed: .*greater than or equal to 1"),
        ({"model.dropout": 1.0}, r"^model\.dropout: 1\.0 is not allowed: .*less than 1"),
        ({"ecss.enabled": 1}, r"^ecss\.enabled: 1 is not allowed: it must be true or false"),
        ({"routing.table": "hash"}, r"^routing\.table: 'hash' is not allowed: .*'random' or 'balanced'"),
        ({"domains.0.name": "Zh!"}, r"^domains\.0\.name: 'Zh!' is not allowed"),
        ({"domains": []}, r"^domains: \[\] is not allowed: .*at least 1"),
        ({"model": 5}, r"^model: 5 is not allowed"),
        ({"train.optimizer.peak_lr": float("inf")}, r"^train\.optimizer\.peak_lr: inf is not allowed: .*finite"),
        ({"train.optimizer.peak_lr": float("nan")}, r"^train\.optimizer\.peak_lr: nan is not allowed"),
        ({"model.heads": 3}, r"^model: hidden=8 is not divisible by heads=3; choose a divisor of hidden"),
        ({"model.dense_layers": 0, "model.rre_layers": 0}, r"^model: .*dense_layers \+ rre_layers is 0.*at least 1"),
        ({"train.optimizer": {"peak_lr": 1e-6}}, r"^train: optimizer\.end_lr=2e-05 is above peak_lr=1e-06"),
        ({"domains.1.name": "zh"}, r"^configuration: domains: name 'zh' is used more than once"),
        (
            {"data.phases": [{"from_step": 0, "weights": {"fr": 1.0}}]},
            r"^configuration: data\.phases\.0\.weights: 'fr' is not a domain; there are zh, en, code",
        ),
        (
            {"data.phases": [{"from_step": 5}]},
            r"data\.phases\.0\.from_step=5 is not allowed: it must be 0, where training",
        ),
        (
            {"data.phases": [{"from_step": 0}, {"from_step": 9}, {"from_step": 9}]},
            r"data\.phases\.2\.from_step=9 is not allowed: it must be above 9, where the phase before it begins",
        ),
        (
            {
                "data": {
                    "domains_per_step": 3,
                    "domain_sets": 3,
                    "phases": [{"from_step": 0, "weights": {"zh": 1, "en": 1}}],
                },
                "train.batch_size": 3,
            },
            r"data\.phases\.0\.weights has no domain of the set code, from which every step takes a block \(data\.domain_sets=3\)",
        ),
        ({"data.phases": [{"from_step": 0, "weights": {}}]}, r"^data\.phases\.0\.weights: \{\} is not allowed"),
        (
            {"data.phases": [{"from_step": 0, "weights": {"zh": 0.0}}]},
            r"^data\.phases\.0\.weights\.zh: 0\.0 is not allowed",
        ),
        ({"data.phases": [{"weights": {"zh": 1.0}}]}, r"^data\.phases\.0\.from_step: required key is missing"),
        ({"data.temperature": 0.5}, r"^data\.temperature: 0\.5 is not allowed: .*greater than or equal to 1"),
        (
            {
                "model.segments": ["own", "common"],
                "model.common_experts": 3,
                "model.experts_per_domain": 2,
                "parallel.expert": 2,
            },
            r"model\.common_experts \(3\) is not divisible by parallel\.expert \(2\)",
        ),
        ({"model.segments": ["own", "own", "own"]}, r"ffn=\d+ is not divisible by the 3 segments"),
        (
            {"model.segments": ["common"], "model.common_experts": 2},
            r"segments begins with common; the first one is own",
        ),
        ({"model.segments": ["own", "common"]}, r"common_experts=0 with segments=.*give a number above 0"),
        ({"train.batch_size": 7}, r"train\.batch_size=7 is not divisible by data\.domains_per_step=2"),
        ({"data.domains_per_step": 4}, r"data\.domains_per_step=4 is more than the 3 domains; lower it"),
    ],
)
def test_an_error_names_path_value_and_what_is_allowed(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_config(tree(**changes))


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        parse_config(tree(**{"model.hidden": "x", "model.what": 1, "train.steps": 0}))
    lines = str(error.value).splitlines()
    assert sorted(line.split(":")[0] for line in lines) == ["model.hidden", "model.what", "train.steps"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; it must be a mapping of keys, such as `name: mine`"),
        ("- a", "is a list; it must be a mapping of keys"),
        ("a: [", "not valid YAML"),
        ("name: a\nname: b", r"not valid YAML: (?s:.*)key 'name' is written twice"),
        ("1: x", "1: .*not"),
    ],
)
def test_a_file_that_is_no_tree_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot read configuration .*missing\.yaml: No such file"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "2.0e-5", "+2e-05", ".2e-4"])
def test_floats_are_yaml_1_2(tmp_path: Path, text: str):
    config = load_config(write(tmp_path, f"{SMALL}train: {{ optimizer: {{ end_lr: {text} }} }}"))
    assert config.train.optimizer.end_lr == 2e-5


@pytest.mark.parametrize("text", ["010", "08", "1:30", "0b11", "0x1F", "1__0", "_1"])
def test_what_is_no_decimal_number_is_no_whole_number(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match=rf"train\.steps: '{text}' is not allowed: it must be a whole number"):
        load_config(write(tmp_path, SMALL), [f"train.steps={text}"])
    config = load_config(write(tmp_path, SMALL), ["train.steps=16_000", ("data.path", text)])
    assert config.train.steps == 16_000
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=7", lambda c: c.train.steps == 7),
        ("train.optimizer.peak_lr=3e-4", lambda c: c.train.optimizer.peak_lr == 3e-4),
        ("domains.0.name=en", lambda c: c.domains[0].name == "en"),
        ("domains=[{name: a}, {name: b}]", lambda c: len(c.domains) == 2),
        ("ecss.enabled=false", lambda c: c.ecss.enabled is False),
        ("data.path=a=b", lambda c: c.data.path == "a=b"),
    ],
)
def test_set_changes_one_value(tmp_path: Path, override: str, value: Any):
    assert value(load_config(write(tmp_path, SMALL), [override]))


def test_later_overrides_win(tmp_path: Path):
    assert load_config(write(tmp_path, SMALL), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", r"override 'train\.steps' is not key\.path=value"),
        ("=3", r"is not key\.path=value"),
        ("train.stpes=3", r"^train\.stpes: unknown key .*nearest valid key: steps"),
        ("train.steps=many", r"^train\.steps: 'many' is not allowed"),
        ("train.steps=[", r"override train\.steps: '\[' is not a YAML value"),
        ("model.hidden.x=3", r"override model\.hidden\.x: hidden holds the value 8, not a section"),
        ("domains.1.name=x", r"override domains\.1\.name: '1' is not an index of a list of 1; use 0 … 0"),
        ("domains.zh.name=x", r"override domains\.zh\.name: 'zh' is not an index"),
    ],
)
def test_an_override_that_cannot_be_is_refused(tmp_path: Path, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, SMALL), [override])


def test_a_config_cannot_be_changed_after_it_was_checked():
    with pytest.raises(
        UserError, match=r"hidden is frozen; load another: ps\.load_config\(…, {'SECTION\.hidden': 7}\)"
    ):
        parse_config(tree()).model.hidden = 7


def test_dump_reads_back_equal_with_every_default_filled_in(tmp_path: Path):
    config = parse_config(tree())
    text = dump_config(config)
    assert load_config(write(tmp_path, text)) == config
    assert "eps_experts: 1.0e-20" in text


def test_derived_numbers():
    config = parse_config(tree())
    assert (config.slots, config.experts, config.active_experts, config.model.layers) == (2, 9, 6, 2)
    assert parse_config(tree(**{"ecss.enabled": False})).active_experts == 9
    segments = {"model.segments": ["own", "common"], "model.common_experts": 2, "model.ffn": 64, "model.rre_layers": 2}
    assert parse_config(tree(**segments)).reachable_experts([2, 0, 2]) == [[0, 1, 2, 6, 7, 8], [0, 1]] * 2


@settings(deadline=None, max_examples=50)
@given(domains=st.integers(1, 5), experts=st.integers(1, 5), dense=st.integers(0, 4), rre=st.integers(0, 4))
def test_more_experts_never_change_what_a_token_meets(domains: int, experts: int, dense: int, rre: int):
    def built(experts_per_domain: int) -> Config:
        return parse_config(
            tree(
                **{
                    "domains": [{"name": f"d{i}"} for i in range(domains)],
                    "data.domains_per_step": 1,
                    "model.dense_layers": dense + 1,
                    "model.rre_layers": rre,
                    "model.experts_per_domain": experts_per_domain,
                }
            )
        )

    one, many = built(1).num_params(), built(experts).num_params()
    assert many.active_per_token == one.active_per_token
    assert many.experts == experts * one.experts
    assert many.dense == one.dense
    assert (many.experts == 0) == (rre == 0)


@pytest.mark.parametrize(
    "module", ["pangu_sigma.config", "pangu_sigma.domains", "pangu_sigma.rre.plan", "pangu_sigma.inspection.inspect"]
)
def test_the_pure_modules_do_not_import_mindspore(module: str):
    code = f"import sys, {module}; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "key", ["data.count_private", "data.filters", "ecss.undo_gib", "ecss.update_cores", "train.optimizer.clip"]
)
def test_a_key_that_is_gone_is_named_with_the_version_that_reads_it(key: str):
    with pytest.raises(ConfigError, match=rf"{key}: no longer a key; .*0\.1\.0 \(commit ab9cf900\) reads"):
        parse_config(tree(**{key: 1}))
