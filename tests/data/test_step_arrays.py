from __future__ import annotations

import inspect

import numpy as np

from pangu_sigma.data.step_arrays import PASS_FIELDS, StepArrays
from pangu_sigma.model.loss import NextTokenLoss
from pangu_sigma.train.step import TrainStep


def arguments(construct) -> list[str]:
    """Names of the plain arguments of a graph, without its shape suffixes."""
    found = inspect.signature(construct).parameters.values()
    return [p.name.split("_")[0] for p in found if p.name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD]


def test_the_fields_are_the_arguments_of_the_step():
    names = [name.split("_")[0] for name in StepArrays._fields]
    assert arguments(TrainStep.construct) == ["lr", *names]
    assert list(inspect.signature(TrainStep.construct).parameters)[2:-1] == list(StepArrays._fields)


def test_a_pass_has_the_arguments_of_the_loss():
    assert arguments(NextTokenLoss.construct) == [name.split("_")[0] for name in PASS_FIELDS]
    arrays = StepArrays(*(np.full((2, 1), number) for number in range(len(StepArrays._fields))))
    assert [int(array[0]) for array in arrays.of_pass(1)] == list(range(len(PASS_FIELDS)))
