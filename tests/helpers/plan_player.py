"""A player of routing plans: what the ranks of a step do with the arrays of their plans for one segment, in NumPy.

All values are whole numbers in float64, and the FFN squares where the network's has an activation. So every sum is exact in any
order, and what many ranks compute can be asked to equal what one rank computes.

Shape suffixes: T tokens, H hidden, F ffn, K experts, A entries of an active list; rows are those that a rank's experts multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pangu_sigma.npu.capacity import ExchangePlan
from pangu_sigma.ranks.layout import Layout
from pangu_sigma.rre.plan import RoutingPlan

ByRank = dict[int, np.ndarray]
HIDDEN, FFN = 3, 2


class Weights(NamedTuple):
    """Weights of K experts, or of A of them, or their gradients."""

    w1_KFH: np.ndarray
    b1_KF: np.ndarray
    w2_KFH: np.ndarray
    b2_KH: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, experts: int) -> Weights:
        shapes = (FFN, HIDDEN), (FFN,), (FFN, HIDDEN), (HIDDEN,)
        return cls(*(rng.integers(-3, 4, (experts, *shape)).astype(float) for shape in shapes))

    def zeros(self) -> Weights:
        return Weights(*map(np.zeros_like, self))


def ffn(x_TH: np.ndarray, weights: Weights, k: int) -> np.ndarray:
    """The FFN of expert k."""
    w1_FH, b1_F, w2_FH, b2_H = (tensor[k] for tensor in weights)
    return (x_TH @ w1_FH.T + b1_F) ** 2 @ w2_FH + b2_H


def add_gradients(x_TH: np.ndarray, dy_TH: np.ndarray, weights: Weights, k: int, into: Weights) -> np.ndarray:
    """The gradient of the rows x; those of the weights of expert k are added to `into`."""
    w1_FH, b1_F, w2_FH, _ = (tensor[k] for tensor in weights)
    inner_TF = x_TH @ w1_FH.T + b1_F
    dinner_TF = 2 * inner_TF * (dy_TH @ w2_FH.T)
    of_weights = dinner_TF.T @ x_TH, dinner_TF.sum(axis=0), (inner_TF**2).T @ dy_TH, dy_TH.sum(axis=0)
    for tensor, gradient in zip(into, of_weights, strict=True):
        tensor[k] += gradient
    return dinner_TF @ w1_FH


def take(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """A gather as all of the operators do it: zeros where the index is negative. Its gradient is one by the inverse index."""
    assert index.max(initial=-1) < len(rows)
    return np.where(index[:, None] >= 0, rows[np.maximum(index, 0)], 0.0)


@dataclass
class Movement:
    """How the rows of a segment move in pass g by its plans of all ranks. to_experts: tokens → rows.
    to_tokens: rows → tokens. Each is the gradient of the other: the graphs gather by the inverse index
    in their backward pass, and move in the other direction."""

    grid: Layout
    plans: Mapping[int, RoutingPlan]
    g: int

    def to_experts(self, x: ByRank) -> ByRank:
        raise NotImplementedError

    def to_tokens(self, rows: ByRank) -> ByRank:
        raise NotImplementedError

    def peers(self, rank: int) -> list[int]:
        return self.grid.peers(rank, "expert")


class Gathering(Movement):
    """Movement on CPUs: a rank has the tokens of all ranks of its group, and its own are a part of the sum of their results."""

    def to_experts(self, x: ByRank) -> ByRank:
        return {
            r: take(np.concatenate([x[peer] for peer in self.peers(r)]), plan.order_GT[self.g])
            for r, plan in self.plans.items()
        }

    def to_tokens(self, rows: ByRank) -> ByRank:
        results = {r: take(rows[r], plan.inverse_GT[self.g]) for r, plan in self.plans.items()}
        own = {}
        for r in rows:
            peers = self.peers(r)
            here = np.stack([self.plans[peer].inverse_GT[self.g] >= 0 for peer in peers])
            assert (here.sum(axis=0) == 1).all(), "one summand alone is not zero"
            own[r] = np.split(np.sum([results[peer] for peer in peers], axis=0), len(peers))[peers.index(r)]
        return own


class Exchanging(Movement):
    """Movement on NPUs: a rank sends rows to the ranks of their experts. Plans are `ExchangePlan`s."""

    plans: Mapping[int, ExchangePlan]

    def to_experts(self, x: ByRank) -> ByRank:
        rows = self._exchanged({r: take(x[r], plan.order_GR[self.g]) for r, plan in self.plans.items()}, back=False)
        return {r: take(rows[r], plan.arrive_GW[self.g]) for r, plan in self.plans.items()}

    def to_tokens(self, rows: ByRank) -> ByRank:
        rows = self._exchanged({r: take(rows[r], plan.leave_GR[self.g]) for r, plan in self.plans.items()}, back=True)
        return {r: take(rows[r], plan.inverse_GT[self.g]) for r, plan in self.plans.items()}

    def _exchanged(self, rows: ByRank, back: bool) -> ByRank:
        """Each rank cuts its rows by receiver, and puts together what the others have for it."""
        parts, taken = {}, {}
        for r, plan in self.plans.items():
            out_P, in_P = (plan.taken_GP, plan.sent_GP) if back else (plan.sent_GP, plan.taken_GP)
            parts[r], taken[r] = self._cut(rows[r], out_P[self.g]), in_P[self.g]
        arrived = {}
        for r in rows:
            came = [parts[peer][self.peers(peer).index(r)] for peer in self.peers(r)]
            self._check_taken([len(part) for part in came], taken[r].tolist())
            arrived[r] = np.concatenate(came)
        return arrived

    def _cut(self, rows: np.ndarray, out_P: np.ndarray) -> list[np.ndarray]:
        return np.split(rows, len(out_P))

    def _check_taken(self, came: list[int], taken: list[int]) -> None:
        assert len(set(came)) == 1 and max(taken) <= came[0], "there is room for all rows"


class ExchangingDropless(Exchanging):
    """Movement on later NPUs, whose parts are as long as the two ranks know from their plans."""

    def _cut(self, rows: np.ndarray, out_P: np.ndarray) -> list[np.ndarray]:
        assert out_P.sum() <= len(rows)
        return np.split(rows, np.cumsum(out_P))[:-1]

    def _check_taken(self, came: list[int], taken: list[int]) -> None:
        assert came == taken


class Played(NamedTuple):
    """What a segment computes: results of the tokens of each rank, the gradients of these tokens, and those of all experts."""

    y: ByRank
    dx: ByRank
    gradients: Weights


def play(
    movement: Movement, x: ByRank, dy: ByRank, weights: Weights, ids: Callable[[int, np.ndarray], np.ndarray]
) -> Played:
    """Compute a segment forward and backward by the plans of all ranks. x: hidden states of the tokens of each rank. dy: gradients
    of the segment's results. ids(rank, active_A): the experts at the entries of a rank's active list."""
    rows, drows, gradients = movement.to_experts(x), movement.to_experts(dy), weights.zeros()
    y, dx = ({r: np.full_like(of_rank, np.nan) for r, of_rank in rows.items()} for _ in range(2))
    for r, plan in movement.plans.items():
        for k, ends in zip(ids(r, plan.active_A), pairwise(plan.offsets_GA1[movement.g]), strict=True):
            own = slice(*ends)
            y[r][own] = ffn(rows[r][own], weights, k)
            dx[r][own] = add_gradients(rows[r][own], drows[r][own], weights, k, gradients)
    return Played(movement.to_tokens(y), movement.to_tokens(dx), gradients)


def computed_alone(x: ByRank, dy: ByRank, weights: Weights, experts: ByRank) -> Played:
    """What one rank that has all experts computes of all tokens. experts: of the tokens of each rank, -1 for none."""
    gradients = weights.zeros()
    y, dx = ({r: np.zeros_like(of_rank) for r, of_rank in x.items()} for _ in range(2))
    for r in x:
        for k in np.unique(experts[r][experts[r] >= 0]):
            own = experts[r] == k
            y[r][own] = ffn(x[r][own], weights, k)
            dx[r][own] = add_gradients(x[r][own], dy[r][own], weights, k, gradients)
    return Played(y, dx, gradients)
