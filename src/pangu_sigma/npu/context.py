"""Set-up of MindSpore on the Ascend ranks of a run."""

from __future__ import annotations

import os

import mindspore as ms

from pangu_sigma.config import Config
from pangu_sigma.npu.inputs import input_strategies
from pangu_sigma.process import refuse_compile_cache


def target_ascend() -> None:
    """Set MindSpore to graph mode for Ascend, for this process. If MS_SIMULATION_LEVEL is set, nothing runs and no device is needed
    (npu/plan/cann_stub.py)."""
    from mindspore.communication._comm_helper import GlobalComm

    refuse_compile_cache()
    if "MS_SIMULATION_LEVEL" in os.environ:
        GlobalComm.CHECK_ENVS = False  # it would look for HCCL's Python package
    ms.set_context(mode=ms.GRAPH_MODE, device_target="Ascend")


def use_ascend(config: Config, save_graphs: str | None = None) -> None:
    """Set MindSpore to graph mode under auto-parallel, for this process as one of the Ascend ranks of `config.parallel`.

    save_graphs: folder in which MindSpore saves its graphs; None to save none.
    """
    from mindspore.communication import init

    os.environ["PIPELINE_SLICE_SKIP_REDISTRIBUTION"] = "1"  # every rank cuts micro-batches out of its own rows
    target_ascend()
    # The step has operators on the host (fetch and Adam of the experts) between operators on the NPU. Kernel by kernel, level O0,
    # runs both. Left alone, MindSpore takes O2 for 910A: one graph of CANN's GraphEngine, which has no operators on the host.
    ms.set_context(jit_config={"jit_level": "O0"})
    ms.set_recursion_limit(4_000)  # 40 layers with four segments are deeper than MindSpore's 1,000 calls
    if save_graphs is not None:
        ms.set_context(save_graphs=1, save_graphs_path=save_graphs)
    init()
    ms.set_seed(config.seed)
    parallel = config.parallel
    fusion = {"mode": "size", "config": parallel.fusion_mib} if parallel.fusion_mib else None
    ms.set_auto_parallel_context(
        parallel_mode="semi_auto_parallel",
        pipeline_stages=parallel.stages,
        enable_alltoall=True,
        dataset_strategy=input_strategies(config),  # each rank reads its own rows
        # always on with accumulation: without it the summed gradients would be in the accumulators and nowhere else
        enable_parallel_optimizer=parallel.optimizer or config.train.accumulation > 1,
        parallel_optimizer_config={"parallel_optimizer_threshold": 0},  # npu/sharding.py chooses
        comm_fusion=dict.fromkeys(("allreduce", "allgather", "reducescatter"), fusion) if fusion else {},
    )
