"""Routing tables of one's own: from an array, or from a function of a token. `routing.table: FILE` trains with them.

Shape suffixes: N segments of all RRE layers, D domains, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.rre.row_keys import draw_row_tables
from pangu_sigma.rre.table import RoutingTable

Router = Callable[[str, int, str, int], int] | np.ndarray
"""Expert of each token: an integer array that broadcasts to [N, D, V], or a function of (text, id, domain, segment)."""


def own_table(router: Router, config: Config, texts_V: Sequence[str]) -> RoutingTable:
    """Make routing tables from a router, an array or a function. texts_V: the text of each token id.

    Experts are numbered from 0: in an own segment the experts of the domain, in a common segment all experts, and there a function
    is asked once for all domains, with the domain "". No token is spread over several experts. Raises ConfigError for an array of
    another shape, for an expert that does not exist, and for common segments in which an array's domains differ.
    """
    names, model = [domain.name for domain in config.domains], config.model
    shape = len(model.routed), len(names), len(texts_V)
    experts_NDV = _experts_from_router(router, config, texts_V) if callable(router) else _broadcast(router, shape)
    common_N = np.array([model.common_experts if kind == "common" else 0 for kind in model.routed], np.int16)
    count_N11 = np.where(common_N > 0, common_N, model.experts_per_domain)[:, None, None]
    is_invalid_NDV = (experts_NDV < 0) | (experts_NDV >= count_N11)
    if is_invalid_NDV.any():
        n, d, v = np.argwhere(is_invalid_NDV)[0].tolist()
        raise ConfigError(
            f"router: expert {experts_NDV[n, d, v]} of token {v} ({texts_V[v]!r}) in domain {names[d]}, segment {n}, does not "
            f"exist; this configuration has the experts 0 … {count_N11[n, 0, 0] - 1} there"
        )
    if (experts_NDV[common_N > 0] != experts_NDV[common_N > 0][:, :1]).any():
        raise ConfigError(
            "router: all domains share the experts of a common segment, and must send a token to the same one"
        )
    first_NDV, ones_V = experts_NDV.astype(np.int16), np.ones(len(texts_V), np.int16)
    spread_DV = np.tile(ones_V, (len(names), 1))
    of_common = (common_N, ones_V) if common_N.any() else (None, None)
    of_rows = draw_row_tables(model.rows, len(texts_V), config.routing.seed) if model.rows else (None, None)
    return RoutingTable(first_NDV, spread_DV, model.experts_per_domain, *of_common, *of_rows)


def _broadcast(router: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return an array router in int64 with this shape. Raises ConfigError if it is not of integers, or cannot be broadcast."""
    array = np.asarray(router)
    try:
        if array.dtype.kind not in "iu":
            raise ValueError  # as broadcast_to does for a shape that does not fit
        return np.broadcast_to(array, shape).astype(np.int64)
    except ValueError:
        raise ConfigError(
            f"router: an array of {array.dtype} of shape {array.shape} is not allowed; give whole numbers that broadcast "
            f"to {shape}, the segments of all RRE layers, domains and token ids"
        ) from None


def _experts_from_router(router: Callable[..., int], config: Config, texts_V: Sequence[str]) -> np.ndarray:
    """Call a function for each token of each domain and segment; of common segments once for all domains, with the domain ""."""
    experts_NDV = np.empty((len(config.model.routed), len(config.domains), len(texts_V)), np.int64)
    for n, kind in enumerate(config.model.routed):
        for d, domain in enumerate(config.domains):
            if kind == "common" and d:
                experts_NDV[n, d] = experts_NDV[n, 0]
                continue
            name = "" if kind == "common" else domain.name
            for v, text in enumerate(texts_V):
                expert = router(text, v, name, n)
                if not isinstance(expert, int | np.integer) or isinstance(expert, bool):
                    raise ConfigError(f"router: {expert!r} for token {v} ({text!r}): return a whole number")
                experts_NDV[n, d, v] = expert
    return experts_NDV
