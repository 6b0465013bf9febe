"""The method in one file: it stands alone, and trains as the package does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from helpers.prepared import seal
from helpers.toy import SLOT_ROWS, VOCABULARY, toy_config, toy_network, toy_table

from examples import pangu_sigma as example
from pangu_sigma.data.batches import Batch, BatchLoader, StepArrays, open_samples
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.token_files import write_tokens
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.optimizer.update import Schedule
from pangu_sigma.sections import OptimizerConfig
from pangu_sigma.training.step import TrainStep

FILE = Path(example.__file__)
STEPS = 20

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_the_file_is_short_and_imports_nothing_of_the_repository():
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    imported = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                imported |= {alias.name.split(".")[0] for alias in names}
            case ast.ImportFrom(module=module):
                imported.add(str(module).split(".")[0])
    assert imported - sys.stdlib_module_names == {"mindspore", "numpy"}


def test_its_optimizer_has_the_numbers_and_the_schedule_of_the_package():
    optimizer = OptimizerConfig(**schedule())
    assert (optimizer.beta1, optimizer.beta2) == (example.BETA1, example.BETA2)
    assert (optimizer.eps_dense, optimizer.eps_experts) == (example.EPS_DENSE, example.EPS_EXPERTS)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (example.WEIGHT_DECAY, example.CLIP_NORM)
    updates = range(1, example.WARMUP + example.DECAY + 20)
    assert [*map(example.learning_rate, updates)] == pytest.approx([*map(Schedule(optimizer), updates)], rel=1e-5)


def schedule() -> dict[str, float]:
    schedule = {"peak_lr": example.PEAK_LR, "end_lr": example.END_LR}
    return schedule | {"warmup_steps": example.WARMUP, "decay_steps": example.DECAY}


def paper_form() -> dict[str, dict]:
    """Sections of a small configuration in the paper's form, of the sizes and with the schedule of the example."""
    model = {"hidden": example.HIDDEN, "ffn": 32, "heads": example.HEADS, "dense_layers": example.DENSE_LAYERS}
    model |= {"rre_layers": example.SPARSE_LAYERS, "experts_per_domain": example.EXPERTS_PER_DOMAIN, "seq_length": 16}
    data = {"domains_per_step": example.DOMAINS_PER_STEP}
    return {"model": model, "data": data, "train": {"batch_size": example.BATCH, "optimizer": schedule()}}


@pytest.fixture(scope="module")
def run(graph_mode, tmp_path_factory) -> SimpleNamespace:
    """Twenty steps of the package, on random documents of four domains in two slots, and what they began with."""
    config, folder, rng = toy_config(**paper_form()), tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    for domain in config.domains:
        frequent_first = [np.minimum(rng.geometric(0.3, rng.integers(1, 13)), VOCABULARY - 1) for _ in range(100)]
        (folder / domain.name).mkdir()
        write_tokens(folder / domain.name / "train", [[*ids.tolist(), example.EOT] for ids in frequent_first])
    row_of = np.tile(np.arange(VOCABULARY, dtype=np.int32), (2, 1))  # in the example a token's id is its row
    tokenizer = SimpleNamespace(size=VOCABULARY, eot=example.EOT, pad=-1, row_of=row_of)
    table = toy_table(config)
    samples = open_samples(config, seal(folder), "train", tokenizer.size)
    loader = BatchLoader(config, samples, tokenizer, table)  # type: ignore[arg-type]
    network, store = toy_network(config)
    step = TrainStep(config, network, store)
    dense = {name: parameter.asnumpy().copy() for name, parameter in network.parameters_and_names()}
    dense["embedding"] = dense["embedding"].reshape(2, SLOT_ROWS, -1)
    names = [name for names in example.EXPERT_TENSORS for name in names]
    weights = [weight for segment in store.segments for weight in segment.weights]
    experts = {name: weight.asnumpy().copy() for name, weight in zip(names, weights, strict=True)}
    cursor, rate = Cursor([0] * len(loader.domains)), Schedule(config.train.optimizer)
    batches = [loader.next(cursor) for _ in range(STEPS)]
    losses = []
    for update, batch in enumerate(batches, 1):
        result = step.take(rate(update), StepArrays(*map(as_tensor, batch.arrays())))
        losses.append(float(result.block_loss_GM[0].asnumpy().sum()))
    updates = np.stack([segment.steps.asnumpy() for segment in store.segments])
    told = {"batches": batches, "losses": losses, "updates": updates}
    return SimpleNamespace(tables=table.first_NDV, dense=dense, experts=experts, **told)


def ids_and_domains(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of the sequences with the next one, [B, S + 1], and the domain of each."""
    ids_BS1 = np.concatenate([batch.ids_GBS[0], batch.labels_GBS[0][:, -1:]], axis=1)
    return ids_BS1, np.repeat(batch.domains_M, len(ids_BS1) // len(batch.domains_M))


def states(run: SimpleNamespace) -> tuple[dict, dict]:
    copies = ({name: array.copy() for name, array in arrays.items()} for arrays in (run.dense, run.experts))
    dense, experts = copies
    return example.adam_state(dense, 0), example.adam_state(experts, np.zeros_like(run.updates))


SLOTS = np.array([0, 1, 0, 1])


def test_its_next_twenty_losses_are_the_packages(run):
    dense, experts = states(run)
    losses = []
    for batch in run.batches:
        arrays, active_N = example.make_batch(*ids_and_domains(batch), SLOTS, run.tables)
        stored = len(experts["t"][0])
        assert [a.tolist() for a in active_N] == [a[a < stored].tolist() for a in batch.active_A]
        losses.append(example.step(dense, experts, arrays, active_N).sum())
    np.testing.assert_allclose(losses, run.losses, rtol=1e-5)
    assert losses[-1] < 0.9 * losses[0], "and they learn"
    assert (experts["t"] == run.updates).all()
    assert len(np.unique(run.updates)) > 1, "experts were active in different numbers of steps"


def test_an_inactive_expert_keeps_every_bit(run):
    """Other domains' experts, and an expert of the batch's domains that no token goes to."""
    dense, experts = states(run)
    ids_BS1, domains_B = ids_and_domains(run.batches[0])
    for ids in (ids_BS1, ids_BS1 % 3):  # of three ids at most three of four experts
        batch, active_N = example.make_batch(ids, domains_B, SLOTS, run.tables)
        before = {part: {name: array.copy() for name, array in experts[part].items()} for part in "wmv"}
        updates = experts["t"].copy()
        example.step(dense, experts, batch, active_N)
        for n, active in enumerate(active_N):
            of_domains = np.isin(np.arange(16) // example.EXPERTS_PER_DOMAIN, domains_B)
            inactive = np.setdiff1d(np.arange(16), active)
            assert of_domains[inactive].any() == (ids is not ids_BS1)
            assert (experts["t"][n] - updates[n] == np.isin(np.arange(16), active)).all()
            for part in "wmv":
                for name in example.EXPERT_TENSORS[n]:
                    new, old = experts[part][name], before[part][name]
                    assert new[inactive].tobytes() == old[inactive].tobytes(), (part, name)
                    assert (new[active] != old[active]).any(axis=tuple(range(1, new.ndim))).all(), (part, name)


def test_step_0_of_the_sparse_model_is_the_parent():
    """Products of other numbers of rows may be added in another order, so the losses agree to 1e-6, and not always to the bit."""
    rng = np.random.default_rng(0)
    parent = {name: array + rng.normal(0, 0.1, array.shape) for name, array in example.init_dense(rng).items()}
    parent = {name: array.astype(np.float32) for name, array in parent.items()}
    dense, experts = example.inherit(parent)
    assert parent.keys() == dense.keys() | experts.keys()
    assert not dense.keys() & experts.keys()
    for name, array in experts.items():
        assert len(array) == len(example.DOMAINS) * example.EXPERTS_PER_DOMAIN
        assert (array == parent[name]).all()
    domains_B = np.repeat([2, 1], example.BATCH // 2)
    ids_BS1 = rng.integers(0, 20, (example.BATCH, 17))
    alone, _ = example.make_batch(ids_BS1, domains_B, np.zeros(3, int))
    batch, active_N = example.make_batch(ids_BS1, domains_B, np.arange(3), example.draw_tables(rng))
    forward = ms.jit(example.loss)
    of_parent = forward(example.on_device(parent), example.on_device(alone))
    weights = dense | example.fetch(experts, active_N)
    of_child = forward(example.on_device(weights), example.on_device(batch))
    for one, other in zip(of_parent, of_child, strict=True):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), rtol=1e-6)


def test_random_tables_give_each_expert_the_same_number_of_ids():
    tables_NDR = example.draw_tables(np.random.default_rng(0))
    assert tables_NDR.shape == (example.SPARSE_LAYERS, len(example.DOMAINS), example.VOCABULARY)
    for table_R in tables_NDR.reshape(-1, example.VOCABULARY):
        of_each = np.bincount(table_R, minlength=example.EXPERTS_PER_DOMAIN)
        assert set(of_each) == {example.VOCABULARY // example.EXPERTS_PER_DOMAIN}
    assert len({table_R.tobytes() for table_R in tables_NDR.reshape(-1, example.VOCABULARY)}) == 6


@pytest.mark.slow
def test_run_alone_it_learns_in_every_domain(tmp_path):
    done = subprocess.run([sys.executable, str(FILE)], cwd=tmp_path, capture_output=True, text=True, check=True)
    losses = [ast.literal_eval(found) for found in re.findall(r"{.*}", done.stdout)]
    assert len(losses) == 8
    for domain in example.DOMAINS:
        dense, sparse = [loss[domain] for loss in losses[:4]], [loss[domain] for loss in losses[4:]]
        assert dense[-1] < 0.85 * dense[0]
        assert sparse[-1] < 0.95 * dense[-1]
