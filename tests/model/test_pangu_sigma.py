"""The network against PanGu-α, written again in float64 NumPy from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import (
    Logits,
    active_weights,
    logits_arguments,
    random_documents,
    toy_batches,
    toy_config,
    toy_network,
)
from mindspore import nn, ops

from ascend_ops.activation import activation_oracle
from ascend_ops.dropout import kept_oracle
from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.model.declare import as_input, as_tensor
from pangu_sigma.model.pangu_sigma import FFN_TENSORS, PanGuSigma

pytestmark = pytest.mark.usefixtures("graph_mode")

Weights = dict[str, np.ndarray]


class Oracle:
    """PanGu-α with an FFN per token: `ffns[layer]` is one set of FFN tensors [K, …], `experts[layer]` the expert [B, S]."""

    def __init__(self, config: Config, weights: Weights, expert_weights: list[Weights]):
        self.config = config.model
        self.w = {name: array.astype(np.float64) for name, array in weights.items()}
        self.experts = [{n: a.astype(np.float64) for n, a in layer.items()} for layer in expert_weights]
        self.dropout = 0.0
        self.e_BSH: np.ndarray | None = None

    def hidden(self, batch: Batch, routes_NBS: np.ndarray | None) -> np.ndarray:
        """[B, S, H]: every sequence and head on its own, no vectorisation to share a mistake with."""
        table = self.w["embedding"]
        sequences = []
        for b, rows in enumerate(batch.rows_GBS[0]):
            positions, documents = batch.positions_GBS[0][b], batch.documents_GBS[0][b]
            self.draws = batch.draws_GB4[0][b : b + 1]
            x = self.drop(0, table[rows] + self.w["positions"][positions])
            for layer in range(self.config.layers):
                query = None
                if layer == self.config.layers - 1:
                    x = self.norm("norm", x)
                    query = self.w["query_positions"][positions]
                if self.e_BSH is not None:
                    x = x + self.w[f"layers.{layer}.row_scale"] * self.e_BSH[b]
                x = self.layer(layer, x, query, documents, None if routes_NBS is None else routes_NBS[:, b])
            sequences.append(x)
        return np.stack(sequences)

    def layer(
        self, index: int, x: np.ndarray, query: np.ndarray | None, documents: np.ndarray, routes_NS: np.ndarray | None
    ) -> np.ndarray:
        name = f"layers.{index}"
        normed = self.norm(f"{name}.attention_norm", x)
        x = x + self.attention(index, normed if query is None else query, normed, documents)
        normed = self.norm(f"{name}.ffn_norm", x)
        routed = index - self.config.dense_layers
        if routed < 0:
            rows = [self.ffn(row, {t: self.w[f"{name}.ffn.{t}"] for t in FFN_TENSORS}) for row in normed]
            return x + self.drop(3 * index + 3, np.stack(rows))
        assert routes_NS is not None
        rows, parts = np.zeros_like(x), len(self.config.segments)
        for n in range(parts * routed, parts * (routed + 1)):
            no_bias = {"b2": np.zeros((len(self.experts[n]["w2"]), x.shape[1]))}
            tensors = no_bias | self.experts[n]
            for row, (x_H, e) in enumerate(zip(normed, routes_NS[n], strict=True)):
                rows[row] += self.ffn(x_H, {t: tensors[t][e] for t in FFN_TENSORS})
        return x + self.drop(3 * index + 3, rows)

    def drop(self, site: int, values: np.ndarray) -> np.ndarray:
        """Values of one sequence, of which the site drops some."""
        kept = kept_oracle(self.dropout, site, self.draws, values.size).reshape(values.shape)
        return np.where(kept, values / (1 - self.dropout), 0)

    def attention(self, index: int, query: np.ndarray, x: np.ndarray, documents: np.ndarray) -> np.ndarray:
        name, width = f"layers.{index}.attention", self.config.hidden // self.config.heads
        q, k, v = (self.linear(f"{name}.{part}", rows) for part, rows in (("query", query), ("key", x), ("value", x)))
        mixed, scale = np.zeros_like(x), self.drop(3 * index + 1, np.ones((self.config.heads, len(x), len(x))))
        for head in range(self.config.heads):
            columns = slice(head * width, (head + 1) * width)
            for i in range(len(x)):
                scores = k[:, columns] @ q[i, columns] / math.sqrt(width)
                for j in range(len(x)):
                    scores[j] += 0.0 if j <= i and documents[i] == documents[j] else -10_000.0
                chances = np.exp(scores - scores.max())
                mixed[i, columns] = scale[head, i] * chances / chances.sum() @ v[:, columns]
        return self.drop(3 * index + 2, self.linear(f"{name}.output", mixed))

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.w[f"{name}.gain"] + self.w[f"{name}.bias"]

    def ffn(self, x_H: np.ndarray, tensors: Weights) -> np.ndarray:
        inner = tensors["w1"] @ x_H + tensors["b1"]
        return activation_oracle(inner, self.config.activation) @ tensors["w2"] + tensors["b2"]


class Model:
    """A compiled network, its weights, and the text it reads."""

    def __init__(self, config: Config, batches: BatchLoader):
        self.config, self.batches = config, batches
        self.network, self.store = toy_network(config)
        self.graph = Logits(self.network).set_train(False)

    def __call__(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states [T, H] and logits [M, T/M, R]."""
        arrays = batch.arrays(self.e_of(batch))
        experts = active_weights(self.store, arrays.active_A)
        hidden, logits = self.graph(*map(as_input, [*logits_arguments(arrays), experts]))
        return hidden.asnumpy(), logits.asnumpy()

    def e_of(self, batch: Batch) -> np.ndarray | tuple[()]:
        return self.store.rows.gather(batch.own_row_keys) if self.store.rows else ()

    def oracle(self) -> Oracle:
        segments = [experts.named for experts in self.store.segments]
        experts = [{t: actual[t].asnumpy() for t in FFN_TENSORS if t in actual} for actual in segments]
        return Oracle(self.config, weights_of(self.network), experts)

    def batch(self, seed: int = 0, domains: tuple[int, ...] = (0, 3)) -> Batch:
        """Four sequences of short random documents."""
        return self.assemble(random_ids(np.random.default_rng(seed), self.config), domains)

    def assemble(self, ids_BS1: np.ndarray, domains: tuple[int, ...] = (0, 3)) -> Batch:
        domains = domains[: self.config.data.domains_per_step]
        return self.batches.assemble(ids_BS1[None], np.array(domains))


def random_ids(rng: np.random.Generator, config: Config) -> np.ndarray:
    """[B, S + 1]"""
    text = [token for document in random_documents(rng, 60) for token in document]
    shape = config.train.batch_size, config.model.seq_length + 1
    return np.array(text[: shape[0] * shape[1]]).reshape(shape)


def weights_of(network: PanGuSigma) -> Weights:
    return {name: p.asnumpy() for name, p in network.parameters_and_names()}


@pytest.fixture(scope="module")
def make(graph_mode, tmp_path_factory) -> Callable[..., Model]:
    """Models over the same kind of text."""

    def made(domains: int, per_step: int, slots: int = 2, **model: float | str | list[str]) -> Model:
        config = toy_config(domains, slots, model=model, data={"domains_per_step": per_step}, train={"batch_size": 4})
        return Model(config, toy_batches(config, tmp_path_factory.mktemp("toy")))

    return made


@pytest.fixture(scope="module")
def routed(make) -> Model:
    """One dense layer, two RRE layers, four domains of two experts in two slots; two domains in a batch."""
    return make(4, 2)


@pytest.fixture(scope="module")
def dense(make) -> Model:
    """PanGu-α: three dense layers, one slot."""
    return make(1, 1, slots=1, dense_layers=3, rre_layers=0)


@pytest.fixture(scope="module")
def one_expert(make, dense) -> Model:
    """One dense layer, two RRE layers with a single expert, and the weights of `dense`."""
    model = make(1, 1, slots=1, dense_layers=1, rre_layers=2, experts_per_domain=1)
    source = dict(dense.network.parameters_and_names())
    for name, parameter in model.network.parameters_and_names():
        parameter.set_data(source[name])
    for n in range(2):
        for tensor in FFN_TENSORS:
            dense_tensor = source[f"layers.{n + 1}.ffn.{tensor}"].asnumpy()
            model.store.segments[n].named[tensor].set_data(as_tensor(dense_tensor[None]))
    return model


def routes(model: Model, batch: Batch) -> np.ndarray:
    """Expert of each token by the definition: the table's entry for the domain of the sequence and the token's id."""
    ids_BS = batch.ids_GBS[0]
    domains_B = np.repeat(batch.domains_M, len(ids_BS) // len(batch.domains_M))
    first, sizes = model.batches.table.first_NDV, model.config.model
    group = [sizes.experts_per_domain if kind == "own" else 0 for kind in sizes.routed]
    return np.array(
        [
            [[first[n, d, i] + d * experts for i in row] for d, row in zip(domains_B, ids_BS, strict=True)]
            for n, experts in enumerate(group)
        ]
    )


def assert_close(actual: np.ndarray, expected: np.ndarray, relative: float) -> None:
    """Largest error relative to the largest value."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= relative * np.abs(expected).max()


def test_without_rre_layers_it_is_pangu_alpha(dense):
    batch = dense.batch()
    hidden, logits = dense(batch)
    expected = dense.oracle().hidden(batch, None).reshape(hidden.shape)
    assert_close(hidden, expected, 1e-5)
    assert_close(logits[0], expected @ dense.oracle().w["embedding"].T, 1e-5)


def test_rre_layers_send_each_token_through_its_expert(routed):
    batch = routed.batch()
    routes_NBS = routes(routed, batch)
    assert len(np.unique(routes_NBS)) == 4, "the batch should meet every expert of both of its domains"
    hidden, logits = routed(batch)
    oracle = routed.oracle()
    expected = oracle.hidden(batch, routes_NBS).reshape(hidden.shape)
    assert_close(hidden, expected, 1e-5)
    blocks = expected.reshape(2, -1, expected.shape[-1])
    for block, slot, actual in zip(blocks, batch.slots_GM[0], logits, strict=True):
        table = oracle.w["embedding"].reshape(-1, routed.config.model.slot_rows, expected.shape[-1])
        assert_close(actual, block @ table[slot].T, 1e-5)


ROWS = [{"order": 1, "rows": 70, "width": 6}, {"order": 2, "rows": 40, "width": 10, "kind": "own"}]


@pytest.fixture(scope="module")
def segmented(make) -> Model:
    """Two own and two common segments in each RRE layer; rows of both orders, all of them filled."""
    model = make(4, 2, segments=["own", "own", "common", "common"], common_experts=3, rows=ROWS)
    rng = np.random.default_rng(2)
    for e, (number, entry) in enumerate(zip((70, 4 * 40), model.config.model.rows, strict=True)):
        model.store.rows.put(e, np.arange(number), rng.standard_normal((number, entry.width)).astype(np.float32))
    return model


def oracle_with_rows(model: Model, batch: Batch) -> Oracle:
    oracle = model.oracle()
    oracle.e_BSH = model.e_of(batch).reshape(*batch.ids_GBS[0].shape, -1).astype(np.float64)
    return oracle


def test_the_segments_of_a_token_are_added_with_one_bias_and_its_rows_before_every_layer(segmented):
    batch = segmented.batch()
    routes_NBS = routes(segmented, batch)
    assert all((routes_NBS[n] != routes_NBS[m]).any() for n in range(8) for m in range(n))
    for kind, route, experts in zip(segmented.config.model.routed, routes_NBS, segmented.store.segments, strict=True):
        assert (experts.segment.stored == 3 and route.max() < 3) == (kind == "common")
    pairs = zip(segmented.store.rows.records, batch.row_keys_EGBS, (6, 10), strict=True)
    e_GTH = np.concatenate([records[keys, :width] for records, keys, width in pairs], axis=-1)
    assert np.array_equal(segmented.e_of(batch).reshape(e_GTH.shape), e_GTH)
    hidden, _ = segmented(batch)
    expected = oracle_with_rows(segmented, batch).hidden(batch, routes_NBS)
    assert_close(hidden, expected.reshape(hidden.shape), 1e-5)


class Projected(nn.Cell):
    """Hidden states of a network, each times a number, and added: a function whose gradient is easy to take by differences."""

    def __init__(self, network: PanGuSigma, factors_TH: np.ndarray):
        super().__init__()
        self.hidden, self.factors = Hidden(network).set_train(False), as_tensor(factors_TH)

    def construct(self, *arguments):
        return ops.reduce_sum(self.hidden(*arguments) * self.factors)


def test_gradients_of_segments_and_rows_are_those_of_the_formula(segmented):
    """Some elements of each tensor of an expert of each segment, and some directions of the rows, by central differences of the
    oracle in float64."""
    batch, rng, step = segmented.batch(3), np.random.default_rng(0), 1e-5
    routes_NBS = routes(segmented, batch)
    factors = rng.standard_normal((batch.tokens, segmented.config.model.hidden)).astype(np.float32)
    rows, positions, documents, _, order, inverse, offsets, e = logits_arguments(batch.arrays(segmented.e_of(batch)))
    experts = active_weights(segmented.store, batch.active_A)
    arguments = [rows, positions, documents, batch.draws_GB4[0], order, inverse, offsets, e, experts]
    of_rows_TH, of_experts = ms.grad(Projected(segmented.network, factors), (7, 8))(*map(as_input, arguments))
    oracle = oracle_with_rows(segmented, batch)

    def slope(values: np.ndarray, direction: np.ndarray) -> float:
        before, sums = values.copy(), []
        for sign in (1, -1):
            values[...] = before + sign * step * direction
            sums.append((oracle.hidden(batch, routes_NBS).reshape(factors.shape) * factors).sum())
        values[...] = before
        return (sums[0] - sums[1]) / (2 * step)

    for n, tensors in enumerate(oracle.experts):
        entry = int(np.argmax(np.diff(offsets[n])))
        for values, of_tensor in zip(tensors.values(), of_experts[n], strict=True):
            expert = values[batch.active_A[n][entry]]
            direction = np.zeros_like(expert)
            at = tuple(int(rng.integers(size)) for size in expert.shape)
            direction[at] = 1
            assert slope(expert, direction) == pytest.approx(of_tensor.asnumpy()[entry][at], rel=1e-3, abs=1e-3)
    for _ in range(3):
        direction = rng.standard_normal(oracle.e_BSH.shape)
        expected = float((of_rows_TH.asnumpy() * direction.reshape(of_rows_TH.shape)).sum())
        assert slope(oracle.e_BSH, direction) == pytest.approx(expected, rel=1e-3)


def test_another_activation_is_that_of_every_ffn(make):
    """Of dense layers and of experts."""
    model = make(4, 2, activation="erf")
    batch = model.batch(6)
    routes_NBS, (hidden, _) = routes(model, batch), model(batch)
    oracle = model.oracle()
    assert_close(hidden, oracle.hidden(batch, routes_NBS).reshape(hidden.shape), 1e-5)
    oracle.config = oracle.config.model_copy(update={"activation": "fast_gelu"})
    assert np.abs(oracle.hidden(batch, routes_NBS).reshape(hidden.shape) - hidden).max() > 1e-3, "another function"


class Hidden(nn.Cell):
    """Hidden states of a network that trains."""

    def __init__(self, network: PanGuSigma):
        super().__init__()
        self.network = network

    def construct(self, rows, positions, documents, draws, order, inverse, offsets, e, experts):
        return self.network(rows, positions, documents, draws, order, inverse, offsets, e, experts)


def test_dropout_drops_at_every_site_what_philox_says(make):
    """Embedding, attention probabilities, attention output and FFN output of three layers, each sequence by its own sample."""
    model = make(4, 2, dropout=0.3)
    batch = model.batch()
    oracle = model.oracle()
    oracle.dropout = 0.3
    expected = oracle.hidden(batch, routes(model, batch))
    rows, positions, documents, _, _, _, draws, *plan = batch.arrays().of_micro_batch(0)
    inputs = (rows, positions, documents, draws, *plan, active_weights(model.store, batch.active_A))
    graph = Hidden(model.network).set_train(True)
    actual = graph(*map(as_input, inputs)).asnumpy()
    assert_close(actual.reshape(expected.shape), expected, 1e-5)


def test_one_domain_with_one_expert_is_pangu_alpha_exactly(dense, one_expert):
    """Bit for bit."""
    batch = dense.batch(4)
    (hidden, logits), (hidden_rre, logits_rre) = dense(batch), one_expert(one_expert.batch(4))
    assert (hidden == hidden_rre).all()
    assert (logits == logits_rre).all()
