"""The contenders of `bench adam` do the same work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from experiments.bench import adam

TENSORS, SIZE, STEPS = 3, 70, 4


@pytest.fixture
def small(graph_mode: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "TENSORS", TENSORS)
    monkeypatch.setattr(adam, "SIZE", SIZE)


@pytest.fixture
def gradients() -> list[np.ndarray]:
    """Of one tensor each, whose norm is clipped in the pipeline."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=SIZE).astype(np.float32) for _ in range(TENSORS)]


def expected(gradients: list[np.ndarray], grad_scale: float) -> list[np.ndarray]:
    """AdamW of STEPS equal gradients, in float64, from the weights that the bench begins with."""
    from ascend_ops.adam import adam_oracle

    weights = []
    for gradient in gradients:
        w, m, v = np.full(SIZE, np.float32(0.02), np.float64), 0.0, 0.0
        for t in range(1, STEPS + 1):
            w, m, v = adam_oracle(
                w, m, v, t, gradient, lr=adam.LR, grad_scale=grad_scale, beta1=adam.BETAS[0], beta2=adam.BETAS[1],
                eps=adam.EPS, weight_decay=adam.DECAY,
            )  # fmt: skip
        weights.append(w)
    return weights


def ours_with(gradients: list[np.ndarray]) -> adam.HostAdam:
    ours = adam.HostAdam(adam.Arrays.of(TENSORS, 1, SIZE), 1)
    set_gradients(ours, gradients)
    return ours


def set_gradients(ours: adam.HostAdam, gradients: list[np.ndarray]) -> None:
    for tensor, gradient in zip(ours._grads, gradients, strict=True):
        tensor.asnumpy()[0] = gradient


def weights_of(ours: adam.HostAdam) -> list[np.ndarray]:
    return [w.asnumpy()[0] for w in ours._kernel.w]


def clipped(gradients: list[np.ndarray]) -> float:
    """What the pipeline multiplies scaled gradients with."""
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients)) / adam.SCALE
    return min(adam.CLIP / (norm + 1e-6), 1.0) / adam.SCALE


def test_the_kernel_is_adamw(small: None, gradients: list[np.ndarray]):
    ours = ours_with(gradients)
    for _ in range(STEPS):
        ours.kernel()
    for found, exact in zip(weights_of(ours), expected(gradients, 1.0), strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_the_pipeline_unscales_clips_updates_and_copies(small: None, gradients: list[np.ndarray], size: float):
    gradients = [np.float32(size) * g for g in gradients]
    assert (clipped(gradients) < 1 / adam.SCALE) == (size > 1), "one case should be clipped, the other not"
    ours = ours_with(gradients)
    for _ in range(STEPS):
        copies = ours.pipeline()
    for found, copy, exact in zip(weights_of(ours), copies, expected(gradients, clipped(gradients)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-8)
        assert copy[0].tobytes() == found.astype(np.float16).tobytes()
    for left, gradient in zip(ours._grads, gradients, strict=True):
        assert left.asnumpy()[0].tobytes() == gradient.tobytes(), "gradients are only read"


@pytest.mark.parametrize("make", [adam.torch_fused, adam.deepspeed_adam])
def test_peers_do_the_same(small: None, gradients: list[np.ndarray], make: Callable):
    if not adam.installed(adam.FUSED if make is adam.torch_fused else adam.DEEPSPEED):
        pytest.skip("the peer is not installed")
    import torch

    gradients = [np.float32(1e3) * g for g in gradients]
    for pipeline in (False, True):
        peer = adam.TorchAdam(make, [np.full(SIZE, 0.02, np.float32) for _ in gradients])
        for _ in range(STEPS):
            for target, gradient in zip(peer.grads, gradients, strict=True):
                target.copy_(torch.from_numpy(gradient))
            peer.pipeline() if pipeline else peer.kernel()
        scale = clipped(gradients) if pipeline else 1.0
        for found, half, exact in zip(peer.parameters, peer.half, expected(gradients, scale), strict=True):
            np.testing.assert_allclose(found.detach().numpy(), exact, rtol=0, atol=1e-7)
            if pipeline:
                assert torch.equal(half, found.detach().half())
        assert pipeline != any(bool(g.any()) for g in peer.grads)


def test_only_active_rows_are_updated(small: None):
    """The store of a step has more rows than places."""
    ours = adam.HostAdam(adam.Arrays.of(1, 5, SIZE), active=2)
    ours.pipeline()
    w = ours._kernel.w[0].asnumpy()
    assert (w[:2] != np.float32(0.02)).all()
    assert (w[2:] == np.float32(0.02)).all()


def test_rows_have_the_right_peers_and_those_that_are_not_there_are_absent(
    small: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(adam, "installed", lambda peer: False)
    rows = adam.run(peers=True)
    for what, peers in (
        ("kernel", ["memory traffic of Adam alone", "MindSpore nn.AdamWeightDecay", adam.FUSED, adam.DEEPSPEED]),
        ("pipeline", [adam.FUSED, adam.DEEPSPEED]),
    ):
        of_case = [row for row in rows if row.case.startswith(what)]
        assert [row.peer for row in of_case] == peers
        assert {(row.bench, row.unit) for row in of_case} == {("adam", "ms")}
        for row in of_case:
            missing = row.peer in (adam.FUSED, adam.DEEPSPEED)
            assert (row.ratio is None, row.peer_value is None) == (missing, missing)
            assert row.ours > 0
            assert row.runs >= 9


def test_without_peers_nothing_is_said_of_them(small: None):
    assert [row.peer for row in adam.run(peers=False)] == [
        "memory traffic of Adam alone",
        "MindSpore nn.AdamWeightDecay",
    ]
