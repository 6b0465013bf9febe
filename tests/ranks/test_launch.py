"""Launchers of real processes, started by msrun: what fails is noticed, what is stopped can save, and nothing is left behind."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.strangers import strangers

from experiments.chaos.launched import PATIENCE, Launched, eventually, free_port, launched
from pangu_sigma.chips import CHIP_DATA
from pangu_sigma.npu.host.environment import devices_of
from pangu_sigma.ranks.launch import Job, _Follower, check_job, check_ports, dry_run
from pangu_sigma.ranks.processes import LaunchError

SCRIPTS = Path(__file__).parents[2] / "run_scripts"
SLEEPS = "import os, time; print('rank', os.environ['RANK_ID'], flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"
SAVES = """
import os, signal, sys, time
def save(*_):
    time.sleep(1)
    open(os.environ["SAVED"] + os.environ["RANK_ID"], "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_killed_rank_is_noticed_within_8_seconds_and_everything_is_stopped(tmp_path):
    """Even ranks that do not listen to SIGTERM, as those that wait for the lost one in a collective, and processes that ranks
    started, though they left their session and their process group."""
    program = f"import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True); {DEAF}"
    with launched(program, tmp_path, ranks=3) as it:
        ranks = [it.rank(rank) for rank in range(3)]
        killed = time.monotonic()
        os.kill(ranks[1], signal.SIGKILL)
        assert it.wait() == 1
        assert time.monotonic() - killed < 8
        assert it.left() == []
    assert "rank 1 was killed by SIGKILL" in it.errors
    assert "worker_1.log:\nrank 1\n" in it.errors, "the last lines of its log are shown"
    assert "rank 0 had not ended" in it.errors


FAILS_ONCE = """
import os, sys
if os.environ["RANK_ID"] == "1" and not os.path.exists(FAILED):
    open(FAILED, "x").close()
    print(*range(100), sep="\\n")
    sys.exit("no such file")
print("ends")
"""


def test_a_rank_that_fails_is_shown_with_its_last_lines_and_the_run_is_started_again(tmp_path):
    """There are as many restarts as asked for, at most: see test_a_lost_rank_stops_and_restarts_all_nodes."""
    program = FAILS_ONCE.replace("FAILED", repr(str(tmp_path / "failed")))
    with launched(program, tmp_path / "logs", restarts=3) as it:
        assert it.wait() == 0
        assert it.left() == []
    assert "rank 1 ended with status 1" in it.errors
    shown = it.errors[it.errors.index("worker_1.log:") :]
    assert "\n81\n82\n" in shown
    assert "99\nno such file\n" in shown
    assert "\n80\n" not in shown
    first, second = it.texts(1)
    assert first.startswith("0\n1\n"), "each start keeps its logs"
    assert second == "ends\n"


def test_output_of_rank_0_is_shown_and_nothing_in_the_users_folder_is_executed(tmp_path, monkeypatch):
    executed = strangers(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    program = "import argparse, os, xxhash; print('rank', os.environ['RANK_ID'], 'of', os.environ['RANK_SIZE'])"
    with launched(program, tmp_path / "logs") as it:
        assert it.wait() == 0, it.errors
        assert it.left() == []
    assert (executed(), it.output, it.texts(1)) == ([], "rank 0 of 2\n", ["rank 1 of 2\n"])


def test_output_is_shown_where_standard_output_takes_text_alone(tmp_path):
    """As in a notebook. A character may be written in two parts, and a byte may be none."""
    log = tmp_path / "worker_0.log"
    with redirect_stdout(io.StringIO()) as output:
        follower = _Follower(log)
        follower.copy()
        for part in (b"loss\xe4\xb8", b"\xad\n", b"\xff|\n"):
            with log.open("ab") as file:
                file.write(part)
            follower.copy()
    assert output.getvalue() == "loss中\n\\xff|\n"


def test_what_only_the_user_can_mend_is_not_started_again(tmp_path):
    with launched("import sys; print('error: data.path'); sys.exit(2)", tmp_path, ranks=1, restarts=3) as it:
        assert it.wait() == 2
    assert "error: data.path" in it.errors
    assert len(it.texts(0)) == 1


def test_ranks_save_when_the_launcher_is_asked_to_stop(tmp_path, monkeypatch):
    monkeypatch.setenv("SAVED", str(tmp_path / "saved_"))
    with launched(SAVES, tmp_path / "logs", restarts=3) as it:
        for rank in range(2):
            it.rank(rank)
        asked = time.monotonic()
        it.process.send_signal(signal.SIGTERM)
        assert it.wait() == 0
        assert time.monotonic() - asked < 10
        assert it.left() == []
    assert sorted(path.name for path in tmp_path.glob("saved_*")) == ["saved_0", "saved_1"]
    assert "got SIGTERM" in it.errors
    assert len(it.texts(0)) == 1, "it is not started again"


def test_ranks_that_do_not_end_in_time_are_killed(tmp_path):
    with launched(DEAF, tmp_path, grace=1.0) as it:
        it.rank(0), it.rank(1)
        asked = time.monotonic()
        it.process.send_signal(signal.SIGTERM)
        assert it.wait() == 1
        assert 1 < time.monotonic() - asked < Job.grace, "it is not the default that counts"
        assert it.left() == []
    assert "rank 0 had not ended " in it.errors


def test_asking_twice_kills_at_once(tmp_path):
    with launched(DEAF, tmp_path, grace=10 * PATIENCE) as it:
        it.rank(0), it.rank(1)
        it.process.send_signal(signal.SIGINT)
        it.hear("got SIGINT")  # Python notes signals once that come before it has seen the first
        it.process.send_signal(signal.SIGINT)
        assert it.wait() == 1
        assert it.left() == []


@pytest.mark.parametrize("seconds", [1.0, None], ids=["while msrun starts ranks", "while they run"])
def test_nothing_survives_a_launcher_that_is_killed(tmp_path, seconds):
    with launched(DEAF, tmp_path) as it:
        if seconds is None:
            it.rank(0), it.rank(1)
            assert len(it.left()) == 3, "two ranks and the scheduler"
        else:
            eventually(it.left)
            time.sleep(seconds)
        it.process.kill()
        eventually(lambda: not it.left())  # those that still start end when they come to the gate
        time.sleep(1)
        assert it.left() == []


def test_a_rank_that_ends_before_it_is_known_is_named(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif sys.orig_argv[1:3] == ['-m', 'pangu_sigma.ranks.worker']: sys.exit(print('broken') or 5)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with launched(SLEEPS, tmp_path / "logs", ranks=1) as it:
        assert it.wait() == 1
        assert it.left() == []
    assert "rank 0 ended before it was let start" in it.errors
    assert "worker_0.log:\nbroken\n" in it.errors


@contextmanager
def two_nodes(program: str, folder: Path, **options: int) -> Iterator[tuple[Launched, Launched]]:
    """Two nodes on this machine: two launchers, two ranks, one scheduler."""
    options |= {"nodes": 2, "port": free_port()}
    with (
        launched(program, folder / "0", node=0, **options) as zero,
        launched(program, folder / "1", node=1, **options) as one,
    ):
        yield zero, one


def test_a_lost_rank_stops_and_restarts_all_nodes(tmp_path):
    with two_nodes(DEAF, tmp_path, restarts=1) as (zero, one):
        zero.rank(0)
        os.kill(one.rank(1), signal.SIGKILL)
        zero.rank(0, start=1)
        killed = time.monotonic()
        os.kill(one.rank(1, start=1), signal.SIGKILL)
        assert (zero.wait(), one.wait()) == (1, 1)
        assert time.monotonic() - killed < 8
        assert zero.left() == one.left() == []
    assert "rank 1 was killed by SIGKILL" in zero.errors
    assert [path.name for path in (tmp_path / "0").iterdir()] == [path.name for path in (tmp_path / "1").iterdir()]


def test_a_lost_node_stops_the_others(tmp_path):
    with two_nodes(DEAF, tmp_path) as (zero, one):
        zero.rank(0), one.rank(1)
        one.process.kill()
        assert zero.wait() == 1
        assert zero.left() == []
        eventually(lambda: not one.left())
    assert "node 1" in zero.errors
    assert "is gone" in zero.errors


def test_a_node_that_loses_its_terminal_lets_all_save(tmp_path, monkeypatch):
    monkeypatch.setenv("SAVED", str(tmp_path / "saved_"))
    with two_nodes(SAVES, tmp_path) as (zero, one):
        zero.rank(0), one.rank(1)
        one.process.send_signal(signal.SIGHUP)
        assert (zero.wait(), one.wait()) == (0, 0)
    assert sorted(path.name for path in tmp_path.glob("saved_*")) == ["saved_0", "saved_1"]


CHIPS = {
    "910a": (8, {"MS_ASCEND_CHECK_OVERFLOW_MODE=SATURATION_MODE"}, {"HCCL_DETERMINISTIC"}),
    "910b": (8, {"MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE", "HCCL_DETERMINISTIC=true"}, set()),
    "910_93": (16, {"MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE", "HCCL_DETERMINISTIC=true"}, set()),
}
"""NPUs of a server of each chip, lines of its environment, and what it must not have there."""


@pytest.mark.parametrize("chip", CHIPS)
def test_a_dry_run_prints_what_each_of_64_hosts_of_a_chip_would_start(monkeypatch, tmp_path, chip):
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "900")
    for name in ("MS_ASCEND_CHECK_OVERFLOW_MODE", "HCCL_DETERMINISTIC", "HCCL_EXEC_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    per_host, expected, unwanted = CHIPS[chip]
    ranks = 64 * per_host
    job = Job(["train", "a b.yaml"], tmp_path / "logs", ranks, 64, address="10.0.0.1", devices=devices_of(chip))
    lines = dry_run(job).splitlines()
    assert lines[0] == f"# on every node: {per_host} of the {per_host} {CHIP_DATA[chip].title} of a server"
    exported = {line.removeprefix("export ") for line in lines if line.startswith("export ")}
    assert {"HCCL_CONNECT_TIMEOUT=900", "HCCL_EXEC_TIMEOUT=1836", "HCCL_BUFFSIZE=200"} | expected <= exported
    assert not unwanted & {line.split("=")[0] for line in exported}
    said = [line for line in lines if line.startswith("# node ")]
    assert said == [
        f"# node {node} of 64: ranks {node * per_host} … {node * per_host + per_host - 1}" for node in range(64)
    ]
    commands = [shlex.split(line) for line in lines if line.startswith("msrun ")]
    assert [f"--node_rank={node}" in command for node, command in enumerate(commands)] == [True] * 64
    for command in commands:
        assert {
            f"--worker_num={ranks}",
            f"--local_worker_num={per_host}",
            "--master_addr=10.0.0.1",
            "--bind_core=True",
        } <= set(command)
        assert command[-2:] == ["train", "a b.yaml"]
    assert list(tmp_path.iterdir()) == [], "nothing is started or written"


@pytest.mark.parametrize(
    ("chip", "ranks", "nodes", "fix"), [("910a", 16, 1, "use nodes 2"), ("910_93", 96, 4, "use nodes 6")]
)
def test_more_ranks_than_a_host_has_npus_are_refused(tmp_path, chip, ranks, nodes, fix):
    job = Job([], tmp_path, ranks, nodes, devices=devices_of(chip))
    for look in (dry_run, check_job):
        with pytest.raises(LaunchError) as refused:
            look(job)
        for word in (f"nodes {nodes}", f"{ranks} ranks", f"parallel.chip={chip}", f"{CHIPS[chip][0]} NPUs", fix):
            assert word in str(refused.value)
    dry_run(replace(job, devices=None))  # processes of a CPU are not counted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 3}, "8 processes cannot be divided among 3 nodes"),
        ({"nodes": 0}, "8 processes cannot be divided among 0 nodes"),
        ({"nodes": 2, "node": 2}, "node_rank 2 is not allowed: 0 to 1"),
        ({"port": 80}, "master_port 80 is not allowed"),
        ({"devices": devices_of("910a")}, "has 0 NPUs and is to run 8 ranks"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(tmp_path, options, message):
    with pytest.raises(LaunchError, match=message):
        check_job(Job(**{"command": [], "logs": tmp_path, "ranks": 8, **options}))


@pytest.mark.parametrize("offset", [0, 1], ids=["the scheduler's", "the launchers'"])
def test_a_port_in_use_is_refused_on_node_0_alone(tmp_path, offset):
    port = free_port()
    with socket.create_server(("127.0.0.1", port + offset)):
        with pytest.raises(
            LaunchError, match=f"127.0.0.1:{port + offset} cannot be used: .*choose another master_port"
        ):
            check_ports(Job([], tmp_path, 8, 2, 0, port=port))
        check_ports(Job([], tmp_path, 8, 2, 1, port=port))
    with pytest.raises(LaunchError, match=r"192\.0\.2\.1:8118 cannot be used"):
        check_ports(Job([], tmp_path, 8, address="192.0.2.1"))


def test_a_missing_msrun_is_refused(tmp_path, monkeypatch):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="msrun is not on PATH"):
        check_job(Job([], tmp_path, 1))


@pytest.mark.parametrize("name", ["cpu", "node", "cluster"])
def test_scripts_explain_themselves_without_installing_anything(name, tmp_path):
    script = shutil.copy(SCRIPTS / f"msrun_{name}.sh", tmp_path)  # away from install.sh
    for arguments in (["--help"], []):
        done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Train on ")
        assert f"bash run_scripts/msrun_{name}.sh CONFIG" in done.stdout
