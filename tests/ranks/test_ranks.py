"""What ranks do together succeeds on all of them or fails on all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers.threads import on_ranks

from experiments.chaos.rank_processes import CRASHES_AT_EXIT
from pangu_sigma.config import ConfigError
from pangu_sigma.ranks.connect import connect
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, RankError, Ranks
from pangu_sigma.sections import ParallelConfig


def test_one_process_is_all_ranks():
    assert (SINGLE_PROCESS.rank, SINGLE_PROCESS.world, SINGLE_PROCESS.first) == (0, 1, True)
    assert SINGLE_PROCESS.sum(np.array([1.5])).tolist() == [1.5]
    assert (SINGLE_PROCESS.any(True), SINGLE_PROCESS.any(False)) == (True, False)
    with SINGLE_PROCESS.fail_together("this"):
        pass
    SINGLE_PROCESS.agree({"train": "a"})
    assert SINGLE_PROCESS.max(3) == 3
    assert SINGLE_PROCESS.texts("zwölf") == ["zwölf"]


def test_any_holds_on_all_when_it_holds_on_one_and_max_is_the_largest_number():
    assert on_ranks(3, lambda ranks: ranks.any(ranks.rank == 2)) == [True] * 3
    assert on_ranks(3, lambda ranks: ranks.any(False)) == [False] * 3
    assert on_ranks(3, lambda ranks: ranks.max([2, 7, 0][ranks.rank])) == [7] * 3
    assert on_ranks(2, lambda ranks: ranks.max([2**24 + 1, 2**40 + 1][ranks.rank])) == [2**40 + 1] * 2


def test_every_rank_reads_the_whole_texts_of_all():
    texts = ["", "專家 3", "x" * 5000]
    assert on_ranks(3, lambda ranks: ranks.texts(texts[ranks.rank])) == [texts] * 3
    assert on_ranks(3, lambda ranks: ranks.texts("")) == [["", "", ""]] * 3
    for long in ("é" * 1001, "é" * 1000, "x" + "é" * 1001):
        assert SINGLE_PROCESS.texts(long) == [long], "no half a letter where pieces meet"


def test_ranks_of_a_host_add_their_numbers(monkeypatch):
    hosts = {f"rank {rank}": host for rank, host in enumerate(["one host", "another", "one host"])}
    monkeypatch.setattr(socket, "gethostname", lambda: hosts[threading.current_thread().name])

    def work(ranks):
        threading.current_thread().name = f"rank {ranks.rank}"
        return ranks.sum_here([2**40, 5, 1][ranks.rank])

    assert on_ranks(3, work) == [2**40 + 1, 5, 2**40 + 1]


def test_what_fails_on_one_rank_fails_on_all_and_the_others_say_where_to_look():
    def work(ranks):
        with ranks.fail_together("writing"):
            if ranks.rank == 1:
                raise OSError("disk full")

    actual = on_ranks(3, work)
    assert [type(error) for error in actual] == [RankError, OSError, RankError]
    assert "writing failed on another rank; its log" in str(actual[0])


def test_the_section_that_differs_is_named_with_its_rank():
    values = {"model": "same", "train": "steps 10", "vocabulary": "abc"}

    def work(ranks):
        ranks.agree(values | ({"train": "steps 11"} if ranks.rank == 2 else {}))

    actual = on_ranks(4, work)
    assert all(isinstance(error, RankError) for error in actual)
    assert all("rank 2 was started with another train than rank 0" in str(error) for error in actual)
    assert on_ranks(4, lambda ranks: ranks.agree(values)) == [None] * 4


def test_ranks_agree_in_one_collective():
    class Counted(Ranks):
        sums = 0

        def sum(self, values):
            self.sums += 1
            return values

    ranks = Counted()
    ranks.agree({"train": "a", "model": "b"})
    assert ranks.sums == 1


@pytest.mark.parametrize("started", [None, "", "4"])
def test_another_number_of_ranks_than_laid_out_is_refused_naming_both(monkeypatch, started):
    monkeypatch.delenv("MS_WORKER_NUM", raising=False)
    if started is not None:
        monkeypatch.setenv("MS_WORKER_NUM", started)
    with pytest.raises(ConfigError, match=rf"lays out 6 ranks .*groups=3.*data=2.*but {started or 1} were started"):
        connect(ParallelConfig(groups=3, data=2))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--version"], 0, "pangu-sigma "),
        (["train", "none.yaml", "--output", "run"], 2, "error: "),
        (["inspect", "sigma_tiny"], 1, "ZeroDivisionError"),
    ],
    ids=["done", "refused", "a bug"],
)
def test_a_rank_keeps_its_status_whatever_happens_at_exit(tmp_path, arguments, status, said):
    """Of one process everything runs at exit that Python would run, unless a command ended with an error: memory may be full."""
    broken = "from pangu_sigma import inspection; from pangu_sigma.inspection import inspect as a; a.inspect = lambda _: 1 / 0\n"
    (tmp_path / "sitecustomize.py").write_text(CRASHES_AT_EXIT + (broken if status == 1 else ""))
    variables = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "MS_ROLE": "MS_WORKER"}
    for ranks, expected in (("2", status), ("1", 2 if said == "error: " else -signal.SIGSEGV)):
        done = subprocess.run(
            [sys.executable, "-m", "pangu_sigma", *arguments],
            env=os.environ | variables | {"MS_WORKER_NUM": ranks},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == expected, done.stderr
        assert said in done.stdout + done.stderr
