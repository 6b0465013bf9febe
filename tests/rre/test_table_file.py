"""Files of routing tables: whatever is not what was written is refused with a message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.rre import table_file
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sections import RoutingConfig, RowsConfig


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"first_NDV": np.full((3, 2, 9), 4, np.int16)}, r"first_NDV has numbers outside of 0 … 3"),
        ({"spread_DV": np.zeros((2, 9), np.int16)}, r"spread_DV has numbers outside of 1 … 4"),
        ({"spread_DV": np.ones((2, 8), np.int16)}, r"shapes \(3, 2, 9\) and \(2, 8\) do not fit"),
        ({"first_NDV": np.zeros((3, 2, 9))}, "not of 16 bits"),
        ({"experts": np.array([4])}, "the number of experts is missing"),
        ({"experts": np.array([print], object)}, "is not what was written"),
    ],
)
def test_a_table_that_routes_nowhere_is_refused(tmp_path: Path, changed: dict, message: str):
    """Written by hand, objects included, which are refused and never made."""
    arrays = {"first_NDV": np.zeros((3, 2, 9), np.int16), "spread_DV": np.ones((2, 9), np.int16), "experts": 4}
    np.savez_compressed(tmp_path / "a.npz", **(arrays | changed))
    with pytest.raises(DataError, match=message):
        RoutingTable.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"row_EV": np.zeros((1, 8), np.int32)}, r"shapes \(1, 8\) and \(1, 10\) of the tables of rows do not fit"),
        ({"row_EV": np.full((1, 9), -1, np.int32)}, "negative, or not of 32 bits"),
        ({"before_EV1": np.zeros((1, 10))}, "negative, or not of 32 bits"),
    ],
)
def test_tables_of_rows_that_name_no_row_are_refused(tmp_path: Path, changed: dict, message: str):
    table = draw_tables(RoutingConfig(), 3, 2, 9, 4, None, rows=[RowsConfig(order=2, rows=5, width=4)])
    table.save(tmp_path / "a.npz")
    assert RoutingTable.load(tmp_path / "a.npz").hash == table.hash
    replace(table, **changed).save(tmp_path / "a.npz")
    with pytest.raises(DataError, match=message):
        RoutingTable.load(tmp_path / "a.npz")


def test_tables_of_other_rows_are_refused(tmp_path: Path):
    drawn, other = (RowsConfig(order=2, rows=rows, width=4) for rows in (500, 50))
    draw_tables(RoutingConfig(), 3, 2, 9, 4, None, rows=[drawn]).save(tmp_path / "a.npz")
    routing = RoutingConfig(table=str(tmp_path / "a.npz"))
    draw_tables(routing, 3, 2, 9, 4, None, rows=[drawn])
    for rows in ([other], [drawn, drawn], []):
        with pytest.raises(ConfigError, match=r"has not the tables of these model\.rows"):
            draw_tables(routing, 3, 2, 9, 4, None, rows=rows)


def test_tables_that_are_cut_short_or_missing_are_refused(tmp_path: Path):
    file = tmp_path / "a.npz"
    with pytest.raises(DataError, match="No such file"):
        RoutingTable.load(file)
    draw_tables(RoutingConfig(), 3, 2, 1000, 16, None).save(file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a\.npz: is not what was written"):
        RoutingTable.load(file)


def test_a_file_that_unpacks_to_more_than_tables_have_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.npz"
    draw_tables(RoutingConfig(), 3, 2, 1000, 16, None).save(file)
    monkeypatch.setattr(table_file, "_MOST_BYTES", 10_000)
    with pytest.raises(DataError, match=r"unpacks to 16\d\d\d bytes, at most 10000 are read"):
        RoutingTable.load(file)
