"""Layouts that are suggested, and numbers of NPUs that cannot be laid out."""

from __future__ import annotations

import re

import pytest
from helpers.small_clusters import MODEL_CONFIGS, by_hand
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.config import Config, ConfigError, ParallelConfig
from pangu_sigma.config_file import load_config, parse_config
from pangu_sigma.planning.machine import HOST_MEMORY, NPU_MEMORY
from pangu_sigma.planning.memory import fullest_host, host_items, npu_items, total
from pangu_sigma.planning.suggest import (
    devices_that_fit,
    fits,
    suggest_layout,
    what_fits,
    what_fits_an_npu,
    with_parallel,
)


def shipped(name: str) -> Config:
    return load_config(MODEL_CONFIGS / f"{name}.yaml")


def axes(parallel: ParallelConfig) -> tuple[int, ...]:
    return parallel.groups, parallel.expert, parallel.data, parallel.tensor


def test_sigma_tiny_on_8_gets_its_groups_and_expert_ranks():
    assert axes(suggest_layout(shipped("sigma_tiny"), 8)) == (4, 2, 1, 1)


@pytest.mark.parametrize(("devices", "expert"), [(16, 2), (64, 8)])
def test_sigma_38b_gets_8_tensor_ranks_where_nothing_fits(devices: int, expert: int):
    found = suggest_layout(shipped("sigma_38b"), devices)
    assert axes(found) == (1, expert, 1, 8)
    assert found.recompute


def test_the_trillion_without_a_section_gets_the_smallest_tensor_degree_that_fits():
    config = parse_config(shipped("sigma_1t").model_dump() | {"parallel": {}})
    found = suggest_layout(config, 512)
    assert (axes(found), found.recompute) == ((4, 16, 2, 4), True)
    for data, tensor, room in ((4, 2, False), (2, 4, True)):
        assert fits(with_parallel(config, **found.model_dump() | {"data": data, "tensor": tensor})) == room


def test_dense_models_get_data_and_tensor_ranks():
    found = suggest_layout(shipped("alpha_2_6b"), 64)
    assert (found.groups, found.expert) == (1, 1)
    assert found.data * found.tensor == 64


def test_other_keys_of_the_section_stay():
    config = with_parallel(shipped("sigma_tiny"), fusion_mib=7, overflow="drop")
    found = suggest_layout(config, 8)
    assert (found.fusion_mib, found.overflow) == (7, "drop")


@settings(deadline=None)
@given(st.integers(-1, 70), st.sampled_from(["sigma_tiny", "sigma_small", "alpha_2_6b"]))
def test_any_number_is_laid_out_or_refused_with_numbers_that_can_be(devices: int, name: str):
    config = shipped(name)
    try:
        assert suggest_layout(config, devices).ranks == devices
    except ConfigError as error:
        nearest = [int(n) for n in re.search(r"nearest numbers .* are (\d+)(?: or (\d+))?$", str(error)).groups() if n]
        assert nearest
        for number in nearest:
            assert suggest_layout(config, number).ranks == number


def test_what_fits_is_the_least_change_that_fits():
    assert what_fits(shipped("sigma_1t")) is None, "it fits as it is"
    assert what_fits(with_parallel(shipped("sigma_1t"), recompute=False)) == {"parallel.recompute": True}
    without_ecss = load_config(MODEL_CONFIGS / "sigma_1t.yaml", ["ecss.enabled=false"])
    assert what_fits(without_ecss) == {"ecss.enabled": True}
    config = with_parallel(shipped("sigma_38b"), **suggest_layout(shipped("sigma_38b"), 64).model_dump())
    keys = what_fits(config)
    assert keys == {"train.batch_size": 128, "train.accumulation": 4}, "the same update in more passes"
    for batch, passes, room in ((128, 4, True), (256, 2, False), (512, 1, False)):
        train = config.train.model_copy(update={"batch_size": batch, "accumulation": passes})
        tried = config.model_copy(update={"train": train})
        assert (total(npu_items(tried)) <= NPU_MEMORY) == room


def test_stages_stay_where_they_come_out_even():
    keys = ["train.accumulation=2", "parallel.stages=2", "train.batch_size=16"]
    config = load_config(MODEL_CONFIGS / "sigma_tiny.yaml", keys)
    assert [suggest_layout(config, devices).stages for devices in (1, 2, 8)] == [1, 2, 2]
    assert all(suggest_layout(config, devices).ranks == devices for devices in (1, 2, 8))


def test_what_fits_is_nothing_when_nothing_does():
    """On one host, weights, gradients and moments alone are too much."""
    config = shipped("sigma_38b")
    assert what_fits(with_parallel(config, **suggest_layout(config, 8).model_dump())) is None


def test_a_section_that_does_not_come_out_even_is_refused():
    with pytest.raises(ConfigError, match=r"model.heads \(2\) is not divisible by parallel.tensor \(4\)"):
        with_parallel(by_hand(), tensor=4)


def test_what_fits_asks_the_host_too():
    """On 64 NPUs a smaller batch makes the trillion fit into NPUs, and its experts would need twice what a host has."""
    config = with_parallel(shipped("sigma_1t"), **suggest_layout(shipped("sigma_1t"), 64).model_dump())
    assert what_fits(config) is None
    keys, host = what_fits_an_npu(config)
    assert keys == {"train.batch_size": 64, "train.accumulation": 8}
    assert host == total(host_items(config, fullest_host(config))) > 2 * HOST_MEMORY
    assert devices_that_fit(config) == 256


def test_smaller_moments_are_suggested_where_only_the_host_is_short():
    config = with_parallel(shipped("sigma_1t"), **suggest_layout(shipped("sigma_1t"), 128).model_dump())
    keys = what_fits(config)
    assert keys == {"ecss.moments": "bfloat16"}
    assert not fits(config)
    assert fits(config.model_copy(update={"ecss": config.ecss.model_copy(update={"moments": "bfloat16"})}))
    assert config.ecss.moments == "float32"


def test_a_number_beyond_any_cluster_is_refused_at_once():
    with pytest.raises(ConfigError, match="--devices 1000000000: at most 1,048,576 are planned"):
        suggest_layout(shipped("sigma_tiny"), 10**9)
