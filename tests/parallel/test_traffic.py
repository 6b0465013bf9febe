"""Collectives and bytes: counted by hand, and the paper's layout."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from small_clusters import MODEL_CONFIGS, by_hand, clusters

from pangu_sigma.config import Config, load_config
from pangu_sigma.parallel.traffic import (
    ALL,
    EXPERT,
    TENSOR,
    Collective,
    collectives,
    link_bytes,
    pcie_bytes,
    sent_bytes,
)


@pytest.fixture(scope="module")
def trillion() -> Config:
    return load_config(MODEL_CONFIGS / "sigma_1t.yaml")


def counted(config: Config, op: str, **wanted: object) -> tuple[int, int]:
    """Calls and bytes of an operator, of the rows that have these fields."""
    rows = [c for c in collectives(config) if c.op == op and all(getattr(c, k) == v for k, v in wanted.items())]
    return sum(c.count for c in rows), sum(c.nbytes for c in rows)


def test_a_small_case_by_hand():
    config = by_hand()
    tokens, rows = 8 * 8 * 2, 16 * 8 * 2
    assert counted(config, "AllReduce", axes=TENSOR, phase="forward") == (2 + 1, 3 * tokens)
    assert counted(config, "AllReduce", axes=TENSOR, phase="backward") == (3 * 2 + 1, 7 * tokens)
    for phase in ("forward", "backward"):
        assert counted(config, "AlltoAll", group_size=2, phase=phase) == (2, 2 * rows // 2)
        assert counted(config, "ReduceScatter", axes=TENSOR, phase=phase) == (1, rows)
    assert counted(config, "AllGather", axes=TENSOR) == (5, 4 * rows + tokens)
    assert not any(c.phase == "recompute" for c in collectives(config))
    assert pcie_bytes(config) == (2 * 144, 2 * 144)


def test_all_to_all_of_the_trillion_stays_in_groups_of_16_and_takes_an_eighth(trillion: Config):
    rows = [c for c in collectives(trillion) if c.op == "AlltoAll"]
    assert {c.group_size for c in rows} == {16}
    calls = {phase: sum(c.count for c in rows if c.phase == phase) for phase in ("forward", "backward", "recompute")}
    assert calls == {"forward": 2 * 8, "backward": 2 * 8, "recompute": 8}
    assert {c.nbytes / c.count for c in rows} == {16 * 1 * 1024 * 5120 * 2 / 8}


def test_dense_layers_of_the_trillion_add_up_over_8_ranks(trillion: Config):
    tokens = 8192 * 5120 * 2
    assert counted(trillion, "AllReduce", group_size=8, phase="forward") == (32 * 2 + 8, 72 * tokens)
    assert counted(trillion, "AllReduce", group_size=8, phase="backward") == (32 * 4 + 8 * 3, 152 * tokens)


def test_no_collective_moves_expert_weights(trillion: Config):
    """Only dense weights are gathered among replicas: the divided matrices with b1, and the two position tables."""
    gathered = [c for c in collectives(trillion) if c.op == "AllGather" and c.purpose.endswith("weights")]
    assert [(c.purpose, c.group_size, c.count) for c in gathered] == [
        ("dense weights", 64, 256),
        ("dense weights", 512, 2),
    ]
    assert gathered[0].nbytes == 2 * (4 * 40 * 5120 * 640 + 32 * (2 * 2560 * 5120 + 2560))


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
    assert sent_bytes(trillion, Collective(op, axes, size, 1, nbytes, "", "")) == (here * nbytes, elsewhere * nbytes)


def test_one_rank_sends_nothing_but_experts_to_its_own_host():
    links = link_bytes(by_hand(parallel={"expert": 1, "tensor": 1}))
    assert (links.hccs, links.network) == (0, 0)
    assert links.pcie > 0
    assert link_bytes(by_hand(parallel={"expert": 1, "tensor": 1}, ecss={"enabled": False})).pcie == 0


@settings(deadline=None)
@given(clusters())
def test_groups_multiply_to_their_axes_and_a_host_of_eight_needs_no_network(config: Config):
    for c in collectives(config):
        assert 1 < c.group_size <= config.parallel.ranks
        assert c.nbytes > 0
    if config.parallel.ranks <= 8:
        assert link_bytes(config).network == 0


@settings(deadline=None)
@given(clusters())
def test_passes_repeat_everything_but_the_weights_and_the_experts_gradients(config: Config):
    train = config.train.model_copy(update={"accumulation": 3})
    once, thrice = collectives(config), collectives(config.model_copy(update={"train": train}))
    for one, three in zip(once, thrice, strict=True):
        a_step = one.purpose in ("dense weights", "experts' gradients", "norm of all gradients")
        assert (three.count, three.nbytes) == ((one.count, one.nbytes) if a_step else (3 * one.count, 3 * one.nbytes))
