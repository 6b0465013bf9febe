"""A Ray cluster makes the same folder, also if it loses a node; errors and Ctrl-C are those of one process."""

from __future__ import annotations

import gzip
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from data.prepare.test_executors import ENVIRONMENT, expected, limited, prints, small, texts  # noqa: F401

from pangu_sigma.data.prepare.executors import Ray, StageError
from pangu_sigma.data.prepare.prepare import Options, prepare
from pangu_sigma.errors import DataError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]

NODE = {"num_cpus": 1, "memory": 2 << 30, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture
def cluster(monkeypatch):
    """Cluster of one node with one CPU."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])  # nodes find the tests
    made = Cluster(initialize_head=True, head_node_args=NODE)
    yield made
    made.shutdown()


def wait_for(done) -> None:
    end = time.monotonic() + 120
    while not done() and time.monotonic() < end:
        time.sleep(0.02)
    assert done()


def test_one_node_gives_the_same_at_a_relative_path(cluster, texts, expected, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    prepare(limited(), texts, Path("out"), Options(ray=cluster.address))
    assert prints(tmp_path / "out") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("when", ["read/00000[3-9]", "encode/00000[3-9]"])
def test_of_three_nodes_one_is_lost_and_the_result_is_the_same(cluster, texts, expected, tmp_path, when):  # noqa: F811
    import ray

    lost, _ = (cluster.add_node(**NODE) for _ in range(2))
    alive = list[int]()

    def lose() -> None:
        wait_for(lambda: any(tmp_path.glob(f".out.stage/{when}")))
        cluster.remove_node(lost, allow_graceful=False)
        wait_for(lambda: sum(node["Alive"] for node in ray.nodes()) == 2)
        alive.append(2)

    thread = threading.Thread(target=lose)
    thread.start()
    ray.init(cluster.address, log_to_driver=False)
    try:
        prepare(limited(), texts, tmp_path / "out", Options(ray=cluster.address))
        thread.join()
    finally:
        ray.shutdown()
    assert alive == [2]
    assert prints(tmp_path / "out") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_of_the_text_is_that_of_one_process(cluster, texts, tmp_path):  # noqa: F811
    damaged = tmp_path / "c.jsonl.gz"
    content = bytearray(gzip.compress(b'{"domain": "en", "text": "some words"}\n' * 9, 0))
    content[60] ^= 1
    damaged.write_bytes(content)
    said = list[str]()
    for options in (Options(1), Options(ray=cluster.address)):
        with pytest.raises(DataError, match="the gzip stream is damaged") as failed:
            prepare(limited(), [*texts, damaged], tmp_path / "out", options)
        said.append(str(failed.value).replace(str(tmp_path), ""))
    assert said[0] == said[1]


def end(number: int, unit: int) -> None:
    os._exit(9)


def test_a_unit_that_ends_its_process_is_given_up(cluster, monkeypatch):
    monkeypatch.setattr("pangu_sigma.data.prepare.executors._RETRIES", 1)
    executor = Ray(cluster.address)
    try:
        with pytest.raises(StageError, match=r"p: Ray gave a unit up: .*the same command goes on where it was"):
            executor.run(end, [(0, 0), (1, 1)], "p", 2)
    finally:
        executor.close()


INTERRUPTED = """
import sys
from pathlib import Path
from data.prepare.test_executors import limited
from pangu_sigma.data.prepare import prepare as module, reading

reading.block_size = lambda total: 16 << 10
module.prepare(limited(), [Path(name) for name in sys.argv[3:]], Path(sys.argv[1]), module.Options(ray=sys.argv[2]))
"""


def test_after_ctrl_c_one_process_goes_on(cluster, texts, expected, tmp_path):  # noqa: F811
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "out"), cluster.address, *map(str, texts)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    wait_for(lambda: any(tmp_path.glob(".out.stage/read/00000[3-9]")))
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and time.monotonic() - begin < 40, said
    assert "KeyboardInterrupt" in said and "usage" not in said.lower()
    done = len([*tmp_path.glob(".out.stage/read/??????")])
    assert done >= 3, "the stage stays"
    prepare(limited(), texts, tmp_path / "out")
    assert prints(tmp_path / "out") == expected


def test_nothing_is_sent_to_the_makers_of_ray(monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    executor = Ray("local")
    try:
        from ray._common.usage import usage_lib

        assert not usage_lib.usage_stats_enabled()
        session = Path(executor._ray._private.worker._global_node.get_session_dir_path())
        assert not (session / "usage_stats.json").exists()
    finally:
        executor.close()
