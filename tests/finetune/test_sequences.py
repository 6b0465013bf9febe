"""Answers alone count, and who shares a sequence changes nothing: by the real graphs, against NumPy in float64.

Shape suffixes: S sequence, R rows of a slot.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import (
    EOT,
    PAD,
    VOCABULARY,
    Logits,
    active_weights,
    logits_arguments,
    toy_config,
    toy_network,
    toy_table,
    toy_tokenizer,
)
from hypothesis import given
from hypothesis import strategies as st
from mindspore import ParameterTuple, Tensor

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.finetune.sequences import EncodedSample, TaskSamples, pack
from pangu_sigma.held_out.evaluator import EvaluationStep
from pangu_sigma.model.declare import as_input
from pangu_sigma.training.step import EXPERTS_ARGUMENT, ScaledLoss

pytestmark = pytest.mark.usefixtures("graph_mode")


def config_of(packed: bool) -> Config:
    options = {"task": "t", "domain": "d0", "domains": ["d0"], "packed": packed}
    train = {"batch_size": 4, "checkpoint_interval": 100}
    return toy_config(train=train, data={"domains_per_step": 1}, finetune=options)


def samples() -> list[EncodedSample]:
    """Six samples that fill three sequences together: short ones and one that fills a sequence alone."""
    rng, found = np.random.default_rng(0), []
    for length, answer in ((17, 9), (9, 3), (8, 1), (5, 2), (6, 4), (6, 1)):
        ids = rng.integers(10, VOCABULARY, length).astype(np.int32)
        ids[-1] = EOT
        found.append(EncodedSample(ids, answer, False))
    return found


def batches_of(packed: bool) -> BatchLoader:
    config, tokenizer = config_of(packed), toy_tokenizer(2)
    task_samples = TaskSamples(config, [samples(), [], [], []], tokenizer)
    return BatchLoader(config, task_samples, tokenizer, toy_table(config))


def batch_of(batches: BatchLoader, numbers: list[int]) -> Batch:
    """These sequences as a batch."""
    ids, counted = (
        np.stack([read(0, n) for n in numbers])[None] for read in (batches.samples.read, batches.samples.counted)
    )
    return batches.assemble(ids, np.array([0]), counted_GBS=counted)


def test_sequences_hold_the_samples_and_say_what_counts():
    packed, alone = batches_of(True).samples, batches_of(False).samples
    assert (packed.counts, alone.counts) == ([3, 0, 0, 0], [6, 0, 0, 0])
    assert packed.weights == [3.0, 0.0, 0.0, 0.0]
    assert packed._packs[0] == [[0], [1, 2], [3, 4, 5]]
    for number, sample in enumerate(samples()):
        ids, counted = alone.read(0, number), alone.counted(0, number)
        assert (ids[: len(sample.ids_T)] == sample.ids_T).all()
        assert (ids[len(sample.ids_T) :] == PAD).all()
        assert np.flatnonzero(counted).tolist() == list(range(sample.answer - 1, len(sample.ids_T) - 1))
    total = sum(sample.counted for sample in samples())
    for own in (packed, alone):
        assert sum(own.counted(0, n).sum() for n in range(own.counts[0])) == total
        assert own.frequencies()[0].sum() == total
        assert own.frequencies()[0, EOT] == 6
    assert packed.hash != alone.hash


def test_prompts_have_no_gradient_and_answers_that_of_their_mean_loss():
    """Other labels where nothing counts give the same bits; other labels of an answer do not."""
    batches = batches_of(True)
    network, store = toy_network(batches.config)
    dense = ParameterTuple(network.trainable_params())
    function = ms.value_and_grad(ScaledLoss(network), EXPERTS_ARGUMENT, dense, has_aux=True)
    arrays = batch_of(batches, [0, 1, 2, 2]).arrays()
    active = active_weights(store, arrays.active_A)

    def gradients(labels: np.ndarray) -> tuple[float, list[bytes]]:
        changed = arrays._replace(labels_GBS=labels)
        inputs = map(as_input, [*changed.of_micro_batch(0), active])
        (loss, _), (of_experts, of_dense) = function(Tensor(1.0, ms.float32), *inputs)
        return float(loss.asnumpy()), [
            g.asnumpy().tobytes() for g in (*(g for of in of_experts for g in of), *of_dense)
        ]

    labels, silent = arrays.labels_GBS, arrays.weights_GBS == 0
    rows = np.random.default_rng(1).permutation(batches.tokenizer.row_of[0])[: labels.size % 60 + 1]
    other = np.where(silent, np.resize(rows, labels.shape), labels).astype(np.int32)
    assert (other != labels).sum() > 20
    expected = gradients(labels)
    assert gradients(other) == expected, "neither the loss nor any gradient knows them"
    spoken = labels.copy()
    spoken[tuple(np.argwhere(~silent)[0])] = rows[0]
    assert gradients(spoken)[0] != expected[0]
    logits_BSR = logits_of(network, store, arrays)
    nats = nats_of(logits_BSR, labels[0])[~silent[0]]
    assert expected[0] == pytest.approx(nats.mean(), rel=1e-6)


def logits_of(network, store, arrays) -> np.ndarray:
    return logits_by(Logits(network), store, arrays)


def logits_by(graph: Logits, store, arrays) -> np.ndarray:
    active = active_weights(store, arrays.active_A)
    _, logits = graph(*map(as_input, [*logits_arguments(arrays), active]))
    return logits.asnumpy().reshape(*arrays.labels_GBS.shape[1:], -1).astype(np.float64)


def nats_of(logits_BSR: np.ndarray, labels_BS: np.ndarray) -> np.ndarray:
    top = logits_BSR.max(axis=-1)
    total = top + np.log(np.exp(logits_BSR - top[..., None]).sum(axis=-1))
    return total - np.take_along_axis(logits_BSR, labels_BS[..., None], -1)[..., 0]


def test_who_shares_a_sequence_changes_no_sample_and_padding_none():
    """The loss of each sample, in nats per token: alone and padded, and beside others."""
    alone, packed = batches_of(False), batches_of(True)
    network, store = toy_network(alone.config)
    graph, step = Logits(network), EvaluationStep(network, store)
    step.set_train(False)

    def losses(batch: Batch, starts: list[tuple[int, int, int]]) -> dict[int, float]:
        """Loss of samples; starts: number, sequence and first position of each."""
        nats_BS = nats_of(logits_by(graph, store, batch.arrays()), batch.labels_GBS[0]) * (batch.weights_GBS[0] > 0)
        by_graph = step.block_losses(batch) * batch.counted
        assert by_graph == pytest.approx(nats_BS.sum(axis=1), rel=1e-6), "the loss of training is the one of NumPy"
        return {n: nats_BS[b, s : s + len(samples()[n].ids_T) - 1].sum() / samples()[n].counted for n, b, s in starts}

    expected = losses(batch_of(alone, [0, 1, 2, 3]), [(n, n, 0) for n in range(4)])
    expected |= losses(batch_of(alone, [4, 5, 4, 5]), [(4, 0, 0), (5, 1, 0)])
    places = [(0, 0, 0), (1, 1, 0), (2, 1, 9), (3, 2, 0), (4, 2, 5), (5, 2, 11)]
    found = losses(batch_of(packed, [0, 1, 2, 2]), places)
    assert found.keys() == expected.keys()
    for number, loss in expected.items():
        assert found[number] == pytest.approx(loss, abs=1e-6), number


@given(st.lists(st.integers(1, 30), max_size=60))
def test_every_sample_is_in_one_sequence_that_has_room_for_it(lengths):
    found = pack(lengths, 30, together=True)
    assert sorted(number for each in found for number in each) == list(range(len(lengths)))
    filled = sorted(sum(lengths[number] for number in each) for each in found)
    assert all(each for each in found)
    assert filled == [] or filled[-1] <= 30
    assert len(filled) < 2 or filled[0] + filled[1] > 30, "no two sequences fit into one"


def test_apart_each_sample_has_its_own_and_the_order_is_that_of_the_file():
    assert pack([5, 9, 2], 10, together=False) == [[0], [1], [2]]
    assert pack([5, 9, 2, 1], 10, together=True) == [[0, 2], [1, 3]]
    assert pack([], 10, together=True) == []
