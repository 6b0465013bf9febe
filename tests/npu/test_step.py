"""The step that Ascend ranks run, run on the CPU as the only rank: the same losses, norms, weights and moments as `TrainStep`.

What more ranks add to it are MindSpore's collectives, and those are compiled (tests/npu/plan/test_compile.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import Toy, adam_of, toy_batches, toy_config, weights_of
from mindspore import Parameter, Tensor, nn, ops

from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.data.order import Cursor
from pangu_sigma.ecss.store import ExpertStore, make_store
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.npu import dropless
from pangu_sigma.npu.inputs import input_strategies, inputs_of, step_inputs
from pangu_sigma.npu.planner import ExchangePlanner
from pangu_sigma.npu.step import AscendStep

pytestmark = pytest.mark.usefixtures("graph_mode")

RATE = 1e-2
ROWS = [{"order": 1, "rows": 50, "width": 6}, {"order": 2, "rows": 90, "width": 10, "kind": "own"}]


class GroupedMatmulOnCpu(nn.Cell):
    """A stand-in for GroupedMatmul, which has no CPU kernel: standard operators that MindSpore differentiates.

    construct([x_WH], [w_AHF], …, ends_A) -> (y_WF,), as ops.GroupedMatmul(split_item=3, group_type=0)."""

    def construct(self, x, w, bias, scale, offset, antiquant_scale, antiquant_offset, ends_A):
        rows = ops.expand_dims(ops.arange(x[0].shape[0]), 1)
        begin, y_WF = 0, 0.0
        for a in range(w[0].shape[0]):
            own = ops.logical_and(rows >= begin, rows < ends_A[a])
            y_WF = y_WF + ops.matmul(ops.where(own, x[0], ops.zeros_like(x[0])), w[0][a])
            begin = ends_A[a]
        return (y_WF,)


@pytest.fixture(scope="module")
def toys() -> dict[str, Toy]:
    """The `TrainStep` of each number of passes and segments; a CPU alone knows neither chips nor capacity."""
    return {}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2, "910a", None, ["own", "common"], ROWS), id="segments and rows"),
        pytest.param((2, "910b", None, ["own", "common"], ROWS), id="segments and rows, dropless"),
        pytest.param((1, "910a", None, ["own"]), marks=pytest.mark.slow, id="one pass"),
        pytest.param((2, "910a", None, ["own"]), marks=pytest.mark.slow, id="two passes"),
        pytest.param((2, "910b", "ours", ["own"]), marks=pytest.mark.slow, id="two passes, dropless, our kernels"),
    ],
)
def toy(request, graph_mode, toys, tmp_path_factory) -> Toy:
    passes, chip, gather, segments, *rows = request.param
    optimizer = {"eps_dense": 1e-3, "eps_experts": 1e-5, "weight_decay": 0.1, "clip_norm": 0.5}
    train = {"optimizer": optimizer, "batch_size": 8 // passes}
    train["accumulation"] = passes
    parallel = {"chip": chip, "capacity_factor": 4.0, "arrival_factor": 4.0, "gather": gather}
    model = {"segments": segments, "common_experts": 6 * ("common" in segments)}
    if rows:  # two segments in one layer; several layers are in the slow ones and in test_backend.py
        model |= {"rows": rows[0], "rre_layers": 1}
    config, key = toy_config(train=train, parallel=parallel, model=model), f"{passes} {segments} {rows}"
    if key not in toys:
        toys[key] = Toy.build(config, tmp_path_factory.mktemp("toy"))
        toys[key].step.scale.window = 3  # as in float16, but this toy computes in float32
    return replace(toys[key], config=config)


@pytest.fixture(scope="module")
def exchanged(toy: Toy) -> BatchLoader:
    """The same batches in the layout of Ascend."""
    batches, planner = toy.batches, ExchangePlanner(toy.config, 0)
    return BatchLoader(toy.config, batches.samples, batches.tokenizer, batches.table, planner=planner)


@pytest.fixture(scope="module")
def step(toy: Toy) -> Iterator[AscendStep]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropless, "grouped_matmul", GroupedMatmulOnCpu)  # the operator has no CPU kernel
        made = AscendStep(toy.config)
        made.scale.window = toy.step.scale.window
        made.set_train()
        yield made


def arrays_of(store: ExpertStore) -> list[Parameter]:
    return [*weights_of(store), *adam_of(store)]


def start_equal(toy: Toy, step: AscendStep) -> None:
    """Both from the same random weights; no moments, no steps taken."""
    toy.reset()
    for mine, theirs in zip(step.dense.weights, toy.step.dense.weights, strict=True):
        mine.set_data(Tensor(theirs.asnumpy().copy()))
    for state in (*step.dense.moments, *step.dense.variances):
        state.set_data(Tensor(np.zeros(state.shape, np.float32)))
    step.dense.step.set_data(Tensor(0.0, ms.float32))
    for mine, theirs in zip(arrays_of(step.store), arrays_of(toy.store), strict=True):
        mine.asnumpy()[...] = theirs.asnumpy()
    for store in (toy.store, step.store) if toy.store.rows else ():
        for records in store.rows.records:
            records[...] = 0
            width = records.shape[1] // 3
            records[:, :width] = np.random.default_rng(0).standard_normal((len(records), width))
    step.scale.value.set_data(Tensor(1024.0, ms.float32))
    step.scale.good_steps.set_data(Tensor(0, ms.int32))
    step.copy_scale()


def advance(step: AscendStep, batch: Batch, factor: float = 1.0) -> list[np.ndarray]:
    """One step on a batch. factor: of all loss weights, and so of all gradients."""
    rows, positions, documents, slots, labels, weights, *others = inputs_of(
        batch, step.config, step.store.rows_of(batch.own_row_keys)
    )
    step.prepare(RATE, batch)
    inputs = (rows, positions, documents, slots, labels, (weights * factor).astype(np.float32), *others)
    taken = [np.asarray(t.asnumpy()) for t in step(*map(as_tensor, inputs))]
    step.store.settle()
    return taken


def same_state(toy: Toy, step: AscendStep) -> None:
    ours = [*step.dense.weights, *step.dense.moments, *step.dense.variances]
    theirs = [*toy.step.dense.weights, *toy.step.dense.moments, *toy.step.dense.variances]
    pairs = zip([*ours, *arrays_of(step.store)], [*theirs, *arrays_of(toy.store)], strict=True)
    for mine, other in pairs:
        np.testing.assert_allclose(mine.asnumpy(), other.asnumpy(), rtol=2e-4, atol=2e-6, err_msg=other.name)


def test_it_takes_the_steps_of_the_train_step(toy: Toy, step: AscendStep, exchanged: BatchLoader):
    start_equal(toy, step)
    cursor, same = Cursor([0] * len(toy.batches.domains)), Cursor([0] * len(exchanged.domains))
    for _ in range(3):
        given = toy.batches.next(cursor)
        result = toy.run_arrays(given.arrays(toy.store.rows_of(given.own_row_keys)), RATE)
        batch = exchanged.next(same)
        loss_M, norm, applied, scale, *of_rows = advance(step, batch)
        np.testing.assert_allclose(loss_M, sum(loss.asnumpy() for loss in result.block_loss_GM), rtol=1e-5)
        np.testing.assert_allclose(norm, result.norm.asnumpy(), rtol=1e-5)
        assert (applied, scale) == (1.0, result.scale.asnumpy())
        if toy.store.rows:
            grads_TH, hyper = of_rows
            theirs_GTH = np.stack([grads.asnumpy() for grads in result.rows_GTH])
            np.testing.assert_allclose(grads_TH, theirs_GTH.reshape(grads_TH.shape), rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(hyper, result.rows_hyper.asnumpy(), rtol=1e-5)
            for store in (toy.store, step.store):
                store.rows.update(batch.row_keys_EGBS, grads_TH, hyper)
    same_state(toy, step)
    assert step.scale.value.asnumpy() == toy.step.scale.value.asnumpy() == 2048.0


def test_an_overflow_changes_nothing_but_the_scale(toy: Toy, step: AscendStep, exchanged: BatchLoader):
    start_equal(toy, step)
    cursor = Cursor([0] * len(exchanged.domains))
    advance(step, exchanged.next(cursor))
    kinds = [
        *step.dense.weights,
        *step.dense.moments,
        *step.dense.variances,
        step.dense.step,
        *step.store.get_parameters(),
    ]
    before = [p.asnumpy().copy() for p in kinds]
    _, _, applied, scale, *_ = advance(step, exchanged.next(cursor), factor=1e38)
    assert (applied, scale) == (0.0, 1024.0)
    for parameter, was in zip(kinds, before, strict=True):
        assert np.array_equal(parameter.asnumpy(), was), parameter.name
    assert step.scale.value.asnumpy() == 512.0


@pytest.mark.parametrize(
    ("rows", "routed", "chip"), [([], 0, "910a"), (ROWS, 2, "910a"), (ROWS, 0, "910b"), ([], 2, "910b")], ids=str
)
def test_a_batch_has_the_shapes_that_the_step_is_compiled_for(rows: list, routed: int, chip: str, graph_mode, tmp_path):
    """Also of a dense model, whose batches carry plans of zeros that the step does not take."""
    train, parallel = {"accumulation": 2, "batch_size": 4}, {"chip": chip}
    config = toy_config(model={"rre_layers": routed, "rows": rows}, train=train, parallel=parallel)
    made = toy_batches(config, tmp_path)
    batches = BatchLoader(config, made.samples, made.tokenizer, made.table, planner=ExchangePlanner(config, 0))
    batch = batches.next(Cursor([0] * len(batches.domains)))
    e_GTH = make_store(config).rows_of(batch.own_row_keys)
    arrays, inputs = inputs_of(batch, config, e_GTH), step_inputs(config)
    assert [(a.shape, a.dtype.name) for a in arrays] == [(t.shape, t.asnumpy().dtype.name) for t in inputs]
    assert len(input_strategies(config)) == len(inputs)


def test_an_evaluation_gives_the_losses_of_the_step_and_changes_nothing(
    toy: Toy, step: AscendStep, exchanged: BatchLoader
):
    start_equal(toy, step)
    batch = exchanged.next(Cursor([0] * len(exchanged.domains)))
    kinds = [p for p in step.get_parameters() if not p.name.startswith(("active", "used", "rate", "learns"))]
    before = [p.asnumpy().copy() for p in kinds]
    loss_M = step.block_losses(batch)
    for parameter, was in zip(kinds, before, strict=True):
        assert np.array_equal(parameter.asnumpy(), was), parameter.name
    taken_M, *_ = step.take(RATE, batch, step.store.rows_of(batch.own_row_keys))
    assert np.array_equal(loss_M, taken_M.asnumpy())


@pytest.mark.slow
def test_a_flag_of_overflow_is_an_overflow(toy: Toy, step: AscendStep, exchanged: BatchLoader, monkeypatch):
    """As on a chip that saturates, where the norm is finite."""

    class Raised(nn.Cell):
        def construct(self, after):
            return Tensor(1.0, ms.float32)

    monkeypatch.setattr("pangu_sigma.npu.overflow.saturates", lambda chip: True)
    monkeypatch.setattr("pangu_sigma.npu.overflow.OverflowFlag", Raised)
    flagged = AscendStep(toy.config)
    flagged.set_train()
    flagged.scale.value.set_data(Tensor(1024.0, ms.float32))
    flagged.copy_scale()
    _, norm, applied, *_ = advance(flagged, exchanged.next(Cursor([0] * len(exchanged.domains))))
    assert np.isfinite(norm)
    assert applied == 0.0
    assert flagged.scale.value.asnumpy() == 512.0
