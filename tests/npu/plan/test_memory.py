"""Memory of small cases counted by hand, and what must hold for all."""

from __future__ import annotations

from helpers.small_clusters import MODEL_CONFIGS, by_hand, clusters
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.chips import GIB
from pangu_sigma.config import Config
from pangu_sigma.config_file import load_config
from pangu_sigma.npu.plan.memory import communicators, host_items, npu_items
from pangu_sigma.npu.plan.suggest import with_parallel
from pangu_sigma.npu.plan.traffic import collectives
from pangu_sigma.npu.row_counts import capacity, exchanged_rows, multiplied_rows, tokens_of_rank
from pangu_sigma.ranks.layout import Layout

TABLES = 16 * 4 + 2 * 4 * 4
"""Of a rank, cut by hidden: the only slot, positions and query positions."""
ATTENTION, ATTENTION_BIASES = 3 * 8 * 4 + 4 * 8, 3 * 4 + 8
FFN, FFN_BIASES = 2 * 8 * 8, 8 + 8
"""w1 and w2 [16/2, 8], b1 [16/2], b2 [8]."""
FFN_SLICE = FFN + FFN_BIASES
NORM = 2 * 8
DENSE_KEPT = (TABLES + 2 * ATTENTION + FFN) // 2 + 2 * (ATTENTION_BIASES + 2 * NORM) + FFN_BIASES + NORM
"""Two replicas divide the matrices; vectors are whole."""


def test_an_npu_counted_by_hand():
    config = by_hand()
    assert (tokens_of_rank(config), capacity(config)) == (8, 8)
    assert (exchanged_rows(config), multiplied_rows(config)) == (16, 16)
    every_layer = 8 * 8 * (2 + 8) + 4 * 2 * 8 * 4 + 2 * 1 * 4 * 4 * (4 + 2)
    dense = every_layer + 2 * 8 * 8 + 2 * 2 * 8 * 8
    routed = every_layer + 2 * 16 * 8 + 2 * 2 * 16 * 8 + 2 * 8 * 8
    assert npu_items(config) == {
        "dense: weights": 4 * DENSE_KEPT,
        "dense: gradients": 4 * DENSE_KEPT,
        "dense: moments": 8 * DENSE_KEPT,
        "dense: weights in use": 2 * (2 * (ATTENTION + ATTENTION_BIASES) + FFN_SLICE) + 4 * 2 * 4 * 4,
        "dense: embedding in use": 4 * 16 * 4,
        "dense: gradients being summed": 4 * 8 * 8,
        "experts: active weights": 2 * FFN_SLICE,
        "experts: gradients of the active": 2 * FFN_SLICE,
        "activations kept": dense + routed + 4 * 8 * 8,
        "largest transient": routed,
        "attention mask": 2 * 4 * 4 * 4,
        "communication buffers": 3 * 400 << 20,
        "reserve": GIB,
    }


def test_logits_are_the_fullest_moment_of_a_large_vocabulary():
    """512 rows for 4 of 8 tokens, three times in float32; the slot and its gradient in float16."""
    config = by_hand(model={"slot_rows": 512})
    assert npu_items(config)["largest transient"] == 3 * 4 * 4 * 512 + 2 * 2 * 512 * 8


def test_recompute_keeps_inputs_and_one_layer():
    """The first layer's input and the query rows are still cut by hidden; the last norm is in no layer."""
    plain, recomputed = npu_items(by_hand()), npu_items(with_parallel(by_hand(), recompute=True))
    assert recomputed["activations kept"] == 2 * (8 * 8 + 2 * 8 * 4) + 4 * 8 * 8
    assert recomputed["largest transient"] == 2 * plain["largest transient"]


def test_gradients_are_summed_in_pieces_of_fusion_mib():
    """But not less than the largest, an FFN matrix, and not more than all but the embedding's. A single rank sums nothing."""
    for mib, expected in ((0, 4 * 2560 * 5120), (64, 64 << 20)):
        actual = npu_items(load_config(MODEL_CONFIGS / "sigma_1t.yaml", [f"parallel.fusion_mib={mib}"]))
        assert actual["dense: gradients being summed"] == expected
    others = TABLES - 16 * 4 + 2 * (ATTENTION + ATTENTION_BIASES + 2 * NORM) + FFN_SLICE + NORM
    assert npu_items(with_parallel(by_hand(), fusion_mib=64))["dense: gradients being summed"] == 4 * others
    assert npu_items(by_hand(parallel={"expert": 1, "tensor": 1}))["dense: gradients being summed"] == 0


@given(clusters())
def test_every_group_that_communicates_has_its_buffers(config: Config):
    layout = Layout(config.parallel)
    for stage in range(config.parallel.stages):
        first = stage * config.parallel.stage_ranks
        together = [
            c for c in collectives(config, stage) if c.op not in ("Send", "Receive")
        ]  # these go by the group of all
        actual = communicators(config, stage)
        groups = {tuple(layout.peers(first, *axes)) for axes in actual}
        assert {tuple(layout.peers(first, *c.axes)) for c in together} == groups
        assert len(groups) == len(actual)


def test_a_host_counted_by_hand():
    stored = 4 * 2 * FFN_SLICE
    assert host_items(by_hand()) == {
        "experts: weights": 4 * stored + 4 * 4 * 2,
        "experts: moments": 8 * stored,
        "experts: on their way": 4 * 4 * 2 * FFN_SLICE,
        "processes": 4 * 4 * GIB,
        "operating system": 16 * GIB,
    }
    assert host_items(by_hand(ecss={"moments": "bfloat16"}))["experts: moments"] == 4 * stored
    assert host_items(by_hand(train={"accumulation": 2}))["experts: on their way"] == 4 * 5 * 2 * FFN_SLICE


def test_experts_in_files_take_at_most_their_cache():
    assert host_items(by_hand(ecss={"store": "file"}))["experts: mapped files"] == 12 * 4 * 2 * FFN_SLICE + 32
    small = by_hand(ecss={"store": "file", "cache_gib": 1e-6})
    assert host_items(small)["experts: mapped files"] == int(4 * 1e-6 * GIB)


ROWS = [{"order": 1, "rows": 5, "width": 2}, {"order": 2, "rows": 1 << 29, "width": 6, "kind": "own"}]


def test_rows_take_what_a_run_can_meet_on_every_rank():
    """4 sequences of 4 tokens a step: 160 tokens meet as many rows, each in a page of its own, or the only 5."""
    config = by_hand(model={"rows": ROWS}, train={"steps": 10})
    rows, whole = 5 * 7 * 4 + 160 * (19 * 4 + 4096), 4 * 4 * 8 * 4
    assert host_items(config) == host_items(by_hand()) | {
        "rows: all that can be met": 4 * rows,
        "rows: gradients of the batch": 4 * whole,
    }
    assert npu_items(config)["rows of tokens and their gradients"] == 8 * 8 * (4 + 4 + 2 * 2)  # of 8 tokens
    twice = by_hand(model={"rows": ROWS}, train={"accumulation": 2})
    assert npu_items(twice)["rows of tokens and their gradients"] == 8 * 8 * (2 * 4 * (1 + 2 + 1) + 2 * 2)


def test_without_ecss_all_stored_experts_are_on_the_npu():
    with_ecss, without = npu_items(by_hand()), npu_items(by_hand(ecss={"enabled": False}))
    stored = 2 * FFN_SLICE
    experts = {name: nbytes for name, nbytes in without.items() if name.startswith("experts")}
    assert experts == {
        "experts: weights": 4 * stored + 2 * 4,
        "experts: moments": 8 * stored,
        "experts: weights in use": 2 * stored,
        "experts: gradients": 2 * stored,
    }
    rest = with_ecss.keys() - {"experts: active weights", "experts: gradients of the active"}
    assert all(with_ecss[name] == without[name] for name in rest)
    assert not any(
        name.startswith("experts") and nbytes for name, nbytes in host_items(by_hand(ecss={"enabled": False})).items()
    )


def test_a_host_of_sixteen_holds_what_two_hosts_of_eight_do():
    """But for what the system takes once."""
    eight, sixteen = (
        host_items(load_config(MODEL_CONFIGS / "sigma_1t.yaml", [("parallel.chip", chip)]))
        for chip in ("910b", "910_93")
    )
    once = {"operating system": 1}
    assert sixteen == {name: once.get(name, 2) * nbytes for name, nbytes in eight.items()}


@given(clusters(), st.sampled_from([2, 3]))
def test_needs_grow_with_sequences_and_capacity_and_fall_with_recompute_and_optimizer_parallelism(
    config: Config, factor: int
):
    def needed(config: Config) -> int:
        return sum(npu_items(config).values())

    train = config.train.model_copy(update={"batch_size": factor * config.train.batch_size})
    assert needed(config) < needed(config.model_copy(update={"train": train}))
    roomier = with_parallel(config, capacity_factor=factor * config.parallel.capacity_factor)
    assert needed(config) <= needed(roomier)
    whole, divided = (npu_items(with_parallel(config, optimizer=o)) for o in (False, True))
    for name in ("dense: weights", "dense: gradients", "dense: moments"):
        assert divided[name] <= whole[name], "between steps"
    if config.model.layers > 1:  # one layer alone is recomputed whole
        assert needed(with_parallel(config, recompute=True)) <= needed(with_parallel(config, recompute=False))
