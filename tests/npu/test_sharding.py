"""Which cells and parameters belong to which stage. Strategies are MindSpore's to judge: tests/npu/plan/test_compile.py."""

from __future__ import annotations

import math
from itertools import chain

import pytest
from helpers.small_clusters import by_hand

from ascend_ops.adam_worker import AdamWorker
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import HostStore
from pangu_sigma.model.pangu_sigma import NextTokenLoss, PanGuSigma
from pangu_sigma.npu.active_experts import ActiveExperts, FetchExperts, RankTier
from pangu_sigma.npu.cuts import active_buffers
from pangu_sigma.npu.inputs import StepSettings
from pangu_sigma.npu.sharding import cells_of_stage, mark_parameters, parameters_of_stage, received_by_stage

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(params=[1, 2, 3])
def config(request) -> Config:
    stages = request.param
    return by_hand(model={"dense_layers": 2}, parallel={"stages": stages}, train={"accumulation": stages})


def test_every_parameter_and_every_cell_belongs_to_one_stage(config: Config):
    network, stages = PanGuSigma(config.model, config.slots), range(config.parallel.stages)
    names = {id(p): name for name, p in network.parameters_and_names()}
    parameters = [[names[id(p)] for p in parameters_of_stage(network, config, s)] for s in stages]
    assert sorted(chain(*parameters)) == sorted(names.values())
    assert {"embedding", "positions"} <= {*parameters[0]} and "query_positions" in parameters[-1]
    cells = [cells_of_stage(network, config, stage) for stage in stages]
    for names_of_stage, cells_of in zip(parameters, cells, strict=True):
        inside = {names[id(p)] for cell in cells_of for p in cell.trainable_params()}
        assert inside == {name for name in names_of_stage if "." in name}
    assert len({id(cell) for cell in chain(*cells)}) == sum(map(len, cells))
    inside = {id(p) for cell in chain(*cells) for p in cell.get_parameters()}
    tables = {id(network.embedding), id(network.positions), id(network.query_positions)}
    assert inside | tables == {id(p) for p in network.get_parameters()}


def test_the_gradients_of_every_expert_count_once_in_the_norm():
    """Ranks that hold a slice, and copies of common experts in every group, share the weight of its gradients."""
    groups, model = 2, {"segments": ["own", "common"], "common_experts": 4}
    parallel = {"groups": groups, "expert": 2, "data": 2, "tensor": 2}
    data = {"domain_sets": groups, "domains_per_step": groups}
    config = by_hand(model=model, data=data, train={"batch_size": 8}, parallel=parallel)
    store = HostStore(config, RankTier())
    settings = StepSettings([experts.segment for experts in store.segments])
    fetch = FetchExperts(config, store, settings, AdamWorker(len(store.segments)))
    network = ActiveExperts(
        config, NextTokenLoss(PanGuSigma(config.model, config.slots)), fetch, [*range(len(store.segments))]
    )
    mark_parameters(network, config)
    for buffer, array in zip(network.active, active_buffers(config), strict=True):
        assert (buffer.shape, buffer.cut) == (array.shape, array)
        copies = groups if ".1." in array.name else 1
        whole = math.prod(array.shape) // copies  # of different experts
        counted = config.parallel.ranks * math.prod(buffer.cut.computed) / buffer.cut.replicas
        assert (buffer.cut.copies, counted) == (copies, whole)


def test_only_the_last_stage_is_sent_the_word_table(config: Config):
    network, stages = PanGuSigma(config.model, config.slots), config.parallel.stages
    sent = [len(received_by_stage(network, config, stage)) for stage in range(stages)]
    assert sent == ([0] if stages == 1 else [0] * (stages - 1) + [1])
