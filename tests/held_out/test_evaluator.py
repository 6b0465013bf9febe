from __future__ import annotations

import numpy as np
import pytest

from experiments.chaos.runs import digests
from experiments.tiny import tiny_config
from pangu_sigma.data.batches import BatchLoader, open_samples
from pangu_sigma.held_out.evaluator import EvaluationStep, Evaluator

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def forward(trainer) -> EvaluationStep:
    """The graph of an evaluation, compiled once for each size of batch."""
    return EvaluationStep(trainer.network, trainer.store)


def test_evaluation_changes_nothing_and_leaves_dropout_on_for_training(trainer, forward):
    """The step may be compiled after an evaluation: it must find its network in training."""
    before = digests(trainer.save())
    evaluator = Evaluator(trainer.open_batches("held_out"), 8, forward, trainer.network)
    first, second = evaluator.losses(), evaluator.losses()
    assert first.keys() == {"zh", "en", "code"}
    for name, loss in first.items():
        assert (loss.nats_U == second[name].nats_U).all(), "dropout is off"
    assert trainer.network.training
    assert digests(trainer.save()) == before


def test_held_out_loss_is_a_mean_over_all_its_tokens(tiny_data, trainer, forward):
    """Batches of any size give it: the last one, which is filled up, weighs what it holds. So do they for every sample."""
    losses = []
    for size in (4, 10):
        options = trainer.config.train.model_dump() | {"batch_size": size}
        config = tiny_config(tiny_data, train=options, model=trainer.config.model.model_dump())
        run = trainer.run
        batches = BatchLoader(
            config, open_samples(config, tiny_data, "held_out", run.tokenizer.size), run.tokenizer, run.table
        )
        losses.append(Evaluator(batches, 40, forward, trainer.network).losses())
        assert any(n % size for n in batches.samples.counts), "one batch should be filled up"
    for name, loss in losses[0].items():
        other = losses[1][name]
        np.testing.assert_allclose(loss.nats_U, other.nats_U, rtol=1e-5)
        assert (loss.tokens_U == other.tokens_U).all()
        assert (loss.bytes_U == other.bytes_U).all()
        assert (loss.unigram, loss.digest) == (other.unigram, other.digest)
