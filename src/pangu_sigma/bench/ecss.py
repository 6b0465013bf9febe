"""What keeping experts on the host and updating only the active ones is worth: step against step, and the optimizer by itself.

`paper` re-enacts the paper's proportions. Its step takes 7.50 s with ECSS at 10 % active experts and 47.25 s without: compute X
and host work Y for all experts, X + 0.1 Y = 7.50 and X + Y = 47.25, give Y : X = 14. A CPU has far less arithmetic per byte than
an NPU, so the case picks the tokens a step at which Y : X, both measured here, is nearest to 14.

Every comparison runs one set of experts under two stores, so that the memory holds both.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.adam import SquareSum, every_row
from pangu_sigma.bench.adam import DEEPSPEED, HostAdam, TorchAdam, deepspeed_adam, installed
from pangu_sigma.bench.harness import Row, absent, compare, take_turns
from pangu_sigma.bench.synthetic import RATE, SharedTier, SyntheticRun, config_of
from pangu_sigma.config import Config
from pangu_sigma.device import use_cpu
from pangu_sigma.ecss.store import DeviceStore, ExpertStore, HostStore, make_store
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.train.step import Hyper

DOMAINS = 10
"""One is active in a step."""
PAPER_MODEL = {"hidden": 1024, "ffn": 4096, "heads": 8, "dense_layers": 0, "rre_layers": 2, "experts_per_domain": 2}
PAPER_TOKENS = (32, 64, 128, 256)
PAPER_RATIO, PAPER_SPEEDUP = 14.0, 6.3

SWEEP_MODEL = {"hidden": 512, "ffn": 2048, "heads": 8, "dense_layers": 0, "rre_layers": 2, "experts_per_domain": 2}
SWEEP_TOKENS, SWEEP_DOMAINS, SWEEP_RUNS = (64, 512, 4096, 8192), (1, 10, 40), 3

OPTIMIZER_CASES = ((16, 4), (40, 1))
"""Stored and active experts of a layer."""
OPTIMIZER_LAYERS, OPTIMIZER_SIZE = 4, 2 * 512 * 2048


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: with DeepSpeed's optimizer on stacked experts, where it is installed."""
    use_cpu()
    rows = paper() + sweep()
    return rows + optimizer(peers)


def paper() -> list[Row]:
    """The case `paper` and what it is made of."""
    lab = Lab(PAPER_MODEL, DOMAINS)
    tokens = min(PAPER_TOKENS, key=lambda t: abs(np.log(lab.update_all / lab.compute(t) / PAPER_RATIO)))
    on, off = lab.on(tokens), lab.off(tokens)
    stalls: list[float] = []
    seconds = take_turns({"ours": lambda: _advance(on, stalls), "ecss.enabled: false": off.advance})
    case = f"paper: 1 of {DOMAINS} active, {tokens} tokens, {lab.parameters / 1e6:.0f} M stored"
    [row] = compare("ecss", case, seconds)
    speed_up, on_device = _known(row.ratio), on.device_bytes / lab.weight_bytes
    stall = statistics.median(stalls[1:]) / statistics.median(seconds["ours"])
    return [
        row,
        figure(case, "speed-up, against the paper's", speed_up, PAPER_SPEEDUP, "x"),
        figure(case, "update of all : compute, as the paper's", lab.update_all / lab.compute(tokens), PAPER_RATIO, "x"),
        figure(case, "speed-up predicted without overlap", speed_up, lab.predicted(tokens), "x"),
        figure(case, "speed-up predicted with whole overlap", speed_up, lab.predicted(tokens, overlap=True), "x"),
        figure(case, "stall, at most 5 % of the step", 100 * stall, 5.0, "%", lower=True),
        figure(case, "expert weights on the device, active : stored", 100 * on_device, 100 / DOMAINS, "%", lower=True),
    ]


def sweep() -> list[Row]:
    """Measured and predicted speed-up over tokens a step and over stored : active."""
    rows = []
    for domains in SWEEP_DOMAINS:
        lab = Lab(SWEEP_MODEL, domains)
        for tokens in SWEEP_TOKENS:
            on, off = lab.on(tokens), lab.off(tokens)
            seconds = take_turns({"ours": on.advance, "ecss.enabled: false": off.advance}, SWEEP_RUNS)
            case = f"sweep: 1 of {domains} active, {tokens} tokens"
            [row] = compare("ecss", case, seconds)
            predicted = lab.predicted(tokens)
            rows += [row, figure(case, "speed-up predicted without overlap", _known(row.ratio), predicted, "x")]
            gc.collect()
    return rows


def optimizer(peers: bool) -> list[Row]:
    """AdamW over the active rows, against DeepSpeed's over all rows of stacked experts."""
    rows = []
    for stored, active in OPTIMIZER_CASES:
        case = f"optimizer, {active} of {stored} experts active, {OPTIMIZER_LAYERS} layers"
        contenders: dict[str, Callable[[], Any]] = {
            "ours": HostAdam(OPTIMIZER_LAYERS, stored, OPTIMIZER_SIZE, active).kernel,
            "ours, all experts": HostAdam(OPTIMIZER_LAYERS, stored, OPTIMIZER_SIZE).kernel,
        }
        name = f"{DEEPSPEED}, stacked experts"
        if peers and installed(DEEPSPEED):
            weights = [np.full((stored, OPTIMIZER_SIZE), 0.02, np.float32) for _ in range(OPTIMIZER_LAYERS)]
            contenders[name] = TorchAdam(deepspeed_adam, weights).kernel
        rows += compare("ecss", case, take_turns(contenders))
        if peers and not installed(DEEPSPEED):
            rows.append(absent("ecss", case, rows[-1].ours, name, "ms", rows[-1].runs))
        del contenders
        gc.collect()
    return rows


def figure(case: str, what: str, ours: float, other: float, unit: str, lower: bool = False) -> Row:
    """A row of something that is not a time; lower: less is better."""
    return Row("ecss", case, ours, what, other, other / max(ours, 1e-9) if lower else ours / other, unit, 1)


def _known(ratio: float | None) -> float:
    assert ratio is not None
    return ratio


def _advance(run: SyntheticRun, stalls: list[float]) -> None:
    run.advance()
    assert run.traffic is not None
    stalls.append(run.traffic.stall_seconds)


class Lab:
    """One set of expert arrays, and steps over it: with ECSS, without, and their parts."""

    def __init__(self, model: dict[str, Any], domains: int):
        self._model, self._domains = model, domains
        self._store = make_store(self._config(64))
        self.parameters = self._config(64).num_params().experts
        self.weight_bytes = sum(weight.nbytes for weight in self._store.weights)
        self._update_seconds: float | None = None
        self._compute_seconds: dict[int, float] = {}

    def on(self, tokens: int) -> SyntheticRun:
        """The step with ECSS."""
        config = self._config(tokens)
        return SyntheticRun(config, HostStore(config, SharedTier(self._store)))

    def off(self, tokens: int) -> SyntheticRun:
        """The same step without."""
        config = self._config(tokens, enabled=False)
        return SyntheticRun(config, DeviceStore(config, SharedTier(self._store)))

    @property
    def update_all(self) -> float:
        """Y: seconds of norm and AdamW over every stored expert; run first, it also makes all moments exist."""
        if self._update_seconds is None:
            work = _UpdateAll(self._config(64), self._store)
            self._update_seconds = statistics.median(take_turns({"update": work.run})["update"])
        return self._update_seconds

    def compute(self, tokens: int) -> float:
        """X: seconds of forward and backward with the active experts."""
        if tokens not in self._compute_seconds:
            work = _Compute(self.on(tokens))
            self._compute_seconds[tokens] = statistics.median(take_turns({"compute": work.run})["compute"])
        return self._compute_seconds[tokens]

    def predicted(self, tokens: int, overlap: bool = False) -> float:
        """Speed-up by X and Y alone: (X + Y) over X + Y · active/stored, or over the larger of these two when they overlap."""
        x, y = self.compute(tokens), self.update_all
        part = y / self._domains
        return (x + y) / (max(x, part) if overlap else x + part)

    def _config(self, tokens: int, enabled: bool = True) -> Config:
        """Sequences of one domain a step; domains take turns."""
        length = min(tokens, 512)
        model = self._model | {"seq_length": length, "slot_rows": 1024}
        sections: dict[str, Any] = {"train": {"batch_size": tokens // length}, "ecss": {"enabled": enabled}}
        return config_of(self._domains, model, **sections)


class _Compute(nn.Cell):
    """Forward and backward of a step with the active experts where they are; nothing is fetched or updated."""

    def __init__(self, run: SyntheticRun):
        super().__init__()
        self.step = run.step
        batch, store = run.batch(), run.store
        self._arrays = [as_tensor(array[0]) for array in batch.arrays()[:-2]]
        self._experts = []
        for i, weight in enumerate(store.weights):
            active_A = batch.active_NA[i // store.tensors]
            self._experts.append(Tensor.from_numpy(weight.asnumpy()[active_A[0] : active_A[-1] + 1]))

    def construct(self, scale, *arrays_and_experts):
        return self.step.loss_and_grads(scale, *arrays_and_experts)

    def run(self) -> None:
        (loss, _), _ = self(Tensor(1.0, ms.float32), *self._arrays, *self._experts)
        loss.asnumpy()


class _UpdateAll(nn.Cell):
    """Norm, clipping and AdamW of every expert, with gradients that are there."""

    def __init__(self, config: Config, store: ExpertStore):
        super().__init__()
        self.store = store
        self.square_sum, self.hyper = SquareSum(), Hyper(config.train.optimizer, config.train.optimizer.eps_experts)
        every_K, offsets_K1 = (t.asnumpy() for t in every_row(config.experts))
        self._plan = [Tensor(np.tile(a, (store.layers, 1))) for a in (every_K, offsets_K1)]
        self._grads = tuple(Tensor.from_numpy(np.full(w.shape, 1e-4, np.float32)) for w in store.weights)

    def construct(self, rate, active_NK, offsets_NK1, *grads):
        norm = ops.sqrt(self.square_sum(grads))
        hyper = self.hyper(rate, ops.minimum(1.0 / (norm + 1e-12), 1.0), 1.0)
        return self.store.update(grads, active_NK, offsets_NK1, hyper)

    def run(self) -> None:
        self(Tensor(RATE, ms.float32), *self._plan, *self._grads).asnumpy()
