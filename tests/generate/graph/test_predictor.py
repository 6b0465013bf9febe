from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import tiny_config
from helpers.toy import Logits, logits_arguments

from pangu_sigma.checkpoint.format import CheckpointError
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.state import load_trained
from pangu_sigma.config import ConfigError
from pangu_sigma.data.batches import Batches
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.generate.graph.predictor import Predictor
from pangu_sigma.model.declare import as_tensor

pytestmark = pytest.mark.usefixtures("graph_mode")

PROMPTS = [
    ("en", "the cat"),
    ("zh", "今天天气"),
    ("code", "x y total item return if for in"),
    ("en", "a small old red"),
]


@pytest.fixture(scope="module")
def predictor(graph_mode, tiny_run) -> Predictor:
    return Predictor.from_run(tiny_run)


@pytest.fixture(scope="module")
def domains(predictor) -> Domains:
    return domains_of(predictor.config)


def training_logits(run: RunFolder, sequences: list[list[int]], names: list[str]) -> np.ndarray:
    """Logits [B, S, R] by the network that trains, one domain a block, sequences filled up with the id 4."""
    config = run.config.model_validate(
        run.config.model_dump()
        | {"train": run.config.train.model_dump() | {"batch_size": len(names)}}
        | {"data": run.config.data.model_dump() | {"domains_per_step": len(run.config.domains)}}
    )
    batches = Batches(config, Path(config.data.path), run.tokenizer, run.table)
    ids = np.full((1, len(names), config.model.seq_length + 1), 4)
    for b, sequence in enumerate(sequences):
        ids[0, b, : len(sequence)] = sequence
    batch = batches.assemble(ids, np.array([domains_of(config).named(name).index for name in names]))
    arrays = batch.arrays()
    network, store = load_trained(run)
    experts = [w.asnumpy()[arrays.active_NA[i // 4] % config.experts] for i, w in enumerate(store.weights)]
    inputs = logits_arguments(arrays) + experts
    return Logits(network).set_train(False)(*map(as_tensor, inputs))[1].asnumpy()


def test_next_logits_are_those_of_the_network_that_trained(predictor, domains, tiny_run):
    """One prompt a domain: another graph, another layout of the experts' rows, the same numbers."""
    prompts = PROMPTS[:3]
    sequences = [predictor.tokenizer.prompt(text, domains.named(name)) for name, text in prompts]
    found = predictor.next_logits(sequences, [domains.named(name) for name, _ in prompts])
    expected = training_logits(RunFolder.open(tiny_run), sequences, [name for name, _ in prompts])
    for b, sequence in enumerate(sequences):
        used = np.isfinite(found[b])
        assert used.sum() > 300
        np.testing.assert_allclose(found[b, used], expected[b, len(sequence) - 1, used], rtol=0, atol=1e-4)


def test_a_batch_of_any_lengths_and_domains_answers_as_each_alone(predictor, domains):
    sequences = [predictor.tokenizer.prompt(text, domains.named(name)) for name, text in PROMPTS]
    assert len({len(ids) for ids in sequences}) > 2
    of = [domains.named(name) for name, _ in PROMPTS]
    together = predictor.next_logits(sequences, of)
    for b, (ids, domain) in enumerate(zip(sequences, of, strict=True)):
        alone = predictor.next_logits([ids], [domain])[0]
        assert (np.isfinite(alone) == np.isfinite(together[b])).all()
        used = np.isfinite(alone)
        np.testing.assert_allclose(together[b, used], alone[used], rtol=0, atol=1e-5)


def test_the_domain_decides_the_answer(predictor, domains):
    """Same ids, same slot, other experts."""
    ids = predictor.tokenizer.prompt("the cat", domains.named("en"))
    one, other = (predictor.next_logits([ids], [domains.named(name)])[0] for name in ("en", "code"))
    used = np.isfinite(one)
    assert np.abs(one[used] - other[used]).max() > 1e-3


def test_rows_without_a_token_are_impossible(predictor, domains):
    for domain in domains:
        logits = predictor.next_logits([predictor.tokenizer.prompt("a", domain)], [domain])[0]
        assert logits.shape == (640,)
        assert (np.isfinite(logits) == (predictor.tokenizer.slot_rows[domain.slot] >= 0)).all()
    assert (predictor.tokenizer.slot_rows < 0).any(), "some slot of the test should have such rows"


def test_a_sequence_may_fill_the_model_but_not_more(predictor, domains):
    en = domains.named("en")
    ids = (predictor.tokenizer.prompt("the cat dog " * 20, en))[:33]
    assert np.isfinite(predictor.next_logits([ids[:32]], [en])).any()
    with pytest.raises(ConfigError, match=r"33 tokens is longer than model\.seq_length=32"):
        predictor.next_logits([[4], ids], [en, en])


def test_an_empty_prompt_is_refused(predictor, domains):
    with pytest.raises(ConfigError, match="a prompt has no tokens"):
        predictor.next_logits([[4], []], [domains.named("en")] * 2)


def test_an_id_without_a_row_is_refused_by_domain(predictor, domains):
    en = domains.named("en")
    missing = int(np.flatnonzero(predictor.tokenizer.row_of[en.slot] < 0)[0])
    with pytest.raises(ConfigError, match=f"token id {missing} has no row in the embedding slot of domain en"):
        predictor.next_logits([[4, missing]], [en])


def test_an_id_that_does_not_exist_is_refused(predictor, domains):
    size = predictor.tokenizer.size
    for wrong in (-1, size, 10**12):
        with pytest.raises(
            ConfigError, match=f"token id {wrong} does not exist; this model has the ids 0 … {size - 1}"
        ):
            predictor.next_logits([[4, wrong]], [domains.named("en")])


def test_folders_that_hold_no_model_are_refused(tiny_data, tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        Predictor.from_run(tmp_path)
    RunFolder.create(tmp_path / "new", tiny_config(tiny_data))
    with pytest.raises(CheckpointError, match=r"checkpoints.*folder of an earlier run"):
        Predictor.from_run(tmp_path / "new")
