"""The configuration tree refuses everything it cannot use, with a message that a user can act on."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config

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


SETS = {"data.domains_per_step": 3, "data.domain_sets": 3, "train.batch_size": 3}


def phases(*phases: dict[str, Any]) -> dict[str, Any]:
    return {"data.phases": [*phases]}


SEGMENTS = {"model.segments": ["own", "common"], "model.common_experts": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.hiden": 8},
            r"^model\.hiden: unknown key \(value 8\); nearest valid key: hidden; allowed here: hidden,",
        ),
        ({"model": {"hidden": 8}}, r"model\.ffn: required key is missing; allowed here: hidden, ffn"),
        ({"model.dense_layers": 0, "model.rre_layers": 0}, r"^model: .*dense_layers \+ rre_layers is 0.*at least 1"),
        (
            SEGMENTS | {"model.experts_per_domain": 2, "parallel.expert": 2},
            r"model\.common_experts \(3\) is not divisible by parallel\.expert \(2\)",
        ),
        ({"model.segments": ["own"] * 3}, r"model\.ffn \(16\) is not divisible by the number of model\.segments \(3\)"),
        (SEGMENTS | {"model.segments": ["common"]}, "segments begins with common; the first one is own"),
        (SEGMENTS | {"model.common_experts": 0}, r"common_experts=0 with segments=.*give a number above 0"),
        (phases({"from_step": 0, "weights": {"fr": 1.0}}), r"0\.weights: 'fr' is not a domain; there are zh, en, code"),
        (phases({"from_step": 5}), r"0\.from_step=5 is not allowed: it must be 0, where training"),
        (
            phases({"from_step": 0}, {"from_step": 9}, {"from_step": 9}),
            r"2\.from_step=9 .*above 9, where the phase bef",
        ),
        (phases({"from_step": 0, "weights": {}}), r"0\.weights: \{\} is not allowed"),
        (phases({"from_step": 0, "weights": {"zh": 0.0}}), r"0\.weights\.zh: 0\.0 is not allowed"),
        (phases({"weights": {"zh": 1.0}}), r"0\.from_step: required key is missing"),
        (
            SETS | phases({"from_step": 0, "weights": {"zh": 1, "en": 1}}),
            r"weights has no domain of the set code, from which every step takes a block \(data\.domain_sets=3\)",
        ),
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


def test_derived_numbers():
    config = parse_config(tree())
    assert (config.slots, config.experts, config.active_of("own"), config.model.layers) == (2, 9, 6, 2)
    assert parse_config(tree(**{"ecss.enabled": False})).active_of("own") == 9
    segments = {"model.segments": ["own", "common"], "model.common_experts": 2, "model.ffn": 64, "model.rre_layers": 2}
    assert parse_config(tree(**segments)).reachable_experts([2, 0, 2]) == [[0, 1, 2, 6, 7, 8], [0, 1]] * 2
