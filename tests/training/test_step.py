"""The step: what an update is made of, and what must leave no trace."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import Toy, active_weights, bits, scaled_weights, toy_config, toy_network
from mindspore import ParameterTuple, Tensor

from pangu_sigma.data.batches import Batch, draws_of
from pangu_sigma.data.order import Cursor
from pangu_sigma.held_out.evaluator import EvaluationStep
from pangu_sigma.model.declare import as_input
from pangu_sigma.model.pangu_sigma import FFN_TENSORS
from pangu_sigma.training.step import EXPERTS_ARGUMENT, ScaledLoss

pytestmark = pytest.mark.usefixtures("graph_mode")

OPTIMIZER = {"eps_dense": 1e-3, "eps_experts": 1e-5, "weight_decay": 0.1, "clip_norm": 0.5}
"""Values that show: with the paper's 1e-8 and 1e-20 a wrong ε would change nothing visible."""
BETA1, BETA2 = 0.8, 0.95
RATE = 1e-3


@pytest.fixture(scope="module")
def make(graph_mode, tmp_path_factory) -> Callable[..., Toy]:
    def made(dropout: float = 0.0, finetune: dict | None = None, **train) -> Toy:
        config = toy_config(
            model={"dropout": dropout},
            train={"optimizer": OPTIMIZER, "loss_scale": {"initial": 1024.0, "window": 3}, "batch_size": 8} | train,
            **({} if finetune is None else {"finetune": finetune}),
        )
        return Toy.build(config, tmp_path_factory.mktemp("toy"))

    return made


@pytest.fixture(scope="module")
def shared(make) -> Toy:
    """Batches of eight sequences, two domains each, one pass an update."""
    return make()


@pytest.fixture
def toy(shared) -> Toy:
    shared.reset()
    return shared


def first_batch(toy: Toy) -> Batch:
    return toy.batches.next(Cursor([0] * len(toy.batches.domains)))


def weight_names(values: dict[str, np.ndarray]) -> list[str]:
    """Keys of what is trained, dense and experts."""
    return [n for n in values if n.split("/")[0] != "loss_scale" and f"{moment_of(n)}.moment" in values]


def moment_of(name: str) -> str:
    """Where the moments of a weight are, without their last part."""
    shard, _, rest = name.partition("/")
    return f"dense_optimizer/{rest}" if shard == "dense" else name


@pytest.fixture(scope="module")
def gradients(shared) -> dict[str, np.ndarray]:
    """Gradients of the mean loss of the first batch by MindSpore's own value_and_grad, outside of the step; experts as [K, …]."""
    shared.reset()
    dense, arrays = dict(shared.network.parameters_and_names()), first_batch(shared).arrays()
    function = ms.value_and_grad(
        ScaledLoss(shared.network), EXPERTS_ARGUMENT, ParameterTuple(dense.values()), has_aux=True
    )
    experts, stored = active_weights(shared.store, arrays.active_A), shared.config.experts
    _, (of_experts, of_dense) = function(Tensor(1.0, ms.float32), *map(as_input, [*arrays.of_micro_batch(0), experts]))
    by_name = {f"dense/{name}": g.asnumpy() for name, g in zip(dense, of_dense, strict=True)}
    for n, (active_A, of_segment) in enumerate(zip(arrays.active_A, of_experts, strict=True)):
        for tensor, g in zip(FFN_TENSORS, of_segment, strict=True):
            name, used = f"experts_layer_{n}/{tensor}", active_A < stored
            by_name[name] = np.zeros((stored, *g.shape[1:]), np.float32)
            by_name[name][active_A[used]] = g.asnumpy()[used]
    return by_name


def norm_of(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays)))


@pytest.mark.parametrize("factor", [1.0, 0.01])
def test_gradients_are_clipped_to_the_global_norm_and_not_stretched(toy, gradients, factor):
    expected = {name: factor * g for name, g in gradients.items()}
    norm = norm_of(list(expected.values()))
    assert (norm > 0.5) == (factor == 1.0), "one case should be clipped, the other not"
    result, after = toy.run_arrays(scaled_weights(first_batch(toy).arrays(), factor), RATE), toy.snapshot()
    assert float(result.norm.asnumpy()) == pytest.approx(norm, rel=1e-5), "reported before clipping"
    for shard, part in (("dense", result.norm_dense), ("experts_layer_", result.norm_experts)):
        of_part = norm_of([values for name, values in expected.items() if name.startswith(shard)])
        assert float(part.asnumpy()) == pytest.approx(of_part, rel=1e-5)
    for name, gradient in expected.items():
        clipped = gradient * min(1.0, 0.5 / norm)
        moment, variance = (after[f"{moment_of(name)}.{part}"] for part in ("moment", "variance"))
        np.testing.assert_allclose(moment / (1 - BETA1), clipped, rtol=1e-4, atol=1e-6 * norm, err_msg=name)
        np.testing.assert_allclose(variance, 0.05 * clipped.astype(np.float64) ** 2, rtol=1e-3, atol=1e-9)


def test_weights_follow_adamw_with_the_epsilon_of_their_group(toy):
    """Three updates against the formula in float64, from the moments that the step itself keeps."""
    cursor = Cursor([0] * len(toy.batches.domains))
    for _ in range(3):
        before = toy.snapshot()
        batch = toy.batches.next(cursor)
        toy.run(batch, RATE)
        after = toy.snapshot()
        for name in weight_names(after):
            experts = name.startswith("experts")
            moment, variance = (after[f"{moment_of(name)}.{p}"].astype(np.float64) for p in ("moment", "variance"))
            step = after[f"{name.split('/')[0]}/step"] if experts else after["dense_optimizer/step"]
            counted = np.maximum(step, 1).reshape(-1, *[1] * (moment.ndim - 1)) if experts else step[0]
            eps, decay = (1e-5 if experts else 1e-3), 0.1 * declared_decay(name)
            move = moment / (1 - BETA1**counted) / (np.sqrt(variance / (1 - BETA2**counted)) + eps)
            expected = before[name] * (1 - RATE * decay) - RATE * move
            if experts:
                active = batch.load_NK[int(name.split("/")[0][-1])] > 0
                expected[~active] = before[name][~active]
            np.testing.assert_allclose(after[name], expected, rtol=0, atol=2e-7, err_msg=name)


def declared_decay(name: str) -> bool:
    """PanGu-α decays matrices and tables, not biases and LayerNorm."""
    return name.rsplit(".", 1)[-1].rsplit("/", 1)[-1] in (
        "weight", "w1", "w2", "embedding", "positions", "query_positions",
    )  # fmt: skip


def test_what_has_no_gradient_shrinks_only_where_decay_is_declared(toy):
    """A batch whose tokens all weigh nothing: an embedding row that no text uses has the same lot."""
    before = toy.snapshot()
    batch = first_batch(toy)
    result = toy.run_arrays(scaled_weights(batch.arrays(), 0.0), RATE)
    assert (float(result.norm.asnumpy()), float(result.applied.asnumpy())) == (0.0, 1.0)
    after = toy.snapshot()
    for name in weight_names(after):
        expected = before[name] * (1 - RATE * 0.1) if declared_decay(name) else before[name].copy()
        if name.startswith("experts"):
            active = batch.load_NK[int(name.split("/")[0][-1])] > 0
            expected[~active] = before[name][~active]
        np.testing.assert_allclose(after[name], expected, rtol=2e-7, atol=0, err_msg=name)


def test_the_rate_is_an_input(toy):
    before = toy.snapshot()
    toy.run(first_batch(toy), 0.0)
    after = toy.snapshot()
    for name in weight_names(after):
        assert (before[name] == after[name]).all()
        assert after[f"{moment_of(name)}.moment"].any()


@pytest.fixture(scope="module")
def dropped(make) -> Toy:
    return make(dropout=0.3)


def test_passes_accumulate_to_the_batch_they_make_up(make, dropped):
    """Two passes of four sequences are one of eight, dropout included."""
    toy, twice = dropped, make(accumulation=2, batch_size=4, dropout=0.3)
    toy.reset()
    twice.reset(weights_from=toy)
    whole = first_batch(toy)
    ids = np.concatenate([whole.ids_GBS[0], np.full((8, 1), 11)], axis=1)
    halves = [toy.batches.assemble(ids[None], whole.domains_M)]
    blocks = ids.reshape(2, 2, 2, 17)  # block, pass, sequence
    halves.append(twice.batches.assemble(blocks.transpose(1, 0, 2, 3).reshape(2, 4, 17), whole.domains_M))
    results = [t.run(b, RATE) for t, b in zip((toy, twice), halves, strict=True)]
    losses = [sum(float(b.asnumpy().sum()) for b in r.block_loss_GM) for r in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(results[1].block_loss_GM) == 2
    assert float(results[0].norm.asnumpy()) == pytest.approx(float(results[1].norm.asnumpy()), rel=1e-5)
    one, two = toy.snapshot(), twice.snapshot()
    for name in one:
        if name.startswith("loss_scale") or name.endswith("step"):
            assert (one[name] == two[name]).all(), name
        else:
            np.testing.assert_allclose(one[name], two[name], rtol=0, atol=1e-6, err_msg=name)


def test_the_loss_scale_does_not_change_the_update(toy):
    after = []
    for scale in (1.0, 65_536.0):
        toy.reset()
        toy.step.scale.value.set_data(Tensor(scale, ms.float32))
        result = toy.run(first_batch(toy))
        assert float(result.scale.asnumpy()) == scale
        values = toy.snapshot()
        del values["loss_scale/value"]
        after.append(values)
    for name in after[0]:
        np.testing.assert_allclose(after[0][name], after[1][name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("cause", ["scale", "nan", "infinity"])
def test_a_step_that_overflows_changes_nothing_but_the_scale(toy, cause):
    batch = first_batch(toy)
    toy.run(batch)  # moments and step counts that are not zero
    if cause == "scale":
        toy.step.scale.value.set_data(Tensor(2.0**126, ms.float32))
    else:
        gain = toy.network.norm.gain
        value = gain.asnumpy().copy()
        value[3] = np.nan if cause == "nan" else np.inf
        gain.set_data(Tensor(value))
    before = toy.snapshot()
    result, after = toy.run(batch), toy.snapshot()
    assert float(result.applied.asnumpy()) == 0.0
    assert not np.isfinite(result.norm.asnumpy())
    assert after.pop("loss_scale/value") == before.pop("loss_scale/value") / 2
    assert (before.pop("loss_scale/good_steps"), after.pop("loss_scale/good_steps")) == (1, 0)
    assert bits(before) == bits(after)


def test_training_goes_on_after_an_overflow(toy):
    """The scale falls until gradients fit; then the step is the one that would have been taken at once."""
    batch = first_batch(toy)
    toy.run(batch)
    undisturbed = toy.snapshot()
    toy.reset()
    toy.step.scale.value.set_data(Tensor(2.0**68, ms.float32))
    applied = []
    while not applied or not applied[-1]:
        assert len(applied) < 30
        applied.append(float(toy.run(batch).applied.asnumpy()))
    assert len(applied) > 1
    after = toy.snapshot()
    for name in weight_names(after):
        np.testing.assert_allclose(after[name], undisturbed[name], rtol=0, atol=1e-6, err_msg=name)


def test_the_reported_loss_is_the_loss(toy):
    """The sum over blocks is the loss of the update; each block's is its share."""
    batch = first_batch(toy)
    whole = toy.run(batch).block_loss_GM[0].asnumpy()
    for block in range(2):
        toy.reset()
        arrays = scaled_weights(batch.arrays(), 1.0)
        arrays.weights_GBS[:, 4 * (1 - block) : 4 * (2 - block)] = 0
        alone = toy.run_arrays(arrays).block_loss_GM[0].asnumpy()
        assert alone[block] == pytest.approx(whole[block], rel=1e-6)
        assert alone[1 - block] == 0


def test_dropout_trains_and_is_off_in_evaluation(dropped, toy):
    batch = first_batch(toy)
    exact = float(toy.run(batch).block_loss_GM[0].asnumpy().sum())
    losses = {}
    for first in (0, 8, 16, 8):  # number of samples that were taken before
        dropped.reset()
        arrays = batch.arrays()._replace(draws_GB4=draws_of(dropped.config.seed, first + np.arange(8)[None]))
        loss = float(dropped.run_arrays(arrays).block_loss_GM[0].asnumpy().sum())
        assert losses.setdefault(first, loss) == loss, "the same samples have the same masks"
    assert len(set(losses.values())) == 3, "each step should drop something else"
    assert exact not in losses.values()
    toy.reset()
    evaluated = [evaluate(dropped, batch, weights_from=toy) for _ in range(2)]
    assert evaluated == [pytest.approx(exact, rel=1e-6)] * 2


def evaluate(toy: Toy, batch: Batch, weights_from: Toy) -> float:
    """Loss by a new EvaluationStep over the weights of another toy."""
    toy.reset(weights_from=weights_from)
    step = EvaluationStep(toy.network, toy.store).set_train(False)
    arrays = batch.arrays()
    return float(step(*map(as_input, (arrays.active_A, *arrays.of_micro_batch(0)))).asnumpy().sum())


def test_a_model_without_rre_layers_trains(graph_mode, tmp_path):
    config = toy_config(1, 1, model={"dense_layers": 2, "rre_layers": 0}, data={"domains_per_step": 1})
    toy = Toy.build(config, tmp_path)
    assert len(toy_network(config)[1].segments) == 0
    batch = first_batch(toy)
    losses = [float(toy.run(batch, 1e-2).block_loss_GM[0].asnumpy().sum()) for _ in range(10)]
    assert losses[-1] < losses[0]


def test_half_precision_trains_close_to_single_and_skips_a_gradient_beyond_float16(make, toy):
    half, losses = make(compute_dtype="float16"), []
    half.reset(weights_from=toy)
    for trained in (toy, half):
        cursor = Cursor([0] * len(trained.batches.domains))
        results = [trained.run(trained.batches.next(cursor)) for _ in range(6)]
        assert all(float(result.applied.asnumpy()) == 1.0 for result in results)
        losses.append([float(result.block_loss_GM[0].asnumpy().sum()) for result in results])
    assert losses[1] == pytest.approx(losses[0], rel=3e-3) and losses[1] != losses[0]
    half.step.scale.value.set_data(Tensor(2.0**24, ms.float32))
    before, result = half.snapshot(), half.run(first_batch(half))
    after = half.snapshot()
    assert float(result.applied.asnumpy()) == 0.0
    assert after.pop("loss_scale/value") == before.pop("loss_scale/value") / 2
    assert before.pop("loss_scale/good_steps") >= after.pop("loss_scale/good_steps") == 0
    assert bits(before) == bits(after)


def test_frozen_arrays_keep_their_bits_and_the_rest_learns_as_ever(toy, make):
    """Weights, moments and step counts, weight decay included; domains d0 and d2 have one of two slots. Gradients are so small that
    neither norm is clipped, which is of what learns."""
    options = {"task": "t", "domain": "d0", "domains": ["d0", "d2"], "learn": "experts+slot"}
    whole, tuned = toy, make(finetune=options, checkpoint_interval=100)
    ids = np.random.default_rng(3).integers(10, 60, (2, 1, 8, 17)).astype(np.int32)
    first, second = (whole.batches.assemble(each, np.array([0, 2])) for each in ids)
    whole.run(first)  # moments and step counts that are not zero
    before = whole.snapshot()
    tuned.load(before)
    small = scaled_weights(second.arrays(), 0.01)
    for each in (whole, tuned):
        result = each.run_arrays(small)
        assert (result.applied.asnumpy(), result.norm.asnumpy() < OPTIMIZER["clip_norm"]) == (1.0, True)
    expected, slot = whole.snapshot(), slice(0, 64)
    for name, values in tuned.snapshot().items():
        if name.startswith(("experts_layer_", "loss_scale/")) or name.endswith("/step"):
            assert values.tobytes() == expected[name].tobytes(), name
        elif "/embedding" in name:
            assert values[slot].tobytes() == expected[name][slot].tobytes(), name
            assert values[slot.stop :].tobytes() == before[name][slot.stop :].tobytes(), name
        else:
            assert values.tobytes() == before[name].tobytes(), name
    unchanged = [name for name in expected if expected[name].tobytes() == before[name].tobytes()]
    assert len(unchanged) < len(expected) / 10, f"the whole step moves more than {unchanged}"
