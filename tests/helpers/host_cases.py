"""What the host sides of the Ascend C operators must answer, by an arithmetic of our own, and cases that no broken one passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from ascend_ops.emulation import SOCS, OpHost, TilingError

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
ROW_TYPES = {"ascend910": ("float32", "float16")} | dict.fromkeys(("ascend910b", "ascend910_93"), tuple(SIZES))
ARGUMENTS = {  # operator: output, name, required, rows or an index
    "ExpertDispatch": [(False, "x", True, True), (False, "order", True, False), (True, "rows", True, True)],
    "ExpertCombine": [
        (False, "rows", True, True),
        (False, "inverse", True, False),
        (False, "residual", False, True),
        (True, "out", True, True),
    ],
}
SHAPES = [  # source rows, rows, hidden
    *((40, rows, hidden) for rows in (1, 7, 63, 64, 2500) for hidden in (1, 7, 8, 15, 16, 33, 5120)),
    *((9, 75, hidden) for hidden in (14_900, 16_384, 16_385, 20_000, 20_416, 20_417, 32_768, 32_769, 60_000, 100_001)),
    *((17, rows, hidden) for rows, hidden in [(0, 8), (3, 0), (0, 0), (2**31 - 1, 3), (3, 2**31 - 1)]),
    (2**31 - 1, 4, 2),
    (840_000, 838_861, 5120),  # beyond 2^32 elements
]
CORES = (1, 7, 24, 48)
TILED = [(chip, dtype) for chip in SOCS for dtype in SIZES if (chip, dtype) != ("910A", "bfloat16")]


def check_host(host: OpHost) -> None:
    """Definitions, tiling, inference and refusals, on all three chips."""
    check_definitions(host)
    for chip, dtype in TILED:
        for shape, cores in itertools.product(SHAPES, CORES):
            check_tiling(host, chip, dtype, shape, cores)
    check_inference(host)
    check_refusals(host)


def check_tiling(host: OpHost, chip: str, dtype: str, shape: tuple[int, int, int], cores: int) -> None:
    """Both operators, combine also with a residual."""
    source_rows, rows, hidden = shape
    for operator, residual in [("ExpertDispatch", False), ("ExpertCombine", False), ("ExpertCombine", True)]:
        given = [(source_rows, hidden), (rows,), (rows, hidden) if residual else None]
        actual = host.launch(operator, chip, dtype, given, cores)
        expected = tiling_oracle(chip, dtype, shape, cores, residual)
        case = f"{operator} {shape} in {dtype} on {cores} cores of {chip}, residual {residual}"
        assert actual.tiling.values() == expected, f"wrong tiling: {case}"
        assert actual.blocks == expected["cores"] <= cores, f"wrong number of blocks: {case}"
        assert actual.workspace == 0, f"wrong workspace: {case}"


def tiling_oracle(chip: str, dtype: str, shape: tuple[int, int, int], cores: int, residual: bool) -> dict[str, int]:
    """RowsTilingData for rows over cores and buffers, in element counts; what it means is told in tiling_data.h."""
    source_rows, rows, hidden = shape
    whole_blocks, size = chip == "910A", SIZES[dtype]
    lane = 32 // size  # elements of a 32 B block
    expected = {"sourceRows": source_rows, "rows": rows, "cols": hidden, "hasResidual": int(residual), "cores": 1}
    rest = dict.fromkeys(("rowsPerCore", "buffers", "groupRows", "colTile", "indexTile", "zeroTile", "castTile"), 0)
    if rows == 0 or hidden == 0:
        return expected | rest
    # 910A moves whole blocks: a core starts on one and has at least one
    unit = lane if whole_blocks and hidden % lane else 1
    per_core = round_up(-(-rows // cores), unit)
    used = -(-rows // per_core)
    if whole_blocks and used > 1 and (rows - (used - 1) * per_core) * hidden < lane:
        used -= 1
    most_rows = rows if used == 1 else per_core
    cast = 2048 if residual and dtype == "bfloat16" else 0
    zeros = 0 if residual else min(16_384 // size, round_up(most_rows * hidden, lane))
    local = 262_144 if whole_blocks else 196_608 - 256
    free = local - 8_448 - 4 * 2048 - size * zeros - 8 * cast
    slot = round_up(hidden, lane) * size
    buffers = 4 if not residual and slot <= free // 4 // 32 * 32 else 2
    capacity = min(65_536, free // (3 * buffers if residual else buffers) // 32 * 32)
    group, columns = 1, round_up(hidden, lane)
    if whole_blocks and hidden < lane:
        columns = 16_384 // size
    elif slot <= capacity:
        group = max(1, min(32_768 // slot, capacity // slot, most_rows, 256))
    else:
        columns = round_up(-(-hidden // -(-slot // capacity)), lane)
    return expected | {
        "cores": used,
        "rowsPerCore": per_core,
        "buffers": buffers,
        "groupRows": group,
        "colTile": columns,
        "indexTile": 2048 // (8 * group) * (8 * group),
        "zeroTile": zeros,
        "castTile": cast,
    }


def round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def check_definitions(host: OpHost) -> None:
    actual = host.definitions()
    assert {(each.operator, each.chip) for each in actual} == set(itertools.product(ARGUMENTS, ROW_TYPES)), (
        "wrong chips"
    )
    for operator, chip in itertools.product(ARGUMENTS, ROW_TYPES):
        declared = [each for each in actual if (each.operator, each.chip) == (operator, chip)]
        types = ROW_TYPES[chip]
        names = [(each.output, each.name, each.required) for each in declared]
        assert names == [argument[:3] for argument in ARGUMENTS[operator]], f"wrong arguments: {operator} on {chip}"
        for each, (output, name, _, rows) in zip(declared, ARGUMENTS[operator], strict=True):
            assert each.dtypes == (types if rows else ("int32",) * len(types)), f"wrong dtypes: {name} on {chip}"
            assert each.formats == ("ND",) * len(types), f"wrong formats: {name} on {chip}"
            assert each.contiguous or output, f"{name} on {chip} may be a strided view"
            assert each.dynamic, f"{operator} on {chip} takes no dynamic shapes"


def check_inference(host: OpHost) -> None:
    """[n, hidden] from [rows, hidden] and [n], also where sizes or ranks are not known yet (-1; rank: one size of -2)."""
    for operator, dtype in itertools.product(ARGUMENTS, SIZES):
        for source, index, expected in [
            ((5, 8), (9,), (9, 8)),
            ((5, 8), (-1,), (-1, 8)),
            ((-1, -1), (9,), (9, -1)),
            ((-2,), (9,), (9, -1)),
            ((5, 8), (-2,), (-1, 8)),
        ]:
            shape, actual = host.infer(operator, dtype, [source, index])
            assert shape == expected, f"wrong shape: {operator} of {source}, {index}: {shape}"
            assert actual == dtype, f"wrong dtype: {operator}: {actual}"
        with pytest.raises(TilingError):
            host.infer(operator, dtype, [(5, 8)])


def check_refusals(host: OpHost) -> None:
    for operator, shapes in refused():
        try:
            host.launch(operator, "910B", "float16", shapes)
        except TilingError:
            continue
        raise AssertionError(f"not refused: {operator} of {shapes}")


def refused() -> Iterator[tuple[str, list[tuple[int, ...] | None]]]:
    """Shapes that an operator cannot take: ranks, sizes that no index reaches, a residual that is not the output's shape."""
    for operator in ARGUMENTS:
        yield operator, [(4,), (3,), None]
        yield operator, [(4, 8, 2), (3,), None]
        yield operator, [(4, 8), (3, 1), None]
        yield operator, [(2**31, 8), (3,), None]
        yield operator, [(4, 2**31), (3,), None]
        yield operator, [(4, 8), (2**31,), None]
    for residual in [(3,), (4, 8), (3, 9), (3, 8, 1)]:
        yield "ExpertCombine", [(4, 8), (3,), residual]
