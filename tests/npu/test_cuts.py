"""The slices of all ranks cover every array exactly."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
from helpers.small_clusters import MODEL_CONFIGS, by_hand, clusters
from hypothesis import given

from pangu_sigma.config import Config
from pangu_sigma.config_file import load_config
from pangu_sigma.npu.cuts import (
    accumulator_arrays,
    active_buffers,
    active_elements,
    all_arrays,
    dense_weights,
    expert_arrays,
    word_table,
)
from pangu_sigma.ranks.layout import share_of


@given(clusters())
def test_slices_of_all_ranks_cover_every_array_exactly(config: Config):
    ranks, stages = config.parallel.stage_ranks, range(config.parallel.stages)
    for a in (array for stage in stages for array in all_arrays(config, stage)):
        copies = 1 if a.divided else a.replicas
        assert math.prod(a.computed) * ranks == math.prod(a.shape) * a.replicas
        assert math.prod(a.kept) * ranks == math.prod(a.shape) * copies


@given(clusters())
def test_arrays_of_layers_that_are_alike_are_counted(config: Config):
    """By all that sums ask of an array; names are those of one of the layers."""
    for stage in range(config.parallel.stages):
        for arrays in (all_arrays, active_buffers, accumulator_arrays):
            counted, single = Counter(), Counter()
            for a in arrays(config, stage, alike=True):
                counted[replace(a, name="", count=1)] += a.count
            for a in arrays(config, stage):
                assert a.count == 1
                single[replace(a, name="")] += 1
            assert counted == single
        active = [math.prod(a.computed) for a in active_buffers(config, stage)]
        assert active_elements(config, stage) == sum(active) or not config.ecss.enabled
    assert word_table(config) == dense_weights(config)[0]


@given(clusters())
def test_experts_of_a_rank_are_those_of_its_share(config: Config):
    for kind in config.model.kinds:
        of_ranks = [share_of(config, rank).routed for rank in range(config.parallel.ranks)]
        held = {segment.stored for routed in of_ranks for segment in routed if segment.kind == kind}
        of_kind = [n for n, other in enumerate(config.model.routed) if other == kind]
        assert {a.kept[0] for a in expert_arrays(config) if int(a.name.split(".")[1]) in of_kind} <= held
        assert len(held) == min(config.model.rre_layers, 1)


def test_what_each_rank_of_the_paper_keeps():
    found = {a.name: a for a in all_arrays(load_config(MODEL_CONFIGS / "sigma_1t.yaml"))}
    query, output = found["layers.0.attention.query.weight"], found["layers.0.attention.output.weight"]
    assert (query.computed, query.kept, query.replicas) == ((5120, 640), (80, 640), 64)
    assert (output.computed, output.kept) == ((640, 5120), (10, 5120))
    assert (found["layers.0.ffn.w1"].computed, found["layers.0.ffn.w1"].kept) == ((2560, 5120), (40, 5120))
    positions, embedding = found["positions"], found["embedding"]
    assert (positions.computed, positions.kept, positions.replicas) == ((1024, 640), (16, 640), 64)
    assert (embedding.computed, embedding.kept) == ((3 * 40_000, 640), (1875, 640))
    norm = found["layers.0.attention_norm.gain"]
    assert (norm.kept, norm.replicas) == ((5120,), 512), "vectors are whole on every rank"
    assert found["layers.0.ffn.w1.variance"].kept == (40, 5120)
    expert = found["experts.7.w1"]
    assert (expert.shape, expert.kept, expert.device) == ((640, 20480, 5120), (10, 2560, 5120), "CPU")
    assert found["experts.7.b2"].kept == (10, 5120)
    assert found["experts.7.step"].kept == (10,)


def test_without_optimizer_parallelism_nothing_is_divided_and_without_ecss_experts_are_float32_on_the_npu():
    config = load_config(MODEL_CONFIGS / "sigma_1t.yaml", ["parallel.optimizer=false"])
    assert not any(a.divided for a in all_arrays(config))
    arrays = expert_arrays(by_hand(ecss={"enabled": False, "moments": "bfloat16"}))
    assert {a.device for a in arrays} == {"Ascend"}
    assert {np.dtype(a.dtype).name for a in arrays} == {"float32", "int32"}
