"""Layouts that are suggested, held against a search of its own; and numbers of NPUs that cannot be laid out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest
from helpers.small_clusters import MODEL_CONFIGS, by_hand
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.chips import CHIP_DATA
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import load_config
from pangu_sigma.npu.communicators import check_layout
from pangu_sigma.npu.plan.cost import step_time
from pangu_sigma.npu.plan.memory import host_items, host_peak, npu_items
from pangu_sigma.npu.plan.plan import make_plan
from pangu_sigma.npu.plan.suggest import fastest_layouts, fits, least_devices, suggest_layout, what_fits, with_parallel
from pangu_sigma.sections import ParallelConfig


def shipped(name: str) -> Config:
    return load_config(MODEL_CONFIGS / f"{name}.yaml")


def axes(parallel: ParallelConfig) -> tuple[int, ...]:
    return parallel.groups, parallel.expert, parallel.data, parallel.tensor


def every_layout(config: Config, devices: int) -> Iterator[Config]:
    """Every configuration of one stage on `devices` NPUs, by rules of this test's own, that MindSpore's groups allow."""
    model, blocks = config.model, config.data.domains_per_step
    sequences = config.train.batch_size // blocks
    degrees = (range(1, most + 1) for most in (model.heads, config.data.domain_sets, model.experts_per_domain))
    for tensor, groups, expert in itertools.product(*degrees):
        data, rest = divmod(devices, tensor * groups * expert)
        if rest or any(n % tensor for n in (model.heads, model.hidden, model.ffn)):
            continue
        if config.data.domain_sets % groups or model.experts_per_domain % expert or sequences % (expert * data):
            continue
        if sequences // (expert * data) * model.seq_length % tensor:
            continue
        for recompute in (False, True):
            axes = {"groups": groups, "expert": expert, "data": data, "tensor": tensor, "stages": 1}
            parallel = config.parallel.model_copy(update=axes | {"recompute": recompute})
            choice = config.model_copy(update={"parallel": parallel})
            with suppress(ConfigError):
                check_layout(choice)
                yield choice


def has_room(config: Config) -> bool:
    chip = CHIP_DATA[config.parallel.chip]
    return sum(npu_items(config).values()) <= chip.memory and sum(host_items(config).values()) <= chip.host_memory


def best_of_all(config: Config, devices: int) -> float | None:
    """Seconds of a step with the fastest layout that fits; None if none does."""
    return min((step_time(choice).step for choice in every_layout(config, devices) if has_room(choice)), default=None)


@pytest.mark.parametrize(
    ("name", "chip", "devices", "batch"),
    [
        ("sigma_tiny", "910a", 8, None),
        ("sigma_tiny", "910_93", 16, None),
        ("sigma_tiny", "910b", 24, 48),
        ("sigma_tiny", "910a", 40, 80),
        ("sigma_38b", "910a", 64, None),
        ("sigma_38b", "910b", 96, 384),
        ("sigma_38b", "910_93", 2048, None),
        ("sigma_1t", "910a", 512, None),
        ("sigma_1t", "910b4", 256, None),
    ],
)
def test_the_suggestion_is_nearly_the_fastest_of_all_layouts_that_fit(
    name: str, chip: str, devices: int, batch: int | None
):
    keys = [("parallel.chip", chip), *([("train.batch_size", batch)] if batch else [])]
    config = load_config(MODEL_CONFIGS / f"{name}.yaml", keys)
    best = best_of_all(config, devices)
    suggested = with_parallel(config, **suggest_layout(config, devices).model_dump())
    assert has_room(suggested) == (best is not None)
    assert best is None or best <= step_time(suggested).step <= 1.02 * best


def test_layouts_are_sorted_by_time_and_all_of_them_fit():
    config = with_parallel(shipped("sigma_1t"), chip="910b")
    actual = fastest_layouts(config, 256)
    seconds = [layout.step_seconds for layout in actual]
    assert len(actual) > 2
    assert seconds == sorted(seconds)
    for layout in actual[:3]:
        tried = with_parallel(config, **layout.parallel.model_dump())
        assert has_room(tried)
        assert step_time(tried).step == layout.step_seconds
    assert actual == fastest_layouts(config, 256), "and always in the same order"


def test_more_npus_do_not_make_the_trillion_slower():
    """It once came out slower on 1,024 than on 512."""
    seconds = [fastest_layouts(shipped("sigma_1t"), devices)[0].step_seconds for devices in (256, 512, 1024)]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize(("name", "chip", "least"), [("sigma_1t", "910a", 256), ("sigma_38b", "910b", 32)])
def test_the_least_number_of_npus_fits_and_half_of_it_does_not(name: str, chip: str, least: int):
    config = with_parallel(shipped(name), chip=chip)
    assert least_devices(config) == least
    assert best_of_all(config, least) is not None
    assert best_of_all(config, least // 2) is None


def test_tensor_groups_are_as_large_as_a_host_where_heads_allow():
    """16 heads on 16 NPUs of a host; the trillion has 40, of which 16 take no equal part."""
    config = by_hand(model={"hidden": 64, "heads": 16}, parallel={"chip": "910_93"})
    assert max(layout.parallel.tensor for layout in fastest_layouts(config, 16)) == 16
    assert max(layout.parallel.tensor for layout in fastest_layouts(with_parallel(config, chip="910b"), 8)) == 8
    wide = fastest_layouts(with_parallel(shipped("sigma_38b"), chip="910_93"), 128)
    assert max(layout.parallel.tensor for layout in wide) == 8


def test_where_nothing_fits_and_without_experts_tensor_and_data_ranks_are_suggested():
    for devices, expert in ((16, 2), (64, 8)):
        parallel = suggest_layout(shipped("sigma_38b"), devices)
        assert axes(parallel) == (1, expert, 1, 8) and parallel.recompute
    dense = suggest_layout(shipped("alpha_2_6b"), 64)
    assert (dense.groups, dense.expert, dense.data * dense.tensor) == (1, 1, 64)


def test_other_keys_of_the_section_stay():
    config = with_parallel(shipped("sigma_tiny"), fusion_mib=7, overflow="drop")
    actual = suggest_layout(config, 8)
    assert (actual.fusion_mib, actual.overflow) == (7, "drop")


@settings(max_examples=40)
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
        assert (sum(npu_items(tried).values()) <= CHIP_DATA["910a"].memory) == room


def test_stages_stay_where_they_come_out_even():
    keys = ["train.accumulation=2", "parallel.stages=2", "train.batch_size=16"]
    config = load_config(MODEL_CONFIGS / "sigma_tiny.yaml", keys)
    assert [suggest_layout(config, devices).stages for devices in (1, 2, 8)] == [1, 2, 2]
    assert all(suggest_layout(config, devices).ranks == devices for devices in (1, 2, 8))


def test_a_section_that_does_not_come_out_even_is_refused():
    with pytest.raises(ConfigError, match=r"model.heads \(2\) is not divisible by parallel.tensor \(4\)"):
        with_parallel(by_hand(), tensor=4)


def test_what_fits_asks_the_host_too():
    """On 64 NPUs a smaller batch makes the trillion fit into NPUs, and its experts would need twice what a host has."""
    config = with_parallel(shipped("sigma_1t"), **suggest_layout(shipped("sigma_1t"), 64).model_dump())
    assert what_fits(config) is None
    changed = config.train.model_copy(update={"batch_size": 64, "accumulation": 8})
    needed = sum(host_peak(config.model_copy(update={"train": changed})).values())
    assert needed > 2 * CHIP_DATA["910a"].host_memory


def test_smaller_moments_are_suggested_where_only_the_host_is_short():
    config = with_parallel(shipped("sigma_1t"), **suggest_layout(shipped("sigma_1t"), 128).model_dump())
    keys = what_fits(config)
    assert keys == {"ecss.moments": "bfloat16"}
    assert not fits(config)
    assert fits(config.model_copy(update={"ecss": config.ecss.model_copy(update={"moments": "bfloat16"})}))
    assert config.ecss.moments == "float32"


def test_a_number_beyond_any_cluster_is_refused_at_once():
    with pytest.raises(ConfigError, match="devices 1000000000: at most 1,048,576 are planned"):
        suggest_layout(shipped("sigma_tiny"), 10**9)
    with pytest.raises(ConfigError, match="devices 10000000000: at most 1,048,576 are planned"):
        make_plan(shipped("sigma_tiny"), 10**10)  # a plan tries layouts first
