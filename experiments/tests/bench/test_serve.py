"""`bench serve` answers the same requests from both servers, and says how long clients waited."""

from __future__ import annotations

from experiments.bench.serve import compare_servers


def test_rows_are_throughput_and_waiting_times():
    rows = compare_servers("tiny", clients=3, tokens=32, rounds=1)
    assert [row.peer for row in rows] == [
        "one by one",
        *(f"one by one, {what} p{share}" for what in ("first token", "between tokens") for share in (50, 95)),
    ]
    assert [row.unit for row in rows] == ["tokens/s", *["ms"] * 4]
    assert all(row.ours > 0 and row.ratio is not None and row.ratio > 0 for row in rows)
    assert rows[0].case == "tiny, 3 clients at once, 32 + 32 tokens each"
