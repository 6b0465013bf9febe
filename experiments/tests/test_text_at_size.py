"""The corpus is as large and as different as it says; what is measured is of all processes; a peer that is absent is no error."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pytest

from experiments import text_at_size
from experiments.near_duplicates import LANGUAGES
from experiments.text_at_size import SHARES, Pool, main, measured_run, recombined, row, write_corpus, write_peer_files

PROGRAM = """
import subprocess, sys, time
held = bytearray(int(sys.argv[1]) << 20)
held[::4096] = b"x" * len(held[::4096])
if len(sys.argv) > 2:
    subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]], check=True)
time.sleep(1)
"""


@pytest.fixture(scope="module")
def pool() -> Pool:
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(8)) + "."

    found: Pool = {name: [sentence() for _ in range(3_000)] for name in (*LANGUAGES, "code")}
    return found | {"bilingual": [(sentence(), sentence()) for _ in range(3_000)]}


def test_corpus_of_a_size_in_four_domains(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_at_size, "pool_of", lambda cache: pool)
    said = write_corpus(tmp_path, tmp_path, 1_000_000, tuple(SHARES))
    lines = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    texts = [line["text"] if isinstance(line["text"], str) else "".join(line["text"].values()) for line in lines]
    assert 1_000_000 <= sum(map(len, texts)) < 1_020_000
    assert len(lines) == said["documents"]
    assert {line["domain"] for line in lines} == set(SHARES)
    assert 0 < said["jaccard"] < 0.3
    assert lines == list(recombined(pool, 1_000_000))


def test_the_peer_reads_every_document(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_at_size, "pool_of", lambda cache: pool)
    said = write_corpus(tmp_path, tmp_path, 100_000, ("zh",))
    (tmp_path / "texts").mkdir()
    write_peer_files(tmp_path / "texts", tmp_path / "corpus.jsonl")
    found = [text for file in (tmp_path / "texts").glob("*.txt") for text in file.read_text().split("\n\n") if text]
    assert len(found) == said["documents"]


def test_memory_and_time_of_all_processes(tmp_path: Path):
    begun = time.monotonic()
    measured = measured_run([sys.executable, "-c", PROGRAM, "64", PROGRAM], tmp_path / "log")
    assert 128 <= measured["pss"] <= measured["rss"] < 300
    assert 2 <= measured["wall"] <= time.monotonic() - begun
    assert 0 < measured["processor"] < measured["wall"]


def test_a_program_that_fails_says_why(tmp_path: Path):
    with pytest.raises(RuntimeError, match="status 3\nfor a reason"):
        measured_run([sys.executable, "-c", "print('for a reason', flush=True); raise SystemExit(3)"], tmp_path / "log")


def test_row():
    measured = {"wall": 50.0, "processor": 80.0, "pss": 700.4, "rss": 800.6}
    assert row("ours", 2, 100, measured) == "| ours | 2 | 100 | 50 | 80 | 2.00 | 1.25 | 700 | 801 |"


def test_an_absent_peer_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path):
    monkeypatch.setenv("PANGU_SIGMA_PEERS", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "argv", ["text_at_size", "--mb", "0", "--peer", "20", "--folder", str(tmp_path)])
    main()
    assert "experiments.peers installs the peers" in caplog.text
    assert not list(tmp_path.iterdir())
