"""The training step compiled for Ascend, here: MindSpore places and cuts what the plan predicts, and says why when it refuses.

Every case starts a process that compiles; the shipped configurations at their full sizes are slow ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.actors import actors_of, kept_apart, read_actors
from helpers.small_clusters import MODEL_CONFIGS

from pangu_sigma.chips import CHIP_DATA
from pangu_sigma.config import Config
from pangu_sigma.config_file import load_config
from pangu_sigma.npu.cuts import accumulator_arrays, active_buffers, dense_weights, only_micro_batches_sum
from pangu_sigma.npu.plan import compile as compile_module
from pangu_sigma.npu.plan.compile import Compiled, PlanRefused, compile_step, read_graph
from pangu_sigma.npu.plan.differences import compiled_sections
from pangu_sigma.npu.plan.plan import laid_out
from pangu_sigma.npu.row_counts import dispatch_layout, gather_operator
from pangu_sigma.ranks.layout import rre_layers_of_stage

TINY = MODEL_CONFIGS / "sigma_tiny.yaml"
SMALL = [
    "model.dense_layers=1",
    "model.rre_layers=1",
    "model.seq_length=32",
    "model.slot_rows=256",
    "train.batch_size=16",
    "train.compute_dtype=float16",
]


def counted(compiled: Compiled, **expected: object) -> int:
    return sum(c.count for c in compiled.collectives if all(getattr(c, k) == v for k, v in expected.items()))


def check(config: Config) -> list[Compiled]:
    """What must hold of every plan; the step of the first rank of each stage."""
    parallel, passes = config.parallel, config.train.accumulation
    stages = [compile_step(config, rank) for rank in range(0, parallel.ranks, parallel.stage_ranks)]
    assert compiled_sections(config, stages)["differences"] == []
    for stage, compiled in enumerate(stages):
        routed = len(rre_layers_of_stage(config, stage)) * len(config.model.segments)
        # micro-batches, with stages or without, share the look-ups of a step
        of_worker = {"FetchStored": routed, "StartUpdate": routed}
        if only_micro_batches_sum(config):
            of_worker["Add"] = len(active_buffers(config, stage))
        assert compiled.host_operators == (of_worker if routed else {})
        exchanges = 2 * routed * passes if parallel.expert > 1 else 0
        dropless = dispatch_layout(config) == "dropless"
        op, other = ("AlltoAllV", "AlltoAll") if dropless else ("AlltoAll", "AlltoAllV")
        assert counted(compiled, op=other) == 0
        for phase in ("forward", "backward"):
            # rows to experts and back, inside one group of ranks and nowhere else
            assert counted(compiled, op=op, phase=phase) == exchanges
            assert counted(compiled, op=op, phase=phase, group_size=parallel.expert) == exchanges
        again = exchanges // 2 if parallel.recompute else 0  # the way back is not needed for any gradient
        assert counted(compiled, op=op, phase="recompute") == again
        # two products of a segment, two gradients of each; the first is computed again
        grouped = routed * passes * (2 + 4 + parallel.recompute)
        assert compiled.operators.get("GroupedMatmul", 0) == (grouped if dropless else 0)
        own = compiled.operators.get("Custom", 0) - sum(compiled.host_operators.values())
        assert (own > 0) == (routed > 0 and gather_operator(config) == "ours"), "the kernels that have to be installed"
        flags = sum(count for name, count in compiled.operators.items() if name.startswith("NPUGetFloatStatus"))
        assert flags == CHIP_DATA[parallel.chip].saturates, "the flag of overflow is read where overflow is hidden"
        dense = [w for w in dense_weights(config, stage) if len(w.shape) == 2]
        assert counted(compiled, op="AllGather", phase="weight") <= len(dense)  # never an expert
    check_sums(config, stages)
    return stages


def check_sums(config: Config, stages: list[Compiled]) -> None:
    """The gradient of every micro-batch reaches the accumulator of every weight; of the word table that of both of its uses."""
    passes, last = config.train.accumulation, len(stages) - 1
    for stage, compiled in enumerate(stages):
        summed = [a.name.removesuffix(".accumulated") for a in accumulator_arrays(config, stage)]
        expected = dict.fromkeys(summed, passes)
        if stage == 0 and "embedding" in expected:
            # looked up and multiplied with; or looked up, and what the last stage sends for all micro-batches together
            expected["embedding"] = 2 * passes if last == 0 else passes + 1
        assert compiled.additions == expected


RECOMPUTE = {"groups": 2, "expert": 2, "tensor": 2, "recompute": True}
STAGES = {"stages": 2, "expert": 2, "tensor": 2}
ALL_AXES = {"groups": 2, "expert": 2, "tensor": 2}

APART = {"groups": 2, "expert": 4, "optimizer": False}
REPLICAS = {"expert": 2, "data": 2, "tensor": 2}

B16 = ["parallel.chip=910b", "train.compute_dtype=bfloat16"]

OWN = ["model.segments=[own, own]", "model.common_experts=0"]
SOME = ["model.segments=[own, common]", "model.common_experts=8"]
ROWS = ["model.rows=[{order: 1, rows: 99, width: 64}, {order: 2, rows: 1000000, width: 128, kind: own}]"]
RANKS_64 = {"groups": 2, "expert": 4, "data": 2, "tensor": 4, "recompute": True}
WIDE = ["model.heads=8", "train.batch_size=32"]

QUICK: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one NPU": ({"groups": 1}, []),  # MindSpore refused it once, although more of them compiled
    "recompute": (RECOMPUTE, []),
    "910B, common segments": (ALL_AXES, [*B16, *SOME]),
}

LONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "910B": (ALL_AXES, B16),
    "910B, replicas, recompute, two passes": (REPLICAS | {"recompute": True}, [*B16, "train.accumulation=2"]),
    "910B, no optimizer parallelism": (APART, B16),
    "910B, one expert rank": ({"groups": 2, "data": 4}, B16),
    "910B, our kernels, erf": (ALL_AXES, [*B16, "parallel.gather=ours", "model.activation=erf"]),
    "910B, every rank in the tensor group": ({"tensor": 8, "recompute": True}, [*B16, "model.heads=8"]),
    "910B, float16": (ALL_AXES, ["parallel.chip=910b"]),
    "910B, two stages, which are compacted": (STAGES, [*B16, "train.accumulation=2"]),
    "910B, two own segments, 64 ranks": (RANKS_64, [*B16, *WIDE, *OWN]),
    "910B, common segments, replicas, two passes": (REPLICAS, [*B16, *SOME, "train.accumulation=2"]),
    "910B, rows, recompute": (RECOMPUTE, [*B16, *ROWS]),
    "910_93": (ALL_AXES, ["parallel.chip=910_93", "train.compute_dtype=bfloat16"]),
    "rows, two passes": (REPLICAS, [*ROWS, "train.accumulation=2"]),
    "rows, an only layer, float32": (RECOMPUTE, [*ROWS, "model.dense_layers=0", "train.compute_dtype=float32"]),
    "rows, two stages": (STAGES, [*ROWS, "train.accumulation=2", "model.dense_layers=2"]),
    "dense": ({"data": 4, "tensor": 2}, ["model.rre_layers=0", "model.dense_layers=2"]),
    "groups and experts": ({"groups": 4, "expert": 2}, []),
    "an only layer": (RECOMPUTE, ["model.dense_layers=0"]),
    "float32, tanh": (ALL_AXES, ["train.compute_dtype=float32", "model.activation=tanh"]),
    "common segments, 64 ranks": (RANKS_64, [*WIDE, *SOME]),
    "common segments, groups alone": ({"groups": 2}, SOME),
    "four segments, recompute": (RECOMPUTE, ["model.segments=[own, own, common, common]", "model.common_experts=6"]),
    "common segments, two stages": (
        {"stages": 2, "groups": 2, "expert": 2},
        [*SOME, "train.accumulation=2", "model.rre_layers=2"],
    ),
    "one and a half sequences a tensor rank": (ALL_AXES, ["train.batch_size=12"]),
    "bfloat16 moments": (ALL_AXES, ["ecss.moments=bfloat16"]),
    "three passes, recompute": (RECOMPUTE, ["train.accumulation=3"]),
    "two passes, no optimizer parallelism": (APART, ["train.accumulation=2"]),
    "two stages, one with experts, no optimizer parallelism": (
        STAGES | {"optimizer": False},
        ["train.accumulation=2", "model.dense_layers=2"],
    ),
    "two stages, both with experts": (
        STAGES | {"groups": 2, "recompute": True},
        ["train.accumulation=3", "model.rre_layers=3"],
    ),
    "four stages": (
        {"stages": 4, "expert": 2},
        ["train.accumulation=4", "model.dense_layers=2", "model.rre_layers=3"],
    ),
}


def laid(axes: dict[str, Any], *overrides: str) -> Config:
    sets = axes.get("groups", 1)
    section = "{" + ", ".join(f"{key}: {str(value).lower()}" for key, value in axes.items()) + "}"
    data = [f"data.domain_sets={sets}", f"data.domains_per_step={sets}"]
    return load_config(TINY, [*SMALL, *data, f"parallel={section}", *overrides])


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_the_compiled_step_is_the_predicted_one(name: str):
    axes, overrides = (QUICK | LONG)[name]
    check(laid(axes, *overrides))


def test_a_compilation_that_is_killed_says_what_memory_grows_with(monkeypatch):
    monkeypatch.setattr(compile_module, "_wait", lambda process, description: (process.kill(), process.wait()))
    with pytest.raises(PlanRefused, match=r"^compiling the step was killed by signal 9, .*for lack of memory"):
        compile_step(laid({"groups": 2}))


@pytest.mark.parametrize("layers", [2, pytest.param(3, marks=pytest.mark.slow)], ids=["equal", "of one layer and two"])
def test_dense_stages_send_hidden_states_and_the_word_table(layers: int):
    """8 sequences of 32 tokens a rank and micro-batch, hidden 192, float16; of the table a tensor rank's half, float32."""
    dense = ["model.rre_layers=0", f"model.dense_layers={layers}", "train.accumulation=2"]
    config = load_config(TINY, [*SMALL, *dense, "parallel={stages: 2, data: 2, tensor: 2}"])
    hidden, table = 8 * 32 * 192 * 2, 4 * 256 * 96 * 4
    for compiled, there, back in zip(check(config), ("Send", "Receive"), ("Receive", "Send"), strict=True):
        for op, phase in ((there, "forward"), (back, "backward")):
            calls = [c for c in compiled.collectives if (c.op, c.phase) == (op, phase)]
            assert sum(c.count for c in calls) == 2 + 1
            assert sum(c.nbytes for c in calls) == 2 * hidden + table


def test_a_plan_that_mindspore_refuses_says_why_in_one_message(monkeypatch: pytest.MonkeyPatch):
    started = compile_module.ascend_environment
    monkeypatch.setattr(compile_module, "ascend_environment", lambda ranks, rank: started(ranks // 2, rank))
    with pytest.raises(PlanRefused, match=r"^MindSpore refuses this plan: .*device number in one stage 4") as refused:
        compile_step(laid({"groups": 4, "expert": 2}, "model.dense_layers=0"))
    assert "\n" not in str(refused.value)
    assert "Call Stack" not in str(refused.value)


INSIDE = "      # Fullname with scope: (Default/network-ActiveExperts/loss-NextTokenLoss/MatMul-op0)\n"


@pytest.mark.parametrize("first", ["the write", "the read"])
def test_a_write_whose_place_memory_alone_holds_is_seen(first: str):
    """The active experts were once assigned in front of the network: with stages MindSpore let it read them before, and without
    stages a later pass, which no saved graph of the front end shows, did so too."""
    write = '  %2(a) = Custom(%para1_x) {func_name: "/x/ops.so:FetchStored", primitive_target: "CPU"}\n'
    write += "  %3(b) = PrimFunc_Assign(%para2_active.0.w1, %2, UMonad[U]) {instance name: assign}\n"
    write += "  %4(c) = UpdateState(UMonad[U], %3)\n"
    read = f"  %5(d) = Load(%para2_active.0.w1, {'%4' if first == 'the write' else 'UMonad[U]'})\n{INSIDE}"
    read += f"  %6(e) = PrimFunc_MatMul(%5, %5) {{instance name: up}}\n{INSIDE}"
    graph = write + read if first == "the write" else read + write
    after = "  %7(f) = Mul(%6, %6)\n  %8(g) = PrimFunc_Assign(%para3_pass_scale, %7, %4)\n"
    actual = read_graph(iter((graph + after).splitlines(keepends=True)), 8)
    assert actual["early_writes"] == ["active.0.w1"]


BACKEND = ["model.hidden=96", "model.ffn=384", "model.heads=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "rank", "overrides"),
    [(ALL_AXES, 0, SOME), (STAGES, 4, ["train.accumulation=2"])],
    ids=["common segments", "the last of two stages"],
)
def test_in_the_backend_the_store_stays_on_the_host_and_reads_come_before_writes(axes, rank, overrides, tmp_path: Path):
    """910B and 910_93 cannot be built so: the backend refuses AlltoAllV without a device."""
    assert kept_apart(actors_of(laid(axes, *BACKEND, *overrides), rank, tmp_path)) == []


def test_the_faults_of_a_step_that_assigned_its_experts_are_seen():
    """Lines of a step that the backend built when the network read the experts of the step before, and the host's store was copied
    to the NPU after each update."""
    actors = read_actors(
        "%1 = kernel_graph7:TensorMove-op26(%param_active.0.w1) op control(%0)\n"
        "%2 = kernel_graph3:Assign-op0(%param_active.0.w1, %9[0]) op control(%1)\n"
        "%3 = kernel_graph8:Custom-op2(%param_experts.0.w1, %2[0])\n"
        "%4 = CopyActor(%param_experts.0.w1) op control(%3)\n"
        "%5 = kernel_graph9:Assign-op11(%param_pass_scale, %4[0])\n"
        "%6 = kernel_graph9:Mul-op0(%param_pass_scale, %5[0])\n"
    )
    assert kept_apart(actors) == [
        "experts.0.w1 is copied, all of it",
        "active.0.w1 is written in the step",
        "pass_scale is read behind its write",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["910a", "910b", "910_93"])
@pytest.mark.parametrize(("devices", "batch"), [(24, 48), (40, 80)])
def test_odd_numbers_of_npus_compile_as_suggested(devices: int, batch: int, chip: str):
    """24 NPUs of 910A were once suggested as data 3 and tensor 2, of which MindSpore refuses the group of ranks 0, 2 and 4."""
    check(laid_out(load_config(TINY, [*SMALL, f"train.batch_size={batch}", ("parallel.chip", chip)]), devices))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "devices", "chip"),
    [
        ("sigma_tiny", 8, "910a"),
        ("sigma_38b", 16, "910a"),
        ("sigma_38b", 64, "910a"),
        ("sigma_38b", 128, "910a"),
        ("sigma_1t", 512, "910a"),
        ("sigma_38b", 8, "910b"),
        ("sigma_38b", 64, "910b"),
        ("sigma_1t", 512, "910b"),
    ],
)
def test_shipped_configurations_compile(name: str, devices: int, chip: str):
    config = load_config(MODEL_CONFIGS / f"{name}.yaml", [f"parallel.chip={chip}"])
    (compiled,) = check(laid_out(config, devices))
    assert compiled.seconds < 15 * 60
    assert compiled.peak_gib < 12
    if name == "sigma_1t":
        slices = {p.name: p.slice for p in compiled.parameters}
        assert slices["active.0.w1"] == [1, 2560, 5120]
        assert {p.name: p.slice for p in compiled.stored}["experts.7.w2"] == [10, 2560, 5120]
        assert {c.group_size for c in compiled.collectives if c.op.startswith("AlltoAll")} == {16}
        dtypes = {p.dtype for p in compiled.parameters if p.name.startswith("active.")}
        assert dtypes == {"bfloat16" if chip == "910b" else "float16"}
