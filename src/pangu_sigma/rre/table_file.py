"""The file of routing tables, an .npz: what is read of it is checked before anything is routed by it.

Shape suffixes: N segments of all RRE layers, D domains, V vocabulary.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.errors import DataError

DAMAGED = "the file is damaged, take it from a copy of the run or the export"

_REQUIRED, _COMMON = ("first_NDV", "spread_DV", "experts"), ("common_N", "common_spread_V")
_ROWS = ("row_EV", "before_EV1")
_MOST_BYTES = 4 << 30
"""Size limit in bytes of tables that are read; `sigma_1t` has tables of 30 MB. A few kilobytes of zip can unpack to more than any
memory holds."""


def write_tables(path: Path, tables: Mapping[str, Any]) -> None:
    """Write the fields of a `RoutingTable`, by name; fields that are None are left out."""
    np.savez_compressed(path, **{name: array for name, array in tables.items() if array is not None})


def read_tables(path: Path, fix: str = DAMAGED) -> dict[str, Any]:
    """Read the fields that `write_tables` wrote. Raises DataError, which ends with `fix`, for any other file, which is
    never unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > _MOST_BYTES:
            raise ValueError(f"it unpacks to {size} bytes, at most {_MOST_BYTES} are read")
        with np.load(path, allow_pickle=False) as file:
            names = (*_REQUIRED, *(_COMMON if _COMMON[0] in file else ()), *(_ROWS if _ROWS[0] in file else ()))
            # NumPy returns the bytes of a member that is no .npy; they become an array, which `wrong_tables` refuses
            arrays: dict[str, Any] = {name: np.asarray(file[name]) for name in names}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {fix}") from error
    except Exception as error:  # NumPy parses headers by literal_eval, which fails in many ways
        raise DataError(f"{path}: is not what was written ({error}); {fix}") from error
    experts = arrays["experts"]
    is_integer = experts.ndim == 0 and experts.dtype.kind == "i"
    arrays["experts"] = int(experts) if is_integer else 0  # which `wrong_tables` refuses
    if problem := wrong_tables(**arrays):
        raise DataError(f"{path}: {problem}; {fix}")
    return arrays


def wrong_tables(
    first_NDV: np.ndarray,
    spread_DV: np.ndarray,
    experts: int,
    common_N: np.ndarray | None = None,
    common_spread_V: np.ndarray | None = None,
    row_EV: np.ndarray | None = None,
    before_EV1: np.ndarray | None = None,
) -> str | None:
    """Return what is wrong with dtypes, shapes or ranges of the fields of a `RoutingTable`, for a message; None if nothing is."""
    if not (first_NDV.ndim == 3 and first_NDV.shape[1:] == spread_DV.shape):
        return f"shapes {first_NDV.shape} and {spread_DV.shape} do not fit"
    if common_N is None or common_spread_V is None:
        common_N, common_spread_V = np.zeros(len(first_NDV), np.int16), np.ones(spread_DV.shape[-1], np.int16)
    if (common_N.shape, common_spread_V.shape) != (first_NDV.shape[:1], spread_DV.shape[-1:]):
        return f"shapes {common_N.shape} and {common_spread_V.shape} of common segments do not fit"
    if any(array.dtype != np.int16 for array in (first_NDV, spread_DV, common_N, common_spread_V)):
        return "numbers are not of 16 bits"
    if row_EV is not None and before_EV1 is not None:
        entries, vocabulary = len(row_EV), spread_DV.shape[-1]
        if (row_EV.shape, before_EV1.shape) != ((entries, vocabulary), (entries, vocabulary + 1)):
            return f"shapes {row_EV.shape} and {before_EV1.shape} of the tables of rows do not fit"
        if any(array.dtype != np.int32 or array.min(initial=0) < 0 for array in (row_EV, before_EV1)):
            return "tables of rows have numbers that are negative, or not of 32 bits"
    if experts < 1:
        return "the number of experts is missing"
    if (common_N < 0).any():
        return "a segment has a negative number of experts"
    counts = [common or experts for common in common_N.tolist()]  # of experts; 0 common ones: an own segment
    ranges = [("first_NDV", first_DV, 0, count - 1) for count, first_DV in zip(counts, first_NDV, strict=True)]
    ranges.append(("spread_DV", spread_DV, 1, experts))
    ranges.append(("common_spread_V", common_spread_V, 1, max(common_N.max(initial=0), 1)))
    for name, values, least, most in ranges:
        if values.size and not (least <= values.min() and values.max() <= most):
            return f"{name} has numbers outside of {least} … {most}"
    return None
