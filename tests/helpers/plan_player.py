"""A player of routing plans: what the ranks of a step do with the arrays of their plans for one segment, in NumPy.

All values are whole numbers in float64, and the FFN squares where the network's has an activation. So every sum is exact in any
order, and what many ranks compute can be asked to equal what one rank computes.

Shape suffixes: T tokens, H hidden, F ffn, K experts, A entries of an active list; rows are those that a rank's experts multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pangu_sigma.parallel.layout import Layout
from pangu_sigma.rre.capacity import DispatchLayout, ExchangePlan
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


class Player:
    """Player of the plans of all ranks for segment n. to_experts: tokens → rows. to_tokens: rows → tokens. Each is the gradient of
    the other: the graphs gather by the inverse index in their backward pass, and exchange in the other direction."""

    def __init__(self, grid: Layout, layout: DispatchLayout, plans: Mapping[int, RoutingPlan], n: int, entries: int):
        """grid: the ranks. plans: of each rank. entries: length of the segment's active lists."""
        self.grid, self.layout, self.plans, self.n, self.entries = grid, layout, plans, n, entries

    def to_experts(self, x: ByRank) -> ByRank:
        rows = {r: take(x[r], plan.order_NT[self.n]) for r, plan in self.plans.items()}
        if self.layout == "local":
            return rows
        rows = self._exchange(rows, back=False)
        if self.layout == "all_to_all":
            return {r: self._swapped(arrived, len(self._peers(r)), self.entries) for r, arrived in rows.items()}
        return {r: take(rows[r], plan.arrive_NW[self.n]) for r, plan in self._exchanging()}

    def to_tokens(self, rows: ByRank) -> ByRank:
        if self.layout == "all_to_all":
            rows = {r: self._swapped(left, self.entries, len(self._peers(r))) for r, left in rows.items()}
        elif self.layout != "local":
            rows = {r: take(rows[r], plan.leave_NR[self.n]) for r, plan in self._exchanging()}
        if self.layout != "local":
            rows = self._exchange(rows, back=True)
        return {r: take(rows[r], plan.inverse_NT[self.n]) for r, plan in self.plans.items()}

    def _exchange(self, rows: ByRank, back: bool) -> ByRank:
        """Each rank cuts its rows by receiver, and puts together what the others have for it: parts of one size, or if dropless of
        the sizes that both ranks know from their plans."""
        parts = {r: np.split(rows[r], len(self._peers(r))) for r in rows if self.layout != "dropless"}
        taken = {r: [len(part) for part in parts[r]] for r in parts}
        for r, plan in self._exchanging() if self.layout == "dropless" else ():
            out_P, in_P = (plan.taken_NP, plan.sent_NP) if back else (plan.sent_NP, plan.taken_NP)
            assert out_P[self.n].sum() <= len(rows[r])
            parts[r], taken[r] = np.split(rows[r], np.cumsum(out_P[self.n]))[:-1], in_P[self.n].tolist()
        arrived = {}
        for r in rows:
            came = [parts[peer][self._peers(peer).index(r)] for peer in self._peers(r)]
            assert [len(part) for part in came] == taken[r]
            arrived[r] = np.concatenate(came)
        return arrived

    def _exchanging(self) -> list[tuple[int, ExchangePlan]]:
        return [(r, plan) for r, plan in self.plans.items() if isinstance(plan, ExchangePlan)]

    def _peers(self, rank: int) -> list[int]:
        return self.grid.peers(rank, "expert")

    def _swapped(self, rows: np.ndarray, first: int, second: int) -> np.ndarray:
        """Rows that come by `first` and `second`, by `second` and `first`."""
        return rows.reshape(first, second, -1, HIDDEN).swapaxes(0, 1).reshape(-1, HIDDEN)


class Played(NamedTuple):
    """What a segment computes: results of the tokens of each rank, the gradients of these tokens, and those of all experts."""

    y: ByRank
    dx: ByRank
    gradients: Weights


def play(
    player: Player, x: ByRank, dy: ByRank, weights: Weights, ids: Callable[[int, np.ndarray], np.ndarray]
) -> Played:
    """Compute a segment forward and backward by the plans of all ranks. x: hidden states of the tokens of each rank. dy: gradients
    of the segment's results. ids(rank, active_A): the experts at the entries of a rank's active list."""
    rows, drows, gradients = player.to_experts(x), player.to_experts(dy), weights.zeros()
    y, dx = ({r: np.full_like(of_rank, np.nan) for r, of_rank in rows.items()} for _ in range(2))
    for r, plan in player.plans.items():
        offsets_A1 = plan.offsets_NA1[player.n]
        for k, ends in zip(ids(r, plan.active_NA[player.n]), pairwise(offsets_A1), strict=True):
            own = slice(*ends)
            y[r][own] = ffn(rows[r][own], weights, k)
            dx[r][own] = add_gradients(rows[r][own], drows[r][own], weights, k, gradients)
    return Played(player.to_tokens(y), player.to_tokens(dx), gradients)


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
