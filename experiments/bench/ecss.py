"""Bench of ECSS, which keeps experts on the host and updates only the active ones: step against step, and the optimizer by itself.

`paper` re-enacts the paper's proportions. Its step takes 7.50 s with ECSS at 10 % active experts and 47.25 s without: compute X
and host work Y for all experts, X + 0.1 Y = 7.50 and X + Y = 47.25, give Y : X = 14. A CPU has far less arithmetic per byte than
an NPU, so the case picks the tokens a step at which Y : X, both measured here, is nearest to 14. There are two peers: ECSS off,
which fetches nothing because the host is the device, and the paper's step without ECSS, which fetches and updates all experts.

Every comparison runs one set of experts under two stores, so that the memory holds both.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from tqdm import tqdm

from ascend_ops.adam import SquareSum, every_row
from experiments.bench.adam import DEEPSPEED, Arrays, HostAdam, TorchAdam, deepspeed_adam, installed
from experiments.bench.harness import RUNS, Row, absent, compare, figure, limit, take_turns
from experiments.bench.synthetic import RATE, SharedTier, SyntheticRun, config_of
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import DeviceStore, ExpertStore, HostExperts, HostStore, make_store
from pangu_sigma.ecss.tiers import HostTier
from pangu_sigma.model.declare import as_input
from pangu_sigma.optimizer.update import Hyper, gradient_factor
from pangu_sigma.process import use_cpu
from pangu_sigma.ranks.reduce import flatten_segments
from pangu_sigma.rre.plan import RoutedSegment

DOMAINS = 10
"""Number of domains, one of which is active in a step."""
PAPER_MODEL = {"hidden": 1024, "ffn": 6144, "heads": 4, "dense_layers": 0, "rre_layers": 1, "experts_per_domain": 4}
HALF_MODEL = PAPER_MODEL | {"hidden": 256, "ffn": 24576}
"""The model of mixed precision: as many expert parameters as PAPER_MODEL, and fewer dense ones, whose float16 products take
MindSpore up to 15 times as long as float32."""
PAPER_TOKENS = (8, 16, 32, 64)
PAPER_RATIO, PAPER_SPEEDUP = 14.0, 6.3

SWEEP_MODEL = {"hidden": 512, "ffn": 1024, "heads": 8, "dense_layers": 0, "rre_layers": 2, "experts_per_domain": 2}
SWEEP_TOKENS, SWEEP_DOMAINS, SWEEP_RUNS = (64, 1024, 8192), (1, 10, 40), 3

OPTIMIZER_CASES = ((16, 4), (40, 1))
"""Number of stored experts of a layer, and of active ones."""
OPTIMIZER_LAYERS, OPTIMIZER_SIZE = 4, 2 * 512 * 2048


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: True to compare with DeepSpeed's optimizer on stacked experts, if it is installed.

    Every case runs in a process of its own: MindSpore keeps the memory that it has once used.
    """
    cases: list[tuple[Any, ...]] = [(optimizer, stored, active, peers) for stored, active in OPTIMIZER_CASES]
    cases += [(paper,), (paper_half,), *((sweep, domains) for domains in SWEEP_DOMAINS)]
    rows: list[Row] = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for case in tqdm(cases, desc="bench ecss", unit="case", leave=False):
            rows += processes.submit(*case).result()
    return rows


def paper() -> list[Row]:
    """Rows of the case `paper` in float32: against ECSS off, and against fetching and updating all experts instead."""
    use_cpu()
    lab = Lab(PAPER_MODEL, DOMAINS)
    tokens = _tokens(lab, _Offloaded)
    case = f"paper: 1 of {DOMAINS} active, {tokens} tokens, {lab.parameters / 1e6:.0f} M stored"
    on, off = lab.on(tokens), lab.off(tokens)
    rows = compare("ecss", case, take_turns({"ours": on.advance, "ecss.enabled: false": off.advance}))
    rows.append(
        figure("ecss", case, "speed-up that X and Y predict", _known(rows[0].ratio), lab.predicted(tokens), "x")
    )
    peer = {"all experts fetched and updated": lab.offloaded(tokens)}
    return rows + _as_the_paper(lab, case, on, peer, tokens, _Offloaded)


def paper_half() -> list[Row]:
    """Rows of the case in mixed precision, as the paper trains: float16 weights and gradients in the network, float32 parameters.

    With ECSS the active experts become float16 as they are looked up, and those rows are updated.
    Without it parameters are on the device: every step casts all experts to float16 and updates all. Both sides have the same cast,
    kernels, optimizer and batches. Y is the cast and the update of all experts.
    """
    use_cpu()
    lab = Lab(HALF_MODEL, DOMAINS, dtype="float16")
    tokens = _tokens(lab, DeviceStore)
    case = f"paper, float16: 1 of {DOMAINS} active, {tokens} tokens, {lab.parameters / 1e6:.0f} M stored"
    peer = {"ecss.enabled: false": lab.off(tokens)}
    return _as_the_paper(lab, case, lab.on(tokens), peer, tokens, DeviceStore)


def _tokens(lab: Lab, kind: type[ExpertStore]) -> int:
    """Number of tokens a step at which Y : X is nearest to the paper's."""
    return min(PAPER_TOKENS, key=lambda tokens: abs(np.log(lab.offload_all(kind) / lab.compute(tokens) / PAPER_RATIO)))


def _as_the_paper(
    lab: Lab, case: str, on: SyntheticRun, peer: dict[str, SyntheticRun], tokens: int, kind: type[ExpertStore]
) -> list[Row]:
    """Rows of ECSS against a peer whose store is of that kind, beside the figures of the paper, X and Y."""
    [row] = compare("ecss", case, take_turns({"ours": on.advance} | {name: run.advance for name, run in peer.items()}))
    ratio, x, y = _known(row.ratio), lab.compute(tokens), lab.offload_all(kind)
    on_device = on.device_bytes / lab.weight_bytes
    separated = x + y / DOMAINS
    return [
        row,
        figure("ecss", case, "speed-up, the paper's", ratio, PAPER_SPEEDUP, "x"),
        figure("ecss", case, "host work Y of all : compute X, the paper's", y / x, PAPER_RATIO, "x"),
        figure("ecss", case, "(X + Y) / (X + Y/10), no overlap", ratio, (x + y) / separated, "x"),
        figure("ecss", case, "(X + Y) / max(X, Y/10), whole overlap", ratio, (x + y) / max(x, y / DOMAINS), "x"),
        limit("ecss", case, "expert weights on the device, of all", 100 * on_device, 100 / DOMAINS, "%"),
    ]


def sweep(domains: int) -> list[Row]:
    """Rows of measured and predicted speed-up over tokens a step, with one of `domains` active."""
    use_cpu()
    lab, rows = Lab(SWEEP_MODEL, domains, SWEEP_RUNS), []
    for tokens in SWEEP_TOKENS:
        on, off = lab.on(tokens), lab.off(tokens)
        seconds = take_turns({"ours": on.advance, "ecss.enabled: false": off.advance}, SWEEP_RUNS)
        case = f"sweep: 1 of {domains} active, {tokens} tokens"
        [row] = compare("ecss", case, seconds)
        predicted = lab.predicted(tokens)
        rows += [row, figure("ecss", case, "speed-up that X and Y predict", _known(row.ratio), predicted, "x")]
    return rows


def optimizer(stored: int, active: int, peers: bool) -> list[Row]:
    """Rows of AdamW over the active rows, against DeepSpeed's over all rows of stacked experts."""
    use_cpu()
    case = f"optimizer, {active} of {stored} experts active, {OPTIMIZER_LAYERS} layers"
    arrays = Arrays.of(OPTIMIZER_LAYERS, stored, OPTIMIZER_SIZE)
    contenders: dict[str, Callable[[], Any]] = {
        "ours": HostAdam(arrays, active).kernel,
        "ours, all experts": HostAdam(arrays, stored).kernel,
    }
    name = f"{DEEPSPEED}, stacked experts"
    if peers and installed(DEEPSPEED):
        contenders[name] = TorchAdam(deepspeed_adam, arrays.weights).kernel
    rows = compare("ecss", case, take_turns(contenders))
    if peers and not installed(DEEPSPEED):
        rows.append(absent("ecss", case, rows[-1].ours, name, "ms", rows[-1].runs))
    return rows


def _known(ratio: float | None) -> float:
    assert ratio is not None
    return ratio


class Lab:
    """One set of expert arrays, and steps over it: with ECSS, without it, and the work of a step one by one."""

    def __init__(self, model: dict[str, Any], domains: int, runs: int = RUNS, dtype: str = "float32"):
        self._model, self._domains, self._runs, self._dtype = model, domains, runs, dtype
        self._store = make_store(self._config(64))
        self.parameters = self._config(64).num_params().experts
        self.weight_bytes = self.parameters * np.dtype(dtype).itemsize
        """Bytes of all experts' weights, if they were on the device."""
        self._update_seconds: float | None = None
        self._fetch_seconds: dict[type[ExpertStore], float] = {}
        self._compute_seconds: dict[int, float] = {}

    def on(self, tokens: int) -> SyntheticRun:
        """The run with ECSS."""
        config = self._config(tokens)
        return SyntheticRun(config, HostStore(config, SharedTier(self._store)))

    def off(self, tokens: int) -> SyntheticRun:
        """The same run without ECSS."""
        config = self._config(tokens, enabled=False)
        return SyntheticRun(config, DeviceStore(config, SharedTier(self._store)))

    def offloaded(self, tokens: int) -> SyntheticRun:
        """The same run with all experts on the host, and all of them fetched and updated."""
        config = self._config(tokens, enabled=False)
        return SyntheticRun(config, _Offloaded(config, SharedTier(self._store)))

    def offload_all(self, kind: type[ExpertStore]) -> float:
        """Seconds of the paper's Y: fetching as a store of that kind does it, norm and AdamW of every stored expert."""
        if kind not in self._fetch_seconds:
            fetch = _Fetch(kind(self._config(64), SharedTier(self._store)))
            every_K = as_input((np.arange(self._config(64).experts, dtype=np.int32),) * len(self._store.segments))
            work = {"fetch": lambda: fetch(every_K)[-1][-1].asnumpy()}
            self._fetch_seconds[kind] = statistics.median(take_turns(work, self._runs)["fetch"])
        return self._fetch_seconds[kind] + self.update_all

    @property
    def update_all(self) -> float:
        """Seconds of Y without fetching: norm and AdamW over every stored expert. Run first, it also makes all moments exist."""
        if self._update_seconds is None:
            work = _UpdateAll(self._config(64), self._store)
            self._update_seconds = statistics.median(take_turns({"update": work.run}, self._runs)["update"])
        return self._update_seconds

    def compute(self, tokens: int) -> float:
        """Seconds of X: forward and backward with the active experts."""
        if tokens not in self._compute_seconds:
            work = _Compute(self.on(tokens))
            self._compute_seconds[tokens] = statistics.median(take_turns({"compute": work.run}, self._runs)["compute"])
        return self._compute_seconds[tokens]

    def predicted(self, tokens: int) -> float:
        """Speed-up over ECSS off by X and the update Y alone: (X + Y) / (X + Y · active/stored)."""
        x, y = self.compute(tokens), self.update_all
        return (x + y) / (x + y / self._domains)

    def _config(self, tokens: int, enabled: bool = True) -> Config:
        """Configuration of steps with sequences of one domain each; domains take turns."""
        length = min(tokens, 512)
        model = self._model | {"seq_length": length, "slot_rows": 1024}
        train = {"batch_size": tokens // length, "compute_dtype": self._dtype}
        sections: dict[str, Any] = {"train": train, "ecss": {"enabled": enabled}}
        return config_of(self._domains, model, **sections)


class _OffloadedExperts(HostExperts):
    """Experts that are fetched like rows of a host store, of which all are updated."""

    def __init__(self, config: Config, segment: RoutedSegment, tier: HostTier):
        super().__init__(config, segment, tier)
        self.every_row = every_row(segment.stored)

    def updated_rows(self, active_A, used_A1):
        return self.every_row


class _Offloaded(HostStore):
    """A store in host memory without the separation: all experts are fetched, and all are updated."""

    kind = _OffloadedExperts


class _Fetch(nn.Cell):
    """The fetch of a store by itself."""

    def __init__(self, store: ExpertStore):
        super().__init__()
        self.store = store

    def construct(self, active_A):
        return self.store.fetch(active_A)


class _Compute(nn.Cell):
    """Forward and backward of a step with the active experts where they are; nothing is fetched or updated."""

    def __init__(self, run: SyntheticRun):
        super().__init__()
        self.step = run.step
        batch, store = run.batch(), run.store
        experts = []
        for of_segment, active_A in zip(store.segments, batch.active_A, strict=True):
            rows = [weight.asnumpy()[active_A[0] : active_A[-1] + 1] for weight in of_segment.weights]
            dtype = run.config.train.compute_dtype
            experts.append(tuple(Tensor.from_numpy(array.astype(dtype, copy=False)) for array in rows))
        self._arguments = [as_input(array) for array in (*batch.arrays().of_micro_batch(0), tuple(experts))]

    def construct(self, scale, *arrays_and_experts):
        return self.step.loss_and_grads(scale, *arrays_and_experts)

    def run(self) -> None:
        (loss, _), _ = self(Tensor(1.0, ms.float32), *self._arguments)
        loss.asnumpy()


class _UpdateAll(nn.Cell):
    """Norm, clipping and AdamW of every expert, with gradients that exist already."""

    def __init__(self, config: Config, store: ExpertStore):
        super().__init__()
        self.store = store
        self.square_sum, self.hyper = SquareSum(), Hyper(config.train.optimizer, config.train.optimizer.eps_experts)
        self._plan = [as_input((rows,) * len(store.segments)) for rows in every_row(config.experts)]
        weights, dtype = [experts.weights for experts in store.segments], config.train.compute_dtype
        grads = tuple(tuple(Tensor.from_numpy(np.full(w.shape, 1e-4, dtype)) for w in of) for of in weights)
        self._grads = as_input(grads)

    def construct(self, rate, active_K, used_K1, grads):
        norm = ops.sqrt(self.square_sum(flatten_segments(grads)))
        hyper = self.hyper(rate, gradient_factor(norm, 1.0, 1.0), 1.0)
        return self.store.update(grads, active_K, used_K1, hyper)

    def run(self) -> None:
        self(Tensor(RATE, ms.float32), *self._plan, self._grads).asnumpy()
