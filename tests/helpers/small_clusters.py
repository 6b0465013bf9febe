"""Configurations for tests of plans: one small enough to count by hand, and a strategy for all kinds of layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config

MODEL_CONFIGS = Path(__file__).parents[2] / "model_configs"


def by_hand(**sections: Any) -> Config:
    """2 domains of 2 experts on 2 expert x 2 tensor ranks: a rank sees 2 sequences of 4 tokens and keeps 1 active expert of 2.
    `sections` override keys of the sections they name, or replace a list."""
    tree: dict[str, Any] = {
        "name": "by_hand",
        "model": {
            "hidden": 8,
            "ffn": 16,
            "heads": 2,
            "dense_layers": 1,
            "rre_layers": 1,
            "experts_per_domain": 2,
            "seq_length": 4,
            "slot_rows": 16,
        },
        "domains": [{"name": "a"}, {"name": "b"}],
        "data": {"path": "no prepared data"},
        "train": {"batch_size": 4, "compute_dtype": "float16"},
        "parallel": {"expert": 2, "tensor": 2, "fusion_mib": 0},
    }
    for name, keys in sections.items():
        tree[name] = tree.get(name, {}) | keys if isinstance(keys, dict) else keys
    return parse_config(tree)


@st.composite
def clusters(draw: st.DrawFn) -> Config:
    """Any combination of axes, on a model whose parts they divide; large enough for optimizer parallelism to divide something."""
    axes = {name: draw(st.sampled_from([1, 2, 4])) for name in ("groups", "expert", "data", "tensor")}
    stages = draw(st.sampled_from([1, 2]))
    groups, sequences = axes["groups"], axes["expert"] * axes["data"] * draw(st.integers(1, 3))
    dense, routed = draw(st.integers(stages - 1, 2)), draw(st.integers(0, 2))
    dense = max(dense, stages - routed)
    segments = draw(st.sampled_from([["own"], ["own", "own"], ["own", "common"]]))
    return by_hand(
        model={
            "hidden": 128,
            "ffn": 256,
            "heads": 4,
            "dense_layers": dense,
            "rre_layers": routed,
            "experts_per_domain": 4,
            "segments": segments,
            "common_experts": 8 * ("common" in segments),
            "slot_rows": 256,
        },
        domains=[{"name": f"d{i}", "slot": f"s{i % 2}"} for i in range(2 * groups)],
        data={"domain_sets": groups, "domains_per_step": groups},
        train={
            "batch_size": groups * sequences,
            "accumulation": draw(st.integers(stages, 3)),
            "compute_dtype": draw(st.sampled_from(["float16", "float32"])),
        },
        ecss={"enabled": draw(st.booleans())},
        parallel=axes | {"stages": stages, "optimizer": draw(st.booleans()), "recompute": draw(st.booleans())},
    )
