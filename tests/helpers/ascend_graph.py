"""Program of test_front_compiles_for_eight_ascend_ranks: dispatch → tensor-parallel MatMuls → combine, with gradients."""

from __future__ import annotations

import os
import re
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import init
from mindspore.communication._comm_helper import GlobalComm

GlobalComm.CHECK_ENVS = False
ms.set_context(mode=ms.GRAPH_MODE, device_target="Ascend", save_graphs=1, save_graphs_path="ir")
init()
ms.set_auto_parallel_context(parallel_mode="semi_auto_parallel", full_batch=True)

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch  # noqa: E402 (constructed for the target)

RANKS, TOKENS, HIDDEN = int(os.environ["RANK_SIZE"]), 64, 32


class Net(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.dispatch, self.combine = ExpertDispatch(), ExpertCombine()
        self.up = ops.MatMul().shard(((1, 1), (1, RANKS)))
        self.down = ops.MatMul().shard(((1, RANKS), (RANKS, 1)))
        self.w1, self.w2 = (Parameter(Tensor(np.zeros((HIDDEN, HIDDEN), np.float16)), name=n) for n in ("w1", "w2"))
        self.sum = ops.ReduceSum()

    def construct(self, x, order, inverse):
        rows = self.down(self.up(self.dispatch(x, order, inverse), self.w1), self.w2)
        return self.sum(self.combine(rows, inverse, order, x))


class Step(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        net = Net()
        self.loss_and_grads = ms.value_and_grad(net, 0, ms.ParameterTuple(net.trainable_params()))

    def construct(self, x, order, inverse):
        loss, grads = self.loss_and_grads(x, order, inverse)
        return loss, grads[0], grads[1][0], grads[1][1]


rows, index = Tensor(np.zeros((TOKENS, HIDDEN), np.float16)), Tensor(np.zeros(TOKENS, np.int32))
Step().compile(rows, index, index)
graph = max(Path("ir").rglob("*_validate_*.ir")).read_text(encoding="utf-8")
names = [f"aclnn{name}" for name in ("ExpertDispatch", "ExpertCombine")]
counts = [f"{name} {len(re.findall(f'uniq_name: .[^,]*_{name}.,', graph))}" for name in names]
collectives = ("AllReduce", "AllGather", "AlltoAll", "ReduceScatter")
counts += [f"{name} {len(re.findall(rf'{name}[(]', graph))}" for name in collectives]
print("compiled:", *counts, flush=True)
os._exit(0)
