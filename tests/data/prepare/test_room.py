from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from pangu_sigma.data.prepare import room
from pangu_sigma.data.prepare.room import ALWAYS, PER_BYTE, PER_DOCUMENT, check_room
from pangu_sigma.errors import DataError

LINE = json.dumps({"domain": "zh", "text": "x" * 974}).encode() + b"\n"
LINES = 2_000
NEEDED = LINES * (len(LINE) * PER_BYTE + PER_DOCUMENT) + ALWAYS


@pytest.fixture(params=["plain", "packed"])
def text(request, tmp_path) -> Path:
    path = tmp_path / ("a.jsonl" if request.param == "plain" else "a.jsonl.gz")
    path.write_bytes(LINE * LINES if request.param == "plain" else gzip.compress(LINE * LINES))
    return path


def there(monkeypatch, size: int) -> None:
    monkeypatch.setattr(room, "available_memory", lambda swap: size)


def test_text_that_fits_is_let_through(text, monkeypatch):
    there(monkeypatch, NEEDED + 1)
    check_room([text], None, 4)
    with pytest.raises(DataError):
        check_room([text, text], None, 4)


def test_text_that_does_not_fit_is_refused_with_both_numbers_and_a_limit_that_fits(text, monkeypatch):
    size = ALWAYS + (NEEDED - ALWAYS) // 2
    there(monkeypatch, size)
    with pytest.raises(
        DataError, match=rf"0\.1\d GB of memory.*{size / 1e9:.2f} GB are free.*data\.max_mib"
    ) as refused:
        check_room([text], None, 4)
    limit = float(re.search(r"max_mib_per_domain to ([\d.e+-]+)", str(refused.value))[1])
    check_room([text], int(limit * (1 << 20)), 4)
    with pytest.raises(DataError):
        check_room([text], int(4 * limit * (1 << 20)), 4)


def test_a_small_file_with_endless_text_in_it_is_not_unpacked_for_good(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(200 << 20), 1))
    there(monkeypatch, ALWAYS + (1 << 20))
    with pytest.raises(DataError, match=r"4\.2 MB of text or more"):
        check_room([path], None, 1)


def test_a_broken_stream_is_left_to_the_reader(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    check_room([tmp_path / "a.jsonl.gz"], None, 1)
