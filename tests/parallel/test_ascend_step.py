"""The step that Ascend ranks run, run on the CPU as the only rank: the same losses, norms, weights and moments as `TrainStep`.

What more ranks add to it are MindSpore's collectives, and those are compiled (test_compile.py).
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from toy import Toy, toy_config

from pangu_sigma.data.batches import Batch
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.parallel.ascend_step import AscendStep
from pangu_sigma.routing.plan import pad_to_capacity

pytestmark = pytest.mark.usefixtures("graph_mode")

RATE = 1e-2


@pytest.fixture(scope="module")
def toy(graph_mode, tmp_path_factory) -> Toy:
    optimizer = {"eps_dense": 1e-3, "eps_experts": 1e-5, "weight_decay": 0.1, "clip_norm": 0.5}
    config = toy_config(train={"optimizer": optimizer, "loss_scale": {"initial": 1024.0, "window": 3}, "batch_size": 8})
    return Toy.build(config, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def step(toy: Toy) -> AscendStep:
    made = AscendStep(toy.config)
    made.set_train()
    return made


def start_equal(toy: Toy, step: AscendStep) -> None:
    """Both from the same random weights; no moments, no steps taken."""
    toy.reset()
    for mine, theirs in zip(step.dense.weights, toy.step.dense.weights, strict=True):
        mine.set_data(Tensor(theirs.asnumpy().copy()))
    for state in (*step.dense.moments, *step.dense.variances):
        state.set_data(Tensor(np.zeros(state.shape, np.float32)))
    step.dense.step.set_data(Tensor(0.0, ms.float32))
    for kind in ("weights", "moments", "variances", "steps"):
        for mine, theirs in zip(getattr(step.store, kind), getattr(toy.store, kind), strict=True):
            mine.set_data(Tensor(theirs.asnumpy().copy()))
    step.scale.value.set_data(Tensor(1024.0, ms.float32))
    step.scale.good_steps.set_data(Tensor(0, ms.int32))


def advance(step: AscendStep, batch: Batch, factor: float = 1.0) -> list[np.ndarray]:
    """One step on a batch of one pass. factor: of all loss weights, and so of all gradients."""
    rows, positions, documents, slots, labels, weights, *_, active_NA, used_NA1 = batch.arrays()
    _, order_NAC, inverse_NT = pad_to_capacity(batch.plans[0])
    step.tell(active_NA, used_NA1)
    order_NR = order_NAC.reshape(len(order_NAC), -1)
    for order_R, inverse_T in zip(order_NR, inverse_NT, strict=True):
        order_R[np.setdiff1d(np.arange(len(order_R)), inverse_T)] = -1  # padding is rows of zeros, and gets no gradient
    plans = [*order_NR, *inverse_NT]
    weights = (weights * factor).astype(np.float32)
    inputs = [as_tensor(a) for a in (*(x[0] for x in (rows, positions, documents, slots, labels, weights)), *plans)]
    return [np.asarray(t.asnumpy()) for t in step(Tensor(RATE, ms.float32), *inputs)]


def same_state(toy: Toy, step: AscendStep) -> None:
    ours = [*step.dense.weights, *step.dense.moments, *step.dense.variances]
    theirs = [*toy.step.dense.weights, *toy.step.dense.moments, *toy.step.dense.variances]
    for kind in ("weights", "moments", "variances", "steps"):
        ours += getattr(step.store, kind)
        theirs += getattr(toy.store, kind)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.asnumpy(), other.asnumpy(), rtol=2e-4, atol=2e-6, err_msg=other.name)


def test_it_takes_the_steps_of_the_train_step(toy: Toy, step: AscendStep):
    start_equal(toy, step)
    cursor = toy.batches.start()
    for _ in range(3):
        batch = toy.batches.next(cursor)
        result = toy.run(batch, RATE)
        loss_M, norm, applied, scale = advance(step, batch)
        np.testing.assert_allclose(loss_M, result.block_loss_GM[0].asnumpy(), rtol=1e-5)
        np.testing.assert_allclose(norm, result.norm.asnumpy(), rtol=1e-5)
        assert (applied, scale) == (1.0, result.scale.asnumpy())
    same_state(toy, step)
    assert step.scale.value.asnumpy() == toy.step.scale.value.asnumpy() == 2048.0


def test_an_overflow_changes_nothing_but_the_scale(toy: Toy, step: AscendStep):
    start_equal(toy, step)
    cursor = toy.batches.start()
    advance(step, toy.batches.next(cursor))
    kinds = [
        *step.dense.weights,
        *step.dense.moments,
        *step.dense.variances,
        step.dense.step,
        *step.store.get_parameters(),
    ]
    before = [p.asnumpy().copy() for p in kinds]
    _, _, applied, scale = advance(step, toy.batches.next(cursor), factor=1e38)
    assert (applied, scale) == (0.0, 1024.0)
    for parameter, was in zip(kinds, before, strict=True):
        assert np.array_equal(parameter.asnumpy(), was), parameter.name
    assert step.scale.value.asnumpy() == 512.0
