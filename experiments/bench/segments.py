"""Bench of an RRE layer in several segments against the same layer in one: as many multiplications, in smaller products.

Twice: the routed FFN of `moe`, forward and backward, and a whole step of a small Σ on drawn ids. Then a step of both small Σ as
they are shipped against the dense model of the same active size. All take turns in one process; a ratio is the speed of the case
over that of the model in one segment, or of the dense one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn

from ascend_ops.expert_dispatch import plan_oracle
from experiments.bench import moe
from experiments.bench.harness import Row, compare, take_turns
from experiments.bench.synthetic import SyntheticRun
from experiments.compare.arms import ARMS
from experiments.small import ALPHA, tiny
from pangu_sigma.config import Config
from pangu_sigma.model.pangu_sigma import RoutedFFN
from pangu_sigma.process import use_cpu
from pangu_sigma.rre.experts import grouped_experts
from pangu_sigma.sections import ModelConfig

ONE, FURTHER = "1 segment", (2, 4)
STEPS = {"2 own": ARMS["own_own"].keys, "2 own + 2 common": ARMS["mixed"].keys}
"""What cuts a Σ of `sigma_paper_tiny`'s widths, with 4 experts a domain, into segments of the same stored size."""


def run(peers: bool) -> list[Row]:
    """Rows of the bench, which has no peers."""
    use_cpu()
    layer = moe.make_layer()
    seconds = take_turns({ONE: in_segments(layer, 1), **{f"{n} segments": in_segments(layer, n) for n in FURTHER}})
    sizes = f"{moe.LAYER_TOKENS}x{moe.LAYER_HIDDEN}x{moe.LAYER_FFN}, {moe.LAYER_EXPERTS} experts"
    rows = _against_first("routed FFN fwd+bwd {}, " + sizes, seconds)
    tokens = tiny().train.batch_size * tiny().model.seq_length
    steps = {ONE: tiny(ARMS["rre"].keys), **{name: tiny(keys) for name, keys in STEPS.items()}}
    rows += _against_first("step of 16 experts, {}", take_turns(steps_of(steps)), tokens, "tokens/s")
    shipped = {"dense": tiny(ALPHA), "sigma_paper_tiny": tiny(), "sigma_tiny": tiny(base="sigma_tiny")}
    return rows + _against_first("step of {}", take_turns(steps_of(shipped)), tokens, "tokens/s")


def steps_of(configs: dict[str, Config]) -> dict[str, Callable[[], object]]:
    """A step of each configuration, by name."""
    return {name: SyntheticRun(config).advance for name, config in configs.items()}


def _against_first(
    case: str, seconds: dict[str, list[float]], work: float | None = None, unit: str = "ms"
) -> list[Row]:
    first, *others = seconds
    rows: list[Row] = []
    for name in others:
        pair = {name: seconds[name], first: seconds[first]}
        rows += compare("segments", case.format(name), pair, name, work, unit)
    return rows


class Segmented(nn.Cell):
    """The FFN of an RRE layer. construct(x_TH, weights, residual_TH, plans): of all segments, one after the other."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.ffn = RoutedFFN(config, [grouped_experts(config.activation) for _ in config.segments], 0)
        self.segments = len(config.segments)

    def construct(self, x_TH, *inputs):
        count = 3 * self.segments + 1  # only the first segment has b2
        weights, residual_TH, plans = inputs[:count], inputs[count], inputs[count + 1 :]
        segments: tuple = ((*plans[:3], *weights[:4]),)
        for s in range(1, self.segments):
            segments += ((*plans[3 * s : 3 * s + 3], *weights[3 * s + 1 : 3 * s + 4]),)
        return self.ffn(residual_TH, x_TH, None, *segments)


def in_segments(layer: moe.RoutedLayer, segments: int) -> Callable[[], list[np.ndarray]]:
    """The layer with its inner units cut; each further segment has another plan, of the same load."""
    w1_AFH, b1_AF, w2_AFH, b2_AH = layer.weights
    experts, inner, hidden = w1_AFH.shape
    config = ModelConfig(hidden=hidden, ffn=inner, heads=1, dense_layers=0, rre_layers=1, segments=["own"] * segments)
    cut = [np.split(w, segments, axis=1) for w in (w1_AFH, b1_AF, w2_AFH)]
    first, *further = zip(*cut, strict=True)
    weights = (*first, b2_AH, *(w for part in further for w in part))
    routes = [np.roll(layer.experts_T, s) for s in range(segments)]
    plans = [Tensor(array) for experts_T in routes for array in plan_oracle(experts_T, experts)]
    return moe.layer_graph(Segmented(config), layer, weights, plans)
