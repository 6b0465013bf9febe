"""Memory of small cases counted by hand, and what must hold for all."""

from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_clusters import MODEL_CONFIGS, by_hand, clusters

from pangu_sigma.config import Config, load_config
from pangu_sigma.parallel.machine import GIB, HOST_MEMORY, NPU_MEMORY
from pangu_sigma.parallel.memory import capacity, exchanged_rows, host_items, npu_items, tokens_of_rank, total
from pangu_sigma.parallel.suggest import with_parallel

FFN_SLICE = 8 * 8 + 8 + 8 * 8 + 8
"""w1 and w2 [16/2, 8], b1 [16/2], b2 [8]."""
ATTENTION_SLICE = 3 * (8 * 4 + 4) + 4 * 8 + 8
NORM = 2 * 8
DENSE_SLICE = 16 * 8 + 2 * 4 * 8 + 2 * (ATTENTION_SLICE + 2 * NORM) + FFN_SLICE + NORM


def npu(config: Config) -> dict[str, int]:
    return {item.name: item.nbytes for item in npu_items(config)}


def host(config: Config) -> dict[str, int]:
    return {item.name: item.nbytes for item in host_items(config)}


def test_an_npu_counted_by_hand():
    config = by_hand()
    assert (tokens_of_rank(config), capacity(config), exchanged_rows(config)) == (8, 8, 16)
    every_layer = 8 * 8 * (4 + 4 + 8) + 4 * 2 * 8 * 4 + 2 * 1 * 4 * 4 * (4 + 2)
    dense, routed = every_layer + 2 * 2 * 8 * 8, every_layer + 2 * 16 * 8 + 2 * 2 * 16 * 8
    assert npu(config) == {
        "dense: weights": 4 * DENSE_SLICE,
        "dense: gradients": 4 * DENSE_SLICE,
        "dense: moments": 8 * DENSE_SLICE,
        "dense: weights in use": 2 * (2 * ATTENTION_SLICE + FFN_SLICE),
        "dense: slots of the logits": 2 * 16 * 8,
        "dense: gradients being summed": 4 * 16 * 8,
        "experts: active weights": 2 * 2 * FFN_SLICE,
        "experts: gradients of the active": 2 * FFN_SLICE,
        "activations kept": dense + routed,
        "largest transient": routed,
        "attention mask": 2 * 4 * 4 * 4,
        "communication buffers": 3 * 400 << 20,
        "reserve": GIB,
    }


def test_recompute_keeps_inputs_and_one_layer():
    every_layer = 8 * 8 * 16 + 256 + 192
    found = npu(by_hand(parallel={"expert": 2, "tensor": 2, "fusion_mib": 0, "recompute": True}))
    assert found["activations kept"] == 2 * 2 * 8 * 8
    assert found["largest transient"] == 2 * (every_layer + 256 + 512)


def test_a_host_counted_by_hand():
    stored = 4 * 2 * FFN_SLICE
    assert host(by_hand()) == {
        "experts: weights": 4 * stored,
        "experts: moments": 8 * stored,
        "experts: step counts": 4 * 4 * 2,
        "rows on their way": 4 * 3 * 2 * FFN_SLICE,
        "processes": 4 * 4 * GIB,
        "operating system": 16 * GIB,
    }
    assert host(by_hand(ecss={"moments": "bfloat16"}))["experts: moments"] == 4 * stored


def test_experts_in_files_take_at_most_their_cache():
    assert host(by_hand(ecss={"store": "file"}))["experts: mapped files"] == 12 * 4 * 2 * FFN_SLICE + 32
    small = by_hand(ecss={"store": "file", "cache_gib": 1e-6})
    assert host(small)["experts: mapped files"] == int(4 * 1e-6 * GIB)


def test_without_ecss_all_stored_experts_are_on_the_npu():
    with_ecss, without = npu(by_hand()), npu(by_hand(ecss={"enabled": False}))
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
        name.startswith("experts") and nbytes for name, nbytes in host(by_hand(ecss={"enabled": False})).items()
    )


def test_passes_keep_a_sum_of_gradients():
    one, two = by_hand(), by_hand(train={"batch_size": 4, "accumulation": 2, "compute_dtype": "float16"})
    added = {name: npu(two)[name] - nbytes for name, nbytes in npu(one).items()}
    assert {name for name, nbytes in added.items() if nbytes} == {
        "dense: gradients",
        "experts: gradients of the active",
    }


def test_the_trillion_fits_its_512_npus_and_64_hosts_with_ecss_only():
    config = load_config(MODEL_CONFIGS / "sigma_1t.yaml")
    assert config.parallel.ranks == 512
    assert total(npu_items(config)) <= 32 * 10**9 < NPU_MEMORY
    assert total(host_items(config)) <= HOST_MEMORY
    without_ecss = load_config(MODEL_CONFIGS / "sigma_1t.yaml", ["ecss.enabled=false"])
    assert total(npu_items(without_ecss)) > NPU_MEMORY
    assert total(npu_items(with_parallel(config, recompute=False))) > NPU_MEMORY


@settings(deadline=None)
@given(clusters())
def test_recompute_never_needs_more(config: Config):
    assume(config.model.layers > 1)  # one layer alone is recomputed whole
    kept, recomputed = (total(npu_items(with_parallel(config, recompute=r))) for r in (False, True))
    assert recomputed <= kept


@settings(deadline=None)
@given(clusters())
def test_optimizer_parallelism_never_keeps_more_between_steps(config: Config):
    whole, divided = (npu(with_parallel(config, optimizer=o)) for o in (False, True))
    for name in ("dense: weights", "dense: gradients", "dense: moments"):
        assert divided[name] <= whole[name]


@settings(deadline=None)
@given(clusters(), st.sampled_from([2, 3]))
def test_more_sequences_and_more_capacity_never_need_less(config: Config, factor: int):
    train = config.train.model_copy(update={"batch_size": factor * config.train.batch_size})
    larger = config.model_copy(update={"train": train})
    roomier = with_parallel(config, capacity_factor=factor * config.parallel.capacity_factor)
    assert total(npu_items(config)) < total(npu_items(larger))
    assert total(npu_items(config)) <= total(npu_items(roomier))
