"""The inspection repeats the counts of the config and prints them for people."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import load_config
from pangu_sigma.host_memory import row_bytes
from pangu_sigma.inspection.inspect import extraction, format_extraction, format_inspection, inspect

FOLDER = Path(__file__).parents[2] / "model_configs"


def test_params_are_the_configs_and_json_can_hold_them():
    config = load_config(FOLDER / "sigma_tiny.yaml")
    found = json.loads(json.dumps(inspect(config)))
    assert found["name"] == "sigma_tiny"
    assert found["params"] == vars(config.num_params())


def test_bytes_of_the_trillion():
    found = inspect(load_config(FOLDER / "sigma_1t.yaml"))
    segment = {"kind": "own", "stored": 640, "active_at_most": 64, "params_each": 209_740_800}
    assert found["experts"] == {"stored_per_layer": 640, "active_per_layer_at_most": 64, "segments": [segment]}
    assert found["bytes"]["expert_store"] == 640 * 8 * 209_740_800 * 12
    assert found["bytes"]["active_expert_weights"] == 64 * 8 * 209_740_800 * 4
    assert found["bytes"]["expert_store_on"] == "host"
    text = format_inspection(found)
    for part in (
        "sigma_1t",
        "1.0854T (1,085,405,440,000)",
        "32 dense + 8 RRE",
        "640, at most 64",
        "11.7 TiB on the host",
    ):
        assert part in text


def test_rows_are_counted_beside_the_parameters_and_a_token_meets_hidden_of_them():
    rows = "[{order: 1, rows: 1000, width: 64}, {order: 2, rows: 500000000, width: 128, kind: own}]"
    without, config = (
        load_config(FOLDER / "sigma_tiny.yaml", keys) for keys in (["model.rows=[]"], [f"model.rows={rows}"])
    )
    found, (count, before) = inspect(config), (config.num_params(), without.num_params())
    layers, domains = config.model.layers, len(config.domains)
    assert count.rows == 1000 * 64 + domains * 500_000_000 * 128 and before.rows == 0
    assert (count.total - before.total, count.dense - before.dense) == (layers, layers), "scales alone"
    assert count.active_per_token - before.active_per_token == layers + config.model.hidden
    assert found["rows"][1] == {"order": 2, "kind": "own", "stored": domains * 500_000_000, "width": 128}
    assert found["bytes"]["rows_at_most"] == row_bytes(config)
    text = format_inspection(found)
    assert f"{domains * 500_000_000:,} of order 2 (own), width 128" in text and "those that all steps can meet" in text
    assert "rows, entry" not in format_inspection(inspect(without))


def test_segments_are_counted_one_by_one_and_common_experts_are_not_extracted_away():
    overrides = ["model.experts_per_domain=4", "model.common_experts=3"]
    config = load_config(FOLDER / "sigma_tiny.yaml", overrides)
    found, (hidden, ffn) = inspect(config), (config.model.hidden, config.model.ffn // 4)
    each, domains = 2 * hidden * ffn + ffn, config.data.domains_per_step
    assert found["experts"] == {
        "stored_per_layer": 2 * 16 + 2 * 3,
        "active_per_layer_at_most": 2 * 4 * domains + 2 * 3,
        "segments": [
            {"kind": "own", "stored": 16, "active_at_most": 4 * domains, "params_each": each + hidden},
            {"kind": "own", "stored": 16, "active_at_most": 4 * domains, "params_each": each},
            *[{"kind": "common", "stored": 3, "active_at_most": 3, "params_each": each}] * 2,
        ],
    }
    stored = 2 * (38 * each + 16 * hidden)  # in two RRE layers
    assert found["params"]["experts"] == stored
    assert found["bytes"]["active_expert_weights"] == 2 * ((8 * domains + 6) * each + 4 * domains * hidden) * 4
    text = format_inspection(found)
    assert re.search(r"experts in a layer +38, at most 38 in a step", text)
    assert re.search(r"segment 0 \(own\) +16, at most 16 in a step, each of", text)
    assert re.search(r"segment 3 \(common\) +3, at most 3 in a step, each of", text)
    left = extraction(config, [config.domains[0].name], [])["after"]["experts"]
    assert left == 2 * ((2 * 4 + 2 * 3) * each + 4 * hidden)


def test_without_ecss_every_expert_is_active_on_the_device():
    found = inspect(
        load_config(FOLDER / "sigma_tiny.yaml", ["ecss.enabled=false", "data.domains_per_step=1", "data.domain_sets=1"])
    )
    assert found["experts"]["active_per_layer_at_most"] == 4 * 64, "64 of each segment"
    assert found["bytes"]["expert_store_on"] == "device"


def test_a_dense_model_has_no_experts():
    found = inspect(load_config(FOLDER / "alpha_2_6b.yaml"))
    assert found["experts"] == {"stored_per_layer": 0, "active_per_layer_at_most": 0, "segments": []}
    assert found["bytes"]["active_expert_weights"] == 0
    assert "2.6253B" in format_inspection(found)


def test_one_domain_of_the_trillion_is_38_billion():
    """What is left of sigma_1t is what sigma_38b is."""
    config = load_config(FOLDER / "sigma_1t.yaml")
    found = extraction(config, ["zh"], [])
    assert found["before"]["total"] == config.num_params().total == 1_085_405_440_000
    assert found["after"] == vars(load_config(FOLDER / "sigma_38b.yaml").num_params())
    assert "37.97B (37,969,766,400) of 1.0854T (1,085,405,440,000)" in format_extraction(found)
    two = extraction(config, ["en", "zh", "en"], [])
    assert two["domains"] == ["zh", "en"]
    assert two["after"]["experts"] == 2 * found["after"]["experts"]
    with pytest.raises(ConfigError, match="unknown domain 'nobody'"):
        extraction(config, ["nobody"], [])
