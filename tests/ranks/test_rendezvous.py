"""What launchers of several nodes say to each other, over real connections on this machine."""

from __future__ import annotations

import socket
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from experiments.chaos.launched import PATIENCE, eventually, free_port
from pangu_sigma.ranks.processes import LaunchError
from pangu_sigma.ranks.rendezvous import Peers, Stop, _MeetingPoint, rendezvous

FACTS = {"train.steps": "100", "vocabulary": "ab12"}


def meeting(facts: dict[int, dict[str, str]], nodes: int, seconds: float = PATIENCE) -> dict[int, Future[Peers]]:
    """What `rendezvous` gives each of the nodes that come, by node."""
    port = free_port()
    with ThreadPoolExecutor(nodes) as pool:
        return {
            n: pool.submit(rendezvous, n, nodes, "127.0.0.1", port, facts[n], f"folder_{n}", seconds) for n in facts
        }


def refusals(came: dict[int, Future[Peers]]) -> set[str]:
    """The message that every node was refused with."""
    errors = [future.exception() for future in came.values()]
    assert all(isinstance(error, LaunchError) for error in errors), errors
    return {str(error) for error in errors}


@pytest.fixture
def three():
    peers = [future.result() for future in meeting(dict.fromkeys(range(3), FACTS), 3).values()]
    yield peers
    for each in peers:
        each.__exit__()


def test_nodes_that_agree_meet_and_use_the_log_folder_of_node_0(three):
    assert [peers.folder for peers in three] == ["folder_0"] * 3


def test_one_node_meets_nobody():
    with rendezvous(0, 1, "127.0.0.1", 1, FACTS, "folder", 1.0) as peers:
        assert peers.wait(0.0) is None
        peers.report_done()
        assert peers.all_done


def test_nodes_that_differ_are_all_refused_with_what_differs_and_where():
    started = time.monotonic()
    came = meeting({0: FACTS, 1: FACTS | {"vocabulary": "x"}, 2: FACTS | {"only here": "other"}}, 3)
    assert time.monotonic() - started < PATIENCE / 2, "nobody waits until the time is over"
    (message,) = refusals(came)
    assert f"node 2 ({socket.gethostname()}) differs from node 0" in message
    assert "vocabulary (x, on node 0 ab12)" in message and "in only here (other, on node 0 none)" in message


def test_missing_nodes_are_named_to_those_that_came():
    (message,) = refusals(meeting({0: FACTS, 2: FACTS}, 4, seconds=2.0))
    assert "of 4 nodes, 2 did not come to 127.0.0.1:" in message
    assert "within 2 s: 1, 3;" in message


def test_a_missing_node_0_is_named_and_waiting_for_it_is_said(caplog):
    caplog.set_level("INFO")
    (message,) = refusals(meeting({1: FACTS}, 2, seconds=1.0))
    assert "node 0 did not answer at 127.0.0.1:" in message
    assert "waiting up to 1 s for node 0 at 127.0.0.1:" in caplog.text


def test_two_nodes_of_the_same_rank_are_refused():
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        came = {
            i: pool.submit(rendezvous, node, 3, "127.0.0.1", port, FACTS, "", PATIENCE)
            for i, node in enumerate((0, 1, 1))
        }
    (message,) = refusals(came)
    assert "node 1" in message
    assert "give each node its own node_rank, 0 … 2" in message


def test_whoever_else_connects_disturbs_nothing():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        host = pool.submit(rendezvous, 0, 2, "127.0.0.1", port, FACTS, "folder", PATIENCE)
        wrong_types = b'{"node": "1", "host": "h", "facts": {}}\n', b'{"node": 1, "host": "h", "facts": [1]}\n'
        nested = b"[" * 100_000 + b"\n"
        for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"7\n", b'{"node": 1}\n', *wrong_types, nested):
            with eventually(lambda: connected(port)) as stranger:
                stranger.sendall(greeting)
        with eventually(lambda: connected(port)):  # stays, and says nothing
            visitor = pool.submit(rendezvous, 1, 2, "127.0.0.1", port, FACTS, "", PATIENCE)
            with host.result(), visitor.result():
                assert visitor.result().folder == "folder"


def test_a_connection_that_is_reset_before_it_is_accepted_is_forgotten():
    meeting_point = _MeetingPoint(2, FACTS, "folder", PATIENCE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as scanner:
            scanner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for _ in ("accepts it", "reads it"):
            meeting_point._accept_and_read(server)
    assert meeting_point._links == []


def connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port))
    except OSError:
        return None


def test_a_stop_reaches_every_node_through_node_0(three):
    stop = Stop("rank 9 was killed", 1)
    three[2].send_stop(stop)
    assert three[0].wait(PATIENCE) == stop
    three[0].send_stop(stop)
    assert three[1].wait(PATIENCE) == stop


def test_a_stop_that_comes_with_the_go_is_heard():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        visitor = pool.submit(rendezvous, 1, 2, "127.0.0.1", port, FACTS, "", PATIENCE)
        host, _ = server.accept()
        with host:
            host.sendall(b'{"go": "folder"}\n{"stop": ["rank 0 was killed", 1]}\n{"end"')
            with visitor.result() as peers:
                assert peers.wait(0.1) == Stop("rank 0 was killed", 1)
                host.sendall(b": true}\n")
                assert peers.wait(PATIENCE) is None
                assert peers.all_done


def test_the_run_ends_when_all_nodes_are_done(three):
    three[0].report_done()
    three[1].report_done()
    assert three[0].wait(PATIENCE) is None
    assert three[1].wait(0.1) is None
    assert not any(peers.all_done for peers in three)
    three[2].report_done()
    for peers in three:
        assert peers.wait(PATIENCE) is None
    assert all(peers.all_done for peers in three)


def test_a_node_that_is_lost_stops_the_others(three):
    three[1].__exit__()
    assert three[0].wait(PATIENCE).reason.startswith("node 1 (")
    three[0].__exit__()
    assert three[2].wait(PATIENCE).reason.startswith("node 0 (")


def test_a_node_may_leave_once_it_is_done(three):
    three[1].report_done()
    three[1].__exit__()
    assert three[0].wait(PATIENCE) is None
    assert three[0].wait(0.2) is None
