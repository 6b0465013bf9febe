"""Bench of dispatch and combine, forward and backward, against MindSpore's own operators, torch, and a copy of the same bytes; and
of the dense FFN with each activation.

The last rows give the bytes that the Ascend C kernels would move on a device: arithmetic of the shipped tiling, not a time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.emulation import bytes_ratio
from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch
from experiments.bench.harness import Row, absent, compare, figure, take_turns
from experiments.bench.moe import dense, make_layer
from pangu_sigma.process import use_cpu
from pangu_sigma.sections import Activation

MOVED_TOKENS, MOVED_HIDDEN, MOVED_EXPERTS = 8192, 2560, 16
CASE = f"dispatch+combine fwd+bwd {MOVED_TOKENS}x{MOVED_HIDDEN}"


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: True to compare with torch, if it is installed."""
    use_cpu()
    rng = np.random.default_rng(0)
    x_TH, dout_TH = (rng.standard_normal((MOVED_TOKENS, MOVED_HIDDEN), dtype=np.float32) for _ in range(2))
    order_T = np.argsort(rng.integers(0, MOVED_EXPERTS, MOVED_TOKENS), kind="stable").astype(np.int32)
    inverse_T = np.argsort(order_T).astype(np.int32)
    contenders = {
        "ours": _moves_graph(Moves(ExpertDispatch(), ExpertCombine()), x_TH, (order_T, inverse_T), dout_TH),
        "MindSpore Gather, gradient by the inverse": _moves_graph(
            Moves(Permute(), Permute()), x_TH, (order_T, inverse_T), dout_TH
        ),
        "MindSpore gather, scatter_nd": _mindspore_moves(x_TH, dout_TH, order_T),
        "copy of the same bytes, 2 threads": _copies(x_TH),
    }
    has_torch = importlib.util.find_spec("torch") is not None
    if peers and has_torch:
        contenders["torch index_select, index_add"] = _torch_moves(x_TH, dout_TH, order_T)
    rows = compare("ops", CASE, take_turns(contenders))
    if peers and not has_torch:
        rows.append(absent("ops", CASE, rows[0].ours, "torch index_select, index_add", "ms", rows[0].runs))
    rows += _activations()
    return rows + [_device_traffic(chip, residual) for chip in ("910A", "910B") for residual in (False, True)]


def _activations() -> list[Row]:
    """The dense FFN of `bench moe` with the other activations, forward and backward; a ratio above 1 is what they cost."""
    layer = make_layer()
    contenders = {activation: dense(layer, activation) for activation in get_args(Activation)}
    (tokens, hidden), ffn = layer.x_TH.shape, layer.weights[0].shape[1]
    case = f"FFN fwd+bwd {tokens}x{hidden}x{ffn} with fast_gelu, against the activation"
    return compare("ops", case, take_turns(contenders), ours="fast_gelu")


def _device_traffic(chip: str, residual: bool) -> Row:
    """Bytes that the Ascend C kernel moves by its tiling, over the fewest possible. Nothing is timed."""
    case = f"{'combine' if residual else 'dispatch'} 8192x5120 float16 on {chip}"
    moved = bytes_ratio(8192, 5120, "float16", chip, residual)
    return figure("ops", case, "each row read once, written once", moved, 1.0, "bytes / minimum", lower=True)


class RoundTrip(nn.Cell):
    """Forward and backward of `moves`, for a given gradient of its result. Both are outputs, so MindSpore leaves neither out."""

    def __init__(self, moves: nn.Cell):
        super().__init__()
        self.moves = moves
        self.grad = ops.GradOperation(sens_param=True)

    def construct(self, x, indices, dout):
        return self.moves(x, indices), self.grad(self.moves)(x, indices, dout)


class Moves(nn.Cell):
    """Rows to experts and back."""

    def __init__(self, dispatch: nn.Cell, combine: nn.Cell):
        super().__init__()
        self.dispatch, self.combine = dispatch, combine

    def construct(self, x, indices):
        order, inverse = indices
        return self.combine(self.dispatch(x, order, inverse), inverse, order)


class Permute(nn.Cell):
    """MindSpore's Gather along a permutation, with the gradient that we give ours: the Gather along its inverse. Every row has an
    expert here; for one without, our operators write zeros, and this one another row."""

    def __init__(self):
        super().__init__()
        self.gather = ops.Gather()

    def construct(self, x, index, back):
        return self.gather(x, index, 0)

    def bprop(self, x, index, back, out, dout):
        return self.gather(dout, back, 0), ops.zeros_like(index), ops.zeros_like(back)


class GatherScatter(nn.Cell):
    """MindSpore's own operators for the same moves; MindSpore derives the gradients."""

    def construct(self, x, indices):
        order, rows = indices
        return ops.scatter_nd(rows, ops.gather(x, order, 0), x.shape)


def _moves_graph(
    moves: nn.Cell, x: np.ndarray, indices: tuple[np.ndarray, np.ndarray], dout: np.ndarray
) -> Callable[[], Any]:
    trip, inputs = RoundTrip(moves), (Tensor(x), (Tensor(indices[0]), Tensor(indices[1])), Tensor(dout))

    def work() -> None:
        for tensor in trip(*inputs):
            tensor.asnumpy()  # waits for the result; on the CPU it is a view and no copy

    return work


def _mindspore_moves(x_TH: np.ndarray, dout_TH: np.ndarray, order_T: np.ndarray) -> Callable[[], Any]:
    return _moves_graph(GatherScatter(), x_TH, (order_T, order_T[:, None]), dout_TH)


def _torch_moves(x_TH: np.ndarray, dout_TH: np.ndarray, order_T: np.ndarray) -> Callable[[], Any]:
    import torch

    x, dout, order = torch.from_numpy(x_TH), torch.from_numpy(dout_TH), torch.from_numpy(order_T).long()

    def work() -> None:
        leaf = x.requires_grad_()
        leaf.grad = None
        rows = torch.index_select(leaf, 0, order)
        torch.zeros_like(leaf).index_add(0, order, rows).backward(dout)

    return work


def _copies(x_TH: np.ndarray) -> Callable[[], Any]:
    """Work of four copies: dispatch, combine and their gradients each read and write every byte. A thread takes half the rows."""
    targets, half = [np.empty_like(x_TH) for _ in range(4)], MOVED_TOKENS // 2
    pool = ThreadPoolExecutor(2)

    def work() -> None:
        for target in targets:
            list(pool.map(lambda rows, t=target: np.copyto(t[rows], x_TH[rows]), (slice(half), slice(half, None))))

    return work
