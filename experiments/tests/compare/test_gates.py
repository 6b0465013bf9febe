"""The gates of the comparison against NumPy in float64: outputs, balance loss, and gradients by finite differences."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import toy_config
from mindspore import ParameterTuple, Tensor, nn, ops

from ascend_ops.grouped_ffn import grouped_ffn_oracle
from experiments.compare.gates import GateBackend, GatedFFN, GateTrainer, gated_network, received
from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import newest_checkpoint
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.ecss.store import make_network
from pangu_sigma.ranks.ranks import SINGLE_PROCESS
from pangu_sigma.training.log.metrics import read_metrics
from pangu_sigma.training.loop import train

pytestmark = pytest.mark.usefixtures("graph_mode")

T, H, F, E = 24, 6, 6, 8


def gated_config(groups: int = 1, **train: object) -> Config:
    """A toy with E = 8 experts in each group of a layer of H = 6, F = 6."""
    model = toy_config().model.model_dump() | {"hidden": H, "ffn": F, "segments": ["own"] * groups}
    return toy_config(model=model, ecss={"enabled": False}, train=train)


def drawn(groups: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs by name, the gate last; only the first group has an output bias."""
    inner = F // groups
    shapes = {"x": (T, H)}
    for g in range(groups):
        shapes |= {f"w1_{g}": (E, inner, H), f"b1_{g}": (E, inner), f"w2_{g}": (E, inner, H)}
        shapes |= {"b2_0": (E, H)} if g == 0 else {}
    return {name: rng.normal(size=shape) for name, shape in {**shapes, "gate": (groups * E, H)}.items()}


def oracle(values: dict[str, np.ndarray], dy_TH: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Output, Σ dy · y + 0.01 · K / G · Σ f · P, and the tokens of each expert, one token after another."""
    scores_TK = values["x"] @ values["gate"].T
    p_TGE = (np.exp(scores_TK) / np.exp(scores_TK).sum(axis=1, keepdims=True)).reshape(T, -1, E)
    y_TH, load_GE, none = np.zeros_like(values["x"]), np.zeros(p_TGE.shape[1:]), np.zeros((E, H))
    for t, best_G in enumerate(p_TGE.argmax(axis=2)):
        for g, e in enumerate(best_G):
            weights = (values[f"w1_{g}"], values[f"b1_{g}"], values[f"w2_{g}"], values.get(f"b2_{g}", none))
            one = grouped_ffn_oracle(values["x"][t : t + 1], *(w[e : e + 1] for w in weights), np.array([0, 1]))
            y_TH[t] += p_TGE[t, g, e] * one[0]
            load_GE[g, e] += 1
    balance = 0.01 * E * (load_GE / T * p_TGE.mean(axis=0)).sum()  # K / G = E
    return y_TH, float((dy_TH * y_TH).sum() + balance), load_GE.ravel()


def finite_differences(values: dict[str, np.ndarray], dy_TH: np.ndarray, name: str) -> np.ndarray:
    """Gradient of the oracle's loss, by central differences."""
    gradient = np.empty(values[name].size)
    for i in range(gradient.size):
        ends = []
        for step in (1e-6, -1e-6):
            moved = values[name].copy()
            moved.flat[i] += step
            ends.append(oracle(values | {name: moved}, dy_TH)[1])
        gradient[i] = (ends[0] - ends[1]) / 2e-6
    return gradient.reshape(values[name].shape)


class Weighed(nn.Cell):
    """construct(dy_TH, x_TH, weights of one group or of two) -> Σ dy · y, y"""

    def __init__(self, ffn: nn.Cell):
        super().__init__()
        self.ffn = ffn

    def construct(self, dy_TH, x_TH, *weights):
        segments: tuple = ((None, None, None, *weights[:4]),)
        if len(weights) > 4:
            segments += ((None, None, None, *weights[4:]),)
        y_TH = self.ffn(ops.zeros_like(x_TH), x_TH, None, *segments)
        return (dy_TH * y_TH).sum(), y_TH


class Differentiated(nn.Cell):
    """construct(dy_TH, x, weights) -> (loss, y), (their gradients, the gate's)"""

    def __init__(self, ffn: GatedFFN):
        super().__init__()
        self.weighed = Weighed(ffn)  # a cell of its own, so that `set_train` reaches it
        inputs = tuple(range(1, 6 if ffn.groups == 1 else 9))
        self.of = ms.value_and_grad(self.weighed, inputs, ParameterTuple([ffn.gate]), has_aux=True)

    def construct(self, *arguments):
        return self.of(*arguments)


@pytest.mark.parametrize("groups", [1, 2])
def test_outputs_balance_and_gradients_are_those_of_the_formulas(groups: int):
    rng = np.random.default_rng(0)
    values, dy_TH = drawn(groups, rng), rng.normal(size=(T, H))
    expected_TH, _, load_K = oracle(values, dy_TH)
    assert 0 in load_K, "an expert without a token is a case, too"
    ffn = GatedFFN(gated_config(groups), seed=1)
    ffn.gate.set_data(Tensor(values["gate"].astype(np.float32)))
    step = Differentiated(ffn)
    inputs = [values[name] for name in values if name != "gate"]
    arguments = [Tensor(a.astype(np.float32)) for a in (dy_TH, *inputs)]

    step.set_train(False)
    (loss, y_TH), _ = step(*arguments)
    np.testing.assert_allclose(y_TH.asnumpy(), expected_TH, rtol=1e-4, atol=1e-5)
    assert not ffn.received.asnumpy().any(), "an evaluation counts nothing"

    step.set_train()
    (loss, y_TH), (of_inputs, of_gate) = step(*arguments)
    np.testing.assert_allclose(y_TH.asnumpy(), expected_TH, rtol=1e-4, atol=1e-5)
    assert float(loss.asnumpy()) == pytest.approx((dy_TH * expected_TH).sum(), rel=1e-4), "without the balance loss"
    assert ffn.received.asnumpy().tolist() == load_K.tolist()
    assert load_K.reshape(groups, E).sum(axis=1).tolist() == [T] * groups, "each group computes every token"
    for name, found in zip(values, (*of_inputs, *of_gate), strict=True):
        expected = finite_differences(values, dy_TH, name)
        np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_balance_loss_alone_moves_the_gate():
    ffn = GatedFFN(gated_config(), seed=1)
    values = {name: 0 * value for name, value in drawn(1, np.random.default_rng(1)).items()}
    values |= {"x": np.random.default_rng(1).normal(size=(T, H)), "gate": ffn.gate.asnumpy().astype(float)}
    step = Differentiated(ffn)
    step.set_train()
    arguments = [Tensor(values[name].astype(np.float32)) for name in values if name != "gate"]
    _, (_, of_gate) = step(ops.zeros_like(arguments[0]), *arguments)
    expected = finite_differences(values, np.zeros((T, H)), "gate")
    assert abs(expected).max() > 1e-5
    np.testing.assert_allclose(of_gate[0].asnumpy(), expected, rtol=1e-3, atol=1e-8)


def test_all_that_a_gated_network_shares_with_the_product_is_drawn_alike():
    config = gated_config()
    ms.set_seed(3)
    plain = {p.name: p.asnumpy() for p in make_network(config).trainable_params()}
    ms.set_seed(3)
    gated = {p.name: p.asnumpy() for p in gated_network(config).trainable_params()}
    gates = [gated.pop(name) for name in sorted(gated.keys() - plain.keys())]
    assert [gate.shape for gate in gates] == [(E, H)] * 2
    assert gates[0].std() > 0
    assert not np.array_equal(*gates)
    assert {name: values.tobytes() for name, values in gated.items()} == {n: v.tobytes() for n, v in plain.items()}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"ecss": {"enabled": True}}, "ecss.enabled=true: a learned gate needs all experts in each step: set false"),
        ({"model": {"dropout": 0.1}}, "model.dropout=0.1: a learned gate needs no dropout: set 0"),
        ({"train": {"accumulation": 2}}, "train.accumulation=2: .* set 1"),
        (
            {"train": {"compute_dtype": "float16"}},
            "train.compute_dtype=float16: .* needs float32, whose loss is not scaled",
        ),
    ],
)
def test_what_a_gate_does_not_go_with_is_refused(sections, message):
    tree = gated_config(steps=9).model_dump(mode="json")
    config = toy_config(**{name: tree[name] | sections.get(name, {}) for name in ("model", "ecss", "train")})
    with pytest.raises(ConfigError, match=message):
        GateBackend().build(config, SINGLE_PROCESS, None)  # type: ignore[arg-type]


def test_the_loop_trains_the_gate_and_logs_its_load(tiny_data: Path, tmp_path: Path):
    base = tiny_config(tiny_data).train.model_dump(mode="json")
    config = tiny_config(tiny_data, ecss={"enabled": False}, train=base | {"steps": 6})
    trainer = train(config, tmp_path / "gated", GateBackend(), kind=GateTrainer)
    before = {name: p.asnumpy() for name, p in gated_network(config).parameters_and_names() if "gate" in name}
    saved = newest_checkpoint(trainer.run.checkpoints, trainer.run.identity).parts
    for name, values in before.items():
        assert abs(saved["dense", name][0].values - values).max() > 1e-3, "the gate learns, and is saved"
    lines = read_metrics(tmp_path / "gated")
    load_NK = np.sum([line["tokens_NK"] for line in lines if line["kind"] == "load"], axis=0)
    tokens = sum(line["tokens"] for line in lines if line["kind"] == "step")
    assert load_NK.sum(axis=1).tolist() == [tokens] * config.model.rre_layers
    last_NK = received(trainer.network)
    assert last_NK.sum(axis=1).tolist() == [4 * 32] * 2
