"""From a batch to its routing plan: which experts are active, and where every token goes. Made where the batch is read.

Shape suffixes: N RRE layers, B batch, S sequence, T tokens = B·S, A active experts (a fixed number, padded), C capacity.

The device never sorts, counts or compares: dispatch is a gather by `order`, combine is a gather by `inverse`, and the
gradient of either is the other (design decision 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pangu_sigma.routing.table import RoutingTable


@dataclass(frozen=True)
class RoutingPlan:
    """Where the T tokens of a batch go in each RRE layer. All int32.

    active_NA: ids of the experts with at least one token, ascending; unused places hold `stored` (one past the last expert),
        which every consumer skips: such a row is not fetched, not multiplied and not updated.
    order_NT: row i of the sorted tokens is token order[i]; tokens of one expert keep their order in the batch.
    inverse_NT: token t is row inverse[t] of the sorted tokens.
    offsets_NA1: tokens of active expert a are the sorted rows offsets[a] … offsets[a + 1] - 1.
    """

    active_NA: np.ndarray
    order_NT: np.ndarray
    inverse_NT: np.ndarray
    offsets_NA1: np.ndarray

    def load(self) -> np.ndarray:
        """Tokens of each active place, int32 [N, A]."""
        return np.diff(self.offsets_NA1, axis=1)


def make_plan(
    table: RoutingTable,
    ids_BS: np.ndarray,
    domains_B: np.ndarray,
    positions_BS: np.ndarray,
    stored: int,
    places: int,
) -> RoutingPlan:
    """Plan one batch.

    stored: K, experts stored in a layer. places: A, length of the active list.
    Raises ValueError when the batch activates more than `places` experts.
    """
    domains_BS = np.broadcast_to(domains_B[:, None], ids_BS.shape)
    experts_NT = table.route(ids_BS, domains_BS, positions_BS).reshape(table.layers, -1)
    layers = [_plan_layer(experts_T, stored, places) for experts_T in experts_NT]
    return RoutingPlan(*(np.stack(part).astype(np.int32) for part in zip(*layers, strict=True)))


def _plan_layer(experts_T: np.ndarray, stored: int, places: int) -> tuple[np.ndarray, ...]:
    order = np.argsort(experts_T, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    count_K = np.bincount(experts_T, minlength=stored)
    used = np.flatnonzero(count_K)
    if len(used) > places:
        raise ValueError(
            f"the batch activates {len(used)} experts of a layer, but the plan holds {places}; "
            "raise data.domains_per_step, or put fewer domains in a batch"
        )
    active = np.full(places, stored)
    active[: len(used)] = used
    offsets = np.zeros(places + 1, np.int64)
    offsets[1 : len(used) + 1] = np.cumsum(count_K[used])
    offsets[len(used) + 1 :] = len(order)
    return active, order, inverse, offsets


def pad_to_capacity(plan: RoutingPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same plan with every active expert padded to the capacity C of the fullest one (nothing is dropped).

    For graphs without a grouped kernel (exported models): active_NA without the unused places common to all layers,
    order_NAC (padding repeats token 0; nobody reads its result) and inverse_NT into the flattened [A·C] rows.
    """
    layers, tokens = plan.order_NT.shape
    load_NA = plan.load()
    used = max(1, int((load_NA > 0).sum(axis=1).max()))
    capacity = int(load_NA.max())
    order_NAC = np.zeros((layers, used, capacity), np.int32)
    inverse_NT = np.empty((layers, tokens), np.int32)
    for layer in range(layers):
        expert_of_row = np.repeat(np.arange(used), load_NA[layer, :used])
        place = np.arange(tokens) - plan.offsets_NA1[layer, expert_of_row]
        order_NAC[layer, expert_of_row, place] = plan.order_NT[layer]
        inverse_NT[layer, plan.order_NT[layer]] = expert_of_row * capacity + place
    return plan.active_NA[:, :used], order_NAC, inverse_NT
