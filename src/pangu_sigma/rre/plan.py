"""From a batch to its routing plan: which experts are active, and where every token goes. Made where the batch is read.

Shape suffixes: N RRE layers, B batch, S sequence, T tokens = B·S, A active experts (a fixed number, padded), C capacity.

The device never sorts, counts or compares: dispatch is a gather by `order`, combine is a gather by `inverse`, and the
gradient of either is the other (design decision 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.rre.table import RoutingTable


@dataclass(frozen=True)
class RoutingPlan:
    """Where the T tokens of a batch go in each RRE layer. All int32.

    active_NA: ids of the experts with at least one token, ascending; unused places hold `stored` (one past the last expert) and
        have no tokens, so nothing is multiplied or updated there.
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
    places: int | None,
) -> RoutingPlan:
    """Plan one batch.

    stored: K, experts stored in a layer. places: A, length of the active list; None: as long as the batch needs. With
    places = stored every expert has the place of its own number.
    Raises ConfigError when the batch activates more than `places` experts.
    """
    return make_plans(table, ids_BS[None], domains_B[None], positions_BS[None], stored, places)[0]


def make_plans(
    table: RoutingTable,
    ids_GBS: np.ndarray,
    domains_GB: np.ndarray,
    positions_GBS: np.ndarray,
    stored: int,
    places: int | None,
) -> list[RoutingPlan]:
    """Plans of G micro-batches of one update, which share one active list: experts are fetched once and updated once."""
    experts_NGT = route(table, ids_GBS, domains_GB, positions_GBS).reshape(table.layers, len(ids_GBS), -1)
    return plan_rows(experts_NGT, active_lists(experts_NGT, stored, places))


def route(table: RoutingTable, ids_GBS: np.ndarray, domains_GB: np.ndarray, positions_GBS: np.ndarray) -> np.ndarray:
    """The expert of each token in each layer, int32 [N, G, B, S]."""
    return table.route(ids_GBS, np.broadcast_to(domains_GB[..., None], ids_GBS.shape), positions_GBS)


def active_lists(experts_N: Sequence[np.ndarray] | np.ndarray, stored: int, places: int | None) -> np.ndarray:
    """Active list of each layer, int64 [N, A], from the experts of its tokens; `stored`, `places` and error as in `make_plan`."""
    used_N = [np.arange(stored) if places == stored else np.unique(experts) for experts in experts_N]
    most = max(len(used) for used in used_N)
    places = most if places is None else places
    if most > places:
        raise ConfigError(
            f"the batch activates {most} experts of a layer, but the plan holds {places}; "
            "raise data.domains_per_step, or put fewer domains in a batch"
        )
    active_NA = np.full((len(used_N), places), stored)
    for active_A, used in zip(active_NA, used_N, strict=True):
        active_A[: len(used)] = used
    return active_NA


def plan_rows(experts_NGT: np.ndarray, active_NA: np.ndarray) -> list[RoutingPlan]:
    """Plans of G micro-batches whose tokens all go to experts of the active list."""
    plans = []
    for g in range(experts_NGT.shape[1]):
        layers = [_plan_layer(experts_NGT[n, g], active_A) for n, active_A in enumerate(active_NA)]
        order_NT, inverse_NT, offsets_NA1 = (np.stack(part).astype(np.int32) for part in zip(*layers, strict=True))
        plans.append(RoutingPlan(active_NA.astype(np.int32), order_NT, inverse_NT, offsets_NA1))
    return plans


def _plan_layer(experts_T: np.ndarray, active_A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(experts_T, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    tokens = np.bincount(experts_T, minlength=active_A.max() + 1)[
        active_A
    ]  # none for unused places: nobody is routed there
    return order, inverse, np.concatenate([[0], np.cumsum(tokens)])


def pad_to_capacity(plan: RoutingPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same plan with every active expert padded to the capacity C of the fullest one (nothing is dropped).

    For graphs without a grouped kernel (exported models). Returns active_NA with unused places set to expert 0, order_NAC (padding
    repeats token 0; nobody reads its result) and inverse_NT into the flattened [A·C] rows.
    """
    (layers, tokens), places = plan.order_NT.shape, plan.active_NA.shape[1]
    load_NA = plan.load()
    capacity = int(load_NA.max())
    order_NAC = np.zeros((layers, places, capacity), np.int32)
    inverse_NT = np.empty((layers, tokens), np.int32)
    for layer in range(layers):
        place_of_row = np.repeat(np.arange(places), load_NA[layer])
        within = np.arange(tokens) - plan.offsets_NA1[layer, place_of_row]
        order_NAC[layer, place_of_row, within] = plan.order_NT[layer]
        inverse_NT[layer, plan.order_NT[layer]] = place_of_row * capacity + within
    return np.where(load_NA > 0, plan.active_NA, 0), order_NAC, inverse_NT
