"""Bench of an RRE layer in several segments against the same layer in one: as many multiplications, in smaller products.

Twice: the routed FFN of `moe`, forward and backward, and a whole step of `sigma_tiny` on drawn ids. All take turns in one process;
a ratio is the speed in segments over that in one.
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
from experiments.small import tiny
from pangu_sigma.device import use_cpu
from pangu_sigma.model.pangu_sigma import RoutedFFN
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
    rows = _against_one("routed FFN fwd+bwd {}, " + sizes, seconds)
    steps: dict[str, Callable[[], object]] = {ONE: SyntheticRun(tiny(ARMS["rre"].keys)).advance}
    steps |= {name: SyntheticRun(tiny(keys)).advance for name, keys in STEPS.items()}
    tokens = tiny().train.batch_size * tiny().model.seq_length
    return rows + _against_one("step of sigma_tiny, {}", take_turns(steps), tokens, "tokens/s")


def _against_one(case: str, seconds: dict[str, list[float]], work: float | None = None, unit: str = "ms") -> list[Row]:
    rows: list[Row] = []
    for name in [name for name in seconds if name != ONE]:
        pair = {name: seconds[name], ONE: seconds[ONE]}
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
        routed = (*plans[:3], *weights[:4])
        for s in range(1, self.segments):
            routed = (*routed, *plans[3 * s : 3 * s + 3], *weights[3 * s + 1 : 3 * s + 4])
        return self.ffn(residual_TH, x_TH, None, *routed)


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
