"""Collectives and bytes: counted by hand, and the paper's layout. Compiled steps have the same: test_compile.py."""

from __future__ import annotations

import pytest
from helpers.small_clusters import MODEL_CONFIGS, by_hand, clusters
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.config import Config
from pangu_sigma.config_file import load_config
from pangu_sigma.npu.communicators import ALL, EXPERT, HOLDERS, REPLICAS, STAGE, TENSOR
from pangu_sigma.npu.plan.cost import step_time
from pangu_sigma.npu.plan.suggest import with_parallel
from pangu_sigma.npu.plan.traffic import (
    PredictedCollective,
    collectives,
    link_bytes,
    pcie_bytes,
    row_pcie_bytes,
    sent_bytes,
    spread,
    sums_of_rows,
)
from pangu_sigma.ranks.layout import Layout


@pytest.fixture(scope="module")
def trillion() -> Config:
    return load_config(MODEL_CONFIGS / "sigma_1t.yaml")


def counted(config: Config, op: str, **expected: object) -> tuple[int, int]:
    """Calls and bytes of an operator, of the rows that have these fields."""
    rows = [c for c in collectives(config) if c.op == op and all(getattr(c, k) == v for k, v in expected.items())]
    return sum(c.count for c in rows), sum(c.nbytes for c in rows)


def test_a_small_case_by_hand():
    """A hidden state has 8 tokens of 8 float16, an RRE layer 16 rows, the slot of the logits 16."""
    config = by_hand()
    hidden, rows, slot = 8 * 8 * 2, 16 * 8 * 2, 16 * 8 * 2
    for phase, gather in (("forward", "AllGather"), ("backward", "ReduceScatter")):
        # outputs of two attentions, a dense FFN and the experts, and the loss of one block
        assert counted(config, "AllReduce", axes=TENSOR, phase=phase) == (2 + 1 + 1 + 1, 3 * hidden + rows + 4)
        assert counted(config, "AlltoAll", axes=EXPERT, phase=phase) == (2, 2 * rows // 2)
        # embeddings in float16 and float32, query positions, rows at the experts and back, the slot
        assert counted(config, gather, axes=TENSOR, phase=phase) == (6, 2 * hidden + 2 * hidden + 2 * rows + slot)
    assert not any(c.phase == "recompute" for c in collectives(config))
    # three tables in float32; four matrices of two attentions and two of the FFN
    tables, matrices = 16 * 4 + 2 * 4 * 4, 2 * 4 * 8 * 4 + 2 * 8 * 8
    assert counted(config, "AllGather", phase="weight") == (3 + 2 * 4 + 2, 4 * tables + 2 * matrices)
    assert counted(config, "ReduceScatter", phase="gradient") == (3 + 2 * 4 + 2, 4 * (tables + matrices))
    # biases of query, key, value and of the FFN's columns; all other vectors
    assert counted(config, "AllReduce", axes=REPLICAS, phase="gradient") == (2 * 3 + 1, 4 * (2 * 3 * 4 + 8))
    assert counted(config, "AllReduce", axes=STAGE, phase="gradient") == (2 * (1 + 4) + 1 + 2, 4 * 13 * 8)
    assert counted(config, "AllReduce", axes=HOLDERS, phase="gradient") == (1, 2 * 8)  # b2 of the one local expert
    assert counted(config, "AllReduce", phase="norm") == (2, 8)  # and overflow
    assert pcie_bytes(config) == 2 * 144


def test_rows_travel_to_the_npu_and_their_gradients_are_summed_behind_the_step():
    """8 tokens of a rank and 16 of all, of 8 float32; the embeddings are gathered once, rows are added before they are float32."""
    rows = [{"order": 1, "rows": 9, "width": 8}]
    config, without = by_hand(model={"rows": rows}), by_hand()
    assert row_pcie_bytes(config) == 4 * 8 * 8 + 4 * 16 * 8
    assert link_bytes(config)["pcie"] == link_bytes(without)["pcie"] + 2 * row_pcie_bytes(config)
    (sums,) = sums_of_rows(config)
    assert (sums.group_size, sums.count, sums.nbytes) == (4, 4, 4 * 16 * 8)
    assert sums_of_rows(without) == [] and row_pcie_bytes(without) == 0
    assert step_time(config).host_update > step_time(without).host_update
    for phase in ("forward", "backward"):
        assert counted(config, {"forward": "AllGather", "backward": "ReduceScatter"}[phase], phase=phase)[0] == 5
    calls, nbytes = (counted(each, "AllReduce", axes=STAGE, phase="gradient") for each in (config, without))
    assert (calls[0] - nbytes[0], calls[1] - nbytes[1]) == (2, 2 * 4), "the scale of each layer"


@pytest.mark.parametrize(("batch", "calls"), [(2, 0), (4, 0), (6, 2), (8, 0), (10, 2)])
def test_labels_are_gathered_when_a_tensor_rank_has_one_and_a_half_sequences(batch: int, calls: int):
    """Half of the sequences on each of 2 expert ranks, half of those on each of 2 tensor ranks: 1.5 of them, or 2.5."""
    config = by_hand(train={"batch_size": batch})
    assert counted(config, "AllGather", axes=REPLICAS, phase="forward") == (calls, calls * 4 * batch * 4)


def test_all_to_all_of_the_trillion_stays_in_groups_of_16_and_takes_an_eighth(trillion: Config):
    rows = [c for c in collectives(trillion) if c.op == "AlltoAll"]
    assert {c.group_size for c in rows} == {16}
    calls = {phase: sum(c.count for c in rows if c.phase == phase) for phase in ("forward", "backward", "recompute")}
    assert calls == {"forward": 2 * 8, "backward": 2 * 8, "recompute": 8}
    assert {c.nbytes / c.count for c in rows} == {16 * 768 * 5120 * 2 / 8}, (
        "capacity_factor is 1.5: 768 rows for an expert, an eighth of each"
    )


@pytest.mark.parametrize(
    ("op", "axes", "size", "here", "elsewhere"),
    [
        ("AllReduce", TENSOR, 8, 2 * 7 / 8, 0),
        ("AllGather", TENSOR, 8, 7 / 8, 0),
        ("AlltoAll", EXPERT, 16, 0, 15 / 16),
        ("AllReduce", ALL, 512, 2 * 7 / 8, 2 * 63 / 64 / 8),
        ("ReduceScatter", ALL, 512, 7 / 8, 63 / 64 / 8),
    ],
)
def test_bytes_by_link(trillion: Config, op: str, axes: tuple[str, ...], size: int, here: float, elsewhere: float):
    nbytes = 1 << 30
    assert sent_bytes(trillion, PredictedCollective(op, "", size, 1, nbytes, axes, "")) == (
        here * nbytes,
        elsewhere * nbytes,
    )


@given(clusters(), st.sampled_from(["910a", "910_93"]))
def test_ranks_of_a_group_in_the_first_host_are_counted(config: Config, chip: str):
    config = with_parallel(config, chip=chip)
    size = {"910a": 8, "910_93": 16}[chip]
    for axes in (TENSOR, EXPERT, HOLDERS, REPLICAS, STAGE, ALL):
        peers = Layout(config.parallel).peers(0, *axes)
        assert spread(config, axes).fewest_in_host == sum(peer < size for peer in peers), "all groups are alike"
        assert spread(config, axes).hosts == len({peer // size for peer in peers})


def test_a_collective_is_priced_by_the_group_that_is_spread_most(trillion: Config):
    """Six tensor ranks: the first group lies in one host, the second has 2 of its ranks in the first host and 4 in the next.

    Of an expert group of 16, two ranks share a host of sixteen NPUs, so 14 messages of 16 parts leave."""
    model = {"hidden": 12, "heads": 6, "ffn": 24}
    config = by_hand(model=model, train={"batch_size": 24}, parallel={"tensor": 6, "expert": 2, "data": 2})
    assert spread(config, TENSOR) == (2, 2)
    rows = PredictedCollective("AllReduce", "", 6, 1, 600, TENSOR, "")
    assert sent_bytes(config, rows) == (2 * 600 // 2, 2 * 600 // 4)
    rows = PredictedCollective("AlltoAll", "", 16, 1, 1 << 30, EXPERT, "")
    wide = with_parallel(trillion, chip="910_93")
    assert sent_bytes(wide, rows) == ((1 << 30) // 16, 14 * (1 << 30) // 16)


def test_one_rank_sends_nothing_but_experts_to_its_own_host():
    links = link_bytes(by_hand(parallel={"expert": 1, "tensor": 1}))
    assert (links["hccs"], links["network"]) == (0, 0)
    assert links["pcie"] > 0
    assert link_bytes(by_hand(parallel={"expert": 1, "tensor": 1}, ecss={"enabled": False}))["pcie"] == 0


@given(clusters())
def test_groups_multiply_to_their_axes_and_a_host_of_eight_needs_no_network(config: Config):
    for c in collectives(config):
        assert 1 < c.group_size <= config.parallel.ranks
        assert c.nbytes > 0
    if config.parallel.ranks <= 8:
        assert link_bytes(config)["network"] == 0
