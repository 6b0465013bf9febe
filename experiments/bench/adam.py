"""Bench of the host optimizer: the kernel by itself, and the whole pipeline around it, against torch, DeepSpeed and MindSpore.

The pipeline is all that a step in half precision with weights on the host needs: norm of the gradients, unscaling, clipping, AdamW,
a half-precision copy of the weights for the device. Ours is two passes over memory; peers are called the
way their users call them.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mutable, nn, ops

from ascend_ops.adam import HYPER, AdamRows, SquareSum
from ascend_ops.half import CastWeights
from ascend_ops.library import FLAGS, cache_folder, compile_library
from experiments.bench.harness import Row, absent, compare, take_turns
from pangu_sigma.model.declare import wrap_array
from pangu_sigma.process import use_cpu

TENSORS, SIZE = 48, 1 << 20
LR, BETAS, EPS, DECAY, SCALE, CLIP = 1e-4, (0.9, 0.999), 1e-8, 0.01, 1024.0, 1.0
DEEPSPEED, FUSED = "DeepSpeedCPUAdam", "torch AdamW fused"


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: True to compare with torch and DeepSpeed, if they are installed."""
    use_cpu()
    arrays = Arrays.of(TENSORS, 1, SIZE)
    ours = HostAdam(arrays, 1)
    kernel: dict[str, Callable[[], Any]] = {
        "ours": ours.kernel,
        "memory traffic of Adam alone": _traffic(),
        "MindSpore nn.AdamWeightDecay": _mindspore_adam(),
    }
    pipeline: dict[str, Callable[[], Any]] = {"ours": ours.pipeline}
    missing = []
    if peers:
        for name, make in ((FUSED, torch_fused), (DEEPSPEED, deepspeed_adam)):
            if not installed(name):
                missing.append(name)
                continue
            peer = TorchAdam(make, arrays.weights)
            kernel[name], pipeline[name] = peer.kernel, peer.pipeline
    size = f"{TENSORS * SIZE / 1e6:.0f} M parameters"
    rows = []
    for what, contenders in (("kernel", kernel), ("pipeline", pipeline)):
        if len(contenders) > 1:
            rows += compare("adam", f"{what}, {size}", take_turns(contenders))
        rows += [absent("adam", f"{what}, {size}", rows[0].ours, name, "ms", rows[0].runs) for name in missing]
    return rows


@dataclass(frozen=True)
class Arrays:
    """Stored rows with their Adam state, which several contenders may update: the rows do not care who does."""

    weights: list[np.ndarray]
    moments: list[np.ndarray]
    variances: list[np.ndarray]

    @classmethod
    def of(cls, tensors: int, rows: int, size: int) -> Arrays:
        """New arrays [rows, size]."""
        return cls(*([np.full((rows, size), value, np.float32) for _ in range(tensors)] for value in (0.02, 0.0, 0.0)))


class _Update(nn.Cell):
    """AdamW over stored rows in one graph. half: True for everything around it, too: norm, clipping, and the weights in float16."""

    def __init__(self, arrays: Arrays, half: bool):
        super().__init__()
        self.w, self.m, self.v = (
            ParameterTuple([wrap_array(f"{kind}.{i}", array, decay=False) for i, array in enumerate(of_kind)])
            for kind, of_kind in (("w", arrays.weights), ("m", arrays.moments), ("v", arrays.variances))
        )
        tensors, rows = len(arrays.weights), len(arrays.weights[0])
        self.step = Parameter(Tensor(np.zeros(rows, np.int32)), name="step")
        self.decay = Tensor(np.full(tensors, DECAY, np.float32))
        fixed = {"lr": LR, "apply": 1.0, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}
        self.fixed = Tensor(np.array([fixed.get(name, 0.0) for name in HYPER], np.float32))
        self.scale_at = Tensor(np.eye(len(HYPER), dtype=np.float32)[HYPER.index("grad_scale")])
        self.adam, self.square_sum, self.cast, self.half = AdamRows(), SquareSum(), CastWeights(ms.float16), half

    def construct(self, active_A, offsets_A1, grads):
        if not self.half:
            hyper = self.fixed + self.scale_at
            return self.adam(self.w, self.m, self.v, grads, self.step, active_A, offsets_A1, hyper, self.decay)
        norm = ops.sqrt(self.square_sum(grads)) / SCALE
        hyper = self.fixed + self.scale_at * ops.minimum(CLIP / (norm + 1e-6), 1.0) / SCALE
        updated = self.adam(self.w, self.m, self.v, grads, self.step, active_A, offsets_A1, hyper, self.decay)
        halves: tuple = ()
        for weight in self.w:
            halves += (self.cast(ops.depend(weight, updated)),)
        return halves


class HostAdam:
    """Our update of the first `active` rows of `arrays`."""

    def __init__(self, arrays: Arrays, active: int):
        self._kernel, self._pipeline = _Update(arrays, False), _Update(arrays, True)
        numbers = np.arange(active, dtype=np.int32)
        self._plan = [Tensor(a) for a in (numbers, np.arange(active + 1, dtype=np.int32))]
        shapes = [(active, weight.shape[1]) for weight in arrays.weights]
        # mutable: a graph takes other tuples for constants, and equal constants for one
        self._grads = mutable(tuple(Tensor(np.full(shape, 1e-3, np.float32)) for shape in shapes))

    def kernel(self) -> None:
        self._kernel(*self._plan, self._grads).asnumpy()

    def pipeline(self) -> list[np.ndarray]:
        """Return the weights of all rows in float16."""
        return [half.asnumpy() for half in self._pipeline(*self._plan, self._grads)]


class TorchAdam:
    """An optimizer of torch's interface over `weights`, and the pipeline that its users write around it."""

    def __init__(self, make: Callable[[list[Any]], Any], weights: list[np.ndarray]):
        import torch

        self.torch = torch
        self.parameters = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
        for parameter in self.parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        self.grads = [parameter.grad for parameter in self.parameters]
        self.half = [torch.zeros(w.shape, dtype=torch.float16) for w in weights]
        self.optimizer = make(self.parameters)

    def kernel(self) -> None:
        self.optimizer.step()

    def pipeline(self) -> None:
        torch = self.torch
        with torch.no_grad():
            torch._foreach_mul_(self.grads, 1 / SCALE)
            torch.nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
            self.optimizer.step()
            torch._foreach_copy_(self.half, self.parameters)
            torch._foreach_zero_(self.grads)


def torch_fused(parameters: list[Any]) -> Any:
    """The fused AdamW of torch."""
    import torch

    return torch.optim.AdamW(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)


def deepspeed_adam(parameters: list[Any]) -> Any:
    """DeepSpeed's CPU Adam. The first call compiles its C++."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, adamw_mode=True)


def installed(peer: str) -> bool:
    """True if the packages of a peer are installed."""
    packages = ["torch", "deepspeed"] if peer == DEEPSPEED else ["torch"]
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _traffic() -> Callable[[], Any]:
    """Work that moves as many bytes as Adam does and computes nothing.

    It goes tensor by tensor: four streams that are a power of two apart would share the same lines of the caches.
    """
    source = Path(__file__).with_name("adam_traffic.cc")
    library = cache_folder() / f"adam_traffic_{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not library.exists():
        compile_library(library, [*FLAGS, str(source)], "the traffic of Adam")
    function = ctypes.CDLL(str(library)).AdamTraffic
    arrays, grads = Arrays.of(TENSORS, 1, SIZE), [np.full(SIZE, 1e-3, np.float32) for _ in range(TENSORS)]

    def work() -> None:
        for tensor in zip(arrays.weights, arrays.moments, arrays.variances, grads, strict=True):
            function(*(ctypes.c_void_p(array.ctypes.data) for array in tensor), ctypes.c_int64(SIZE))

    return work


def _mindspore_adam() -> Callable[[], Any]:
    parameters = [Parameter(Tensor(np.full(SIZE, 0.02, np.float32)), name=f"p{i}") for i in range(TENSORS)]
    optimizer = nn.AdamWeightDecay(parameters, LR, *BETAS, EPS, DECAY)
    grads = mutable(tuple(Tensor(np.full(SIZE, 1e-3, np.float32)) for _ in parameters))

    def work() -> None:
        optimizer(grads)
        parameters[-1].asnumpy()  # waits for the result; on the CPU it is a view and no copy

    return work
