"""Stages of ranks: which layers, and that everything else is laid out in each of them as without."""

from __future__ import annotations

from itertools import chain

import pytest
from helpers.small_clusters import by_hand, clusters
from hypothesis import given

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.ranks.layout import Layout, axes_text, data_rank_of, layers_of_stage, rre_layers_of_stage, share_of
from pangu_sigma.sections import ParallelConfig


@given(clusters())
def test_stages_have_all_layers_in_order_and_nearly_equally_many(config: Config):
    stages = [list(layers_of_stage(config, stage)) for stage in range(config.parallel.stages)]
    assert list(chain(*stages)) == list(range(config.model.layers))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1
    routed = [rre_layers_of_stage(config, stage) for stage in range(config.parallel.stages)]
    assert list(chain(*routed)) == list(range(config.model.rre_layers))


@given(clusters())
def test_a_rank_of_a_stage_takes_and_stores_what_the_same_rank_does_without_stages(config: Config):
    alone = config.model_copy(update={"parallel": config.parallel.model_copy(update={"stages": 1})})
    layout, ranks = Layout(config.parallel), config.parallel.stage_ranks
    for rank in range(config.parallel.ranks):
        ours, theirs = share_of(config, rank), share_of(alone, rank % ranks)
        assert layout.coordinates(rank).stage == rank // ranks
        assert ours.sets == theirs.sets
        for mine, other in zip(ours.routed, theirs.routed, strict=True):
            assert mine.held.tolist() == other.held.tolist()
            assert vars(mine) | {"held": None} == vars(other) | {"held": None}
        layers = rre_layers_of_stage(config, rank // ranks)
        assert [segment.number for segment in ours.stored] == [
            n for layer in layers for n in config.model.segments_of(layer)
        ]
        assert data_rank_of(config, rank) == data_rank_of(alone, rank % ranks)
        neighbours = layout.peers(rank, "groups", "expert", "data", "tensor")
        assert neighbours == list(range(rank // ranks * ranks, (rank // ranks + 1) * ranks))


def test_a_layout_in_words_names_stages_where_there_are_some():
    assert axes_text(ParallelConfig(expert=2)) == "groups=1 · expert=2 · data=1 · tensor=1"
    assert axes_text(ParallelConfig(stages=2)) == "stages=2 · groups=1 · expert=1 · data=1 · tensor=1"


@pytest.mark.parametrize(
    ("stages", "passes", "message"),
    [(3, 3, "parallel.stages=3 is more than the 2 layers"), (2, 1, "parallel.stages=2 needs train.accumulation >= 2")],
)
def test_stages_without_work_are_refused(stages: int, passes: int, message: str):
    with pytest.raises(ConfigError, match=message):
        by_hand(parallel={"stages": stages}, train={"accumulation": passes})
