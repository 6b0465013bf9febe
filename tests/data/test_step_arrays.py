from __future__ import annotations

import inspect

import numpy as np

from pangu_sigma.data.batches import MICRO_BATCH_FIELDS, StepArrays, draws_of
from pangu_sigma.model.pangu_sigma import NextTokenLoss
from pangu_sigma.training.step import SpikeLimits, TrainStep


def arguments(construct) -> list[str]:
    """Names of the plain arguments of a graph, without its shape suffixes."""
    found = inspect.signature(construct).parameters.values()
    return [p.name.split("_")[0] for p in found if p.name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD]


def test_the_fields_are_the_arguments_of_the_step():
    groups = [*StepArrays._fields, *SpikeLimits._fields, "experts"]
    assert list(inspect.signature(TrainStep.construct).parameters) == ["self", "lr", *groups]


def test_a_pass_has_the_arguments_of_the_loss():
    assert arguments(NextTokenLoss.construct) == [*(name.split("_")[0] for name in MICRO_BATCH_FIELDS), "experts"]
    arrays = StepArrays(*(np.full((2, 1), number) for number in range(len(StepArrays._fields))))
    assert [int(array[0]) for array in arrays.of_micro_batch(1)] == list(range(len(MICRO_BATCH_FIELDS)))
    [*_, plan, _] = arrays._replace(offsets_GA1=(np.arange(4).reshape(2, 2), np.ones((2, 1)))).of_micro_batch(1)
    assert [array.tolist() for array in plan] == [[2, 3], [1.0]], "of each segment"


def test_draws_are_the_words_of_seed_and_number_low_word_first():
    found = draws_of((7 << 32) + 0xFFFFFFFE, np.array([[1, (5 << 32) + 3]]))
    assert found.dtype == np.int32
    assert found.view(np.uint32).tolist() == [[[0xFFFFFFFE, 7, 1, 0], [0xFFFFFFFE, 7, 3, 5]]]
    assert draws_of(1 << 64, np.array([0])).tolist() == [[0, 0, 0, 0]], "a seed has 64 bits"
