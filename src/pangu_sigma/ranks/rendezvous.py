"""Rendezvous of the launchers of a run's nodes: they agree before ranks start, and send each other failures while ranks run.

Node 0 listens at the port after the scheduler's; the others connect and send the facts of the run that they will start
(`training_facts`), which node 0 compares: ranks would need MindSpore and minutes to find a difference. TCP, because a shared file
system may be missing, or show a file late. The connections stay open: one node's failure or end reaches all others within a poll.

    node → 0   {"node", "host", "facts"}
    0 → node   {"go": name of the log folder}   or   {"refuse": message}
    both ways  {"stop": [reason, status]}       ranks must be stopped
    node → 0   {"done": true}                   its ranks have ended well
    0 → node   {"end": true}                    all have
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
import time
from dataclasses import dataclass
from typing import Any

from pangu_sigma.bars import Bar
from pangu_sigma.errors import argument
from pangu_sigma.ranks.processes import LaunchError

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.3
_LINGER_SECONDS = 5.0
"""Seconds that node 0 still listens after two nodes differ, so that other nodes are refused too and do not wait."""
_SEND_SECONDS = 5.0
_LONGEST_MESSAGE = 4 << 20
_DIFFERENCES_SHOWN = 5


@dataclass(frozen=True)
class Stop:
    """Reason to stop the ranks. status: 0 if it was requested, 1 for a failure, 2 for one that only the user can mend."""

    reason: str
    status: int


class _Link:
    """Connection that carries JSON, one message a line."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(_SEND_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host that loses power closes nothing
        for option, seconds in ((socket.TCP_KEEPIDLE, 3), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
            connection.setsockopt(socket.IPPROTO_TCP, option, seconds)
        self._connection, self._incomplete_line = connection, b""
        self.unread: list[dict[str, Any]] = []
        """Messages that came together with the last one of the rendezvous; `receive` returns them next."""
        self.node, self.host = -1, ""  # until the launcher at the other end has sent them

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a lost node is noticed when it is read from
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that have arrived; None if the other end is closed or is not a launcher. Call it after `select` says
        that there is something to read: otherwise it waits. [] is a message of which a part has arrived."""
        if self.unread:
            messages, self.unread = self.unread, []
            return messages
        try:
            data = self._connection.recv(1 << 16)
            *lines, self._incomplete_line = (self._incomplete_line + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError):
            return None
        are_objects = all(isinstance(message, dict) for message in messages)
        return messages if data and are_objects and len(self._incomplete_line) < _LONGEST_MESSAGE else None

    def __str__(self) -> str:
        return f"node {self.node} ({self.host})"


class Peers(contextlib.AbstractContextManager["Peers"]):
    """Connections to the launchers of other nodes after the rendezvous. A single node has none, and `wait` only sleeps."""

    def __init__(self, node: int, links: list[_Link], folder: str):
        self._node, self._links, self.folder = node, links, folder
        self._nodes = len(links) + 1
        self._finished_nodes: set[int] = set()
        self.all_done = False

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            link.close()

    def wait(self, seconds: float) -> Stop | None:
        """Wait for messages, at most `seconds`. Returns the reason to stop if a node sends a reason or is gone, else None."""
        if not self._links:
            time.sleep(seconds)
            return None
        unread_links = [link for link in self._links if link.unread]  # `select` does not know of these messages
        for link in unread_links or select.select(self._links, [], [], seconds)[0]:
            messages = link.receive()
            if messages is None:
                self._links.remove(link)
                link.close()
                if link.node not in self._finished_nodes:
                    return Stop(
                        f"{link} is gone: its launcher was killed, its machine stopped, or the network broke", 1
                    )
            for message in messages or []:
                if "stop" in message:
                    return Stop(*message["stop"])
                self.all_done |= "end" in message
                if "done" in message:
                    self._record_done(link.node)
        return None

    def send_stop(self, stop: Stop) -> None:
        """Send the reason to stop to all other nodes."""
        for link in self._links:
            link.send(stop=[stop.reason, stop.status])

    def report_done(self) -> None:
        """Report that the ranks of this node have ended well. `all_done` becomes True once all nodes have reported it."""
        if self._node == 0:
            self._record_done(0)
        else:
            for link in self._links:
                link.send(done=True)

    def _record_done(self, node: int) -> None:
        """On node 0: record that the ranks of a node have ended well, and tell all nodes once all have."""
        self._finished_nodes.add(node)
        if len(self._finished_nodes) == self._nodes:
            self.all_done = True
            for link in self._links:
                link.send(end=True)


def rendezvous(
    node: int, nodes: int, address: str, port: int, facts: dict[str, str], folder: str, seconds: float
) -> Peers:
    """Wait for the launchers of all nodes, at most `seconds`, and check that they launch the same run. facts: values that must be
    equal on all nodes, by name. folder: name of the log folder; all nodes use the name of node 0. Raises LaunchError, on every node
    that came, if facts differ or nodes are missing; the message names them."""
    if nodes == 1:
        return Peers(node, [], folder)
    if node == 0:
        return Peers(node, _MeetingPoint(nodes, facts, folder, seconds).gather(address, port), folder)
    return _join_node_0(node, address, port, facts, seconds)


class _MeetingPoint:
    """Node 0's side of the rendezvous: it listens for the other nodes, and compares their facts."""

    def __init__(self, nodes: int, facts: dict[str, str], folder: str, seconds: float):
        self._nodes, self._facts, self._folder = nodes, facts, folder
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self._links: list[_Link] = []
        self._problems: list[str] = []

    @property
    def _links_by_node(self) -> dict[int, _Link]:
        """Connections of the nodes that have sent their number, by number."""
        return {link.node: link for link in self._links if link.node > 0}

    def gather(self, address: str, port: int) -> list[_Link]:
        """Wait for all nodes at an address, tell them to go or why not, and return their connections. Raises LaunchError if nodes
        are missing or differ."""
        with (
            listening_socket(address, port) as server,
            Bar(total=self._nodes, initial=1, desc="nodes here", unit="node", leave=False) as progress,
        ):
            while len(self._links_by_node) < self._nodes - 1 and time.monotonic() < self._deadline:
                self._accept_and_read(server)
                progress.update(1 + len(self._links_by_node) - progress.n)
        missing_nodes = [str(n) for n in range(1, self._nodes) if n not in self._links_by_node]
        if missing_nodes and not self._problems:
            self._problems.append(
                f"of {self._nodes} nodes, {len(missing_nodes)} did not come to {address}:{port} within {self._seconds:g} s: "
                f"{', '.join(missing_nodes)}; start them with the same address and port of node 0, or wait longer "
                f"({argument('--wait')})"
            )
        if self._problems:
            message = "\n".join(self._problems)
            for link in self._links:
                link.send(refuse=message)
                link.close()
            raise LaunchError(message)
        for link in self._links:
            if link.node > 0:
                link.send(go=self._folder)
            else:  # not a launcher: it has sent no number of a node
                link.close()
        return list(self._links_by_node.values())

    def _accept_and_read(self, server: socket.socket) -> None:
        """Accept new connections and read messages, for at most _RETRY_SECONDS."""
        for reader in select.select(list[socket.socket | _Link]([server, *self._links]), [], [], _RETRY_SECONDS)[0]:
            if isinstance(reader, _Link):
                self._read_link(reader)
            else:
                self._links.append(_Link(server.accept()[0]))

    def _read_link(self, link: _Link) -> None:
        """Read the messages of a connection, and register the node that they tell; remove the connection if it was closed."""
        messages = link.receive()
        if messages is None:  # the node may connect again
            link.close()
            self._links.remove(link)
        for message in messages or []:
            match message:  # no launcher sends anything else
                case {"node": int(node), "host": str(host), "facts": dict(facts)}:
                    self._register(link, node, host, facts)

    def _register(self, link: _Link, node: int, host: str, facts: dict[str, str]) -> None:
        """Register a node that has connected. A wrong number, or that of another node, and facts that differ from node 0's are
        recorded as problems."""
        link.host, visitor = host, f"node {node} ({host})"
        if 0 < node < self._nodes and node not in self._links_by_node:
            link.node = node
        else:
            conflict = f"{self._links_by_node[node]} is there" if node in self._links_by_node else "node 0 is this one"
            advice = f"give each node its own {argument('--node-rank')}, 0 … {self._nodes - 1}"
            self._add_problem(f"{visitor} came, and {conflict}; {advice}")
        differences = [
            f"{name} ({facts.get(name, 'none')}, on node 0 {self._facts.get(name, 'none')})"
            for name in {**self._facts, **facts}
            if facts.get(name) != self._facts.get(name)
        ]
        if differences:
            more = len(differences) - _DIFFERENCES_SHOWN
            text = "; ".join(differences[:_DIFFERENCES_SHOWN]) + f"; and {more} more" * (more > 0)
            self._add_problem(f"{visitor} differs from node 0 ({socket.gethostname()}) in {text}")

    def _add_problem(self, problem: str) -> None:
        """Record a problem; after the first, node 0 listens only _LINGER_SECONDS more."""
        if not self._problems:
            self._deadline = min(self._deadline, time.monotonic() + _LINGER_SECONDS)
        self._problems.append(problem)


def listening_socket(address: str, port: int) -> socket.socket:
    """Return a socket that listens at a port of node 0. Raises LaunchError if the port is in use."""
    try:
        return socket.create_server((address, port))
    except OSError as error:
        raise LaunchError(
            f"{address}:{port} cannot be used: {error.strerror}; the master's address is one of node 0, and the port must be free "
            f"there: choose another {argument('--master-port')}"
        ) from error


def _join_node_0(node: int, address: str, port: int, facts: dict[str, str], seconds: float) -> Peers:
    """Run the rendezvous on a node other than 0: connect to node 0 until it answers, and return the connection. Raises LaunchError
    if node 0 refuses, or does not answer within `seconds`."""
    logger.info("waiting up to %g s for node 0 at %s:%d", seconds, address, port)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            link = _Link(socket.create_connection((address, port), timeout=_SEND_SECONDS))
        except OSError:
            time.sleep(_RETRY_SECONDS)
            continue
        link.node, link.host = 0, address
        link.send(node=node, host=socket.gethostname(), facts=facts)
        messages: list[dict[str, Any]] | None = []
        while messages == []:  # node 0 answers when all nodes have come, or its own time is over
            select.select([link], [], [])
            messages = link.receive()
        if messages:
            answer, *link.unread = messages
            if "refuse" in answer:
                raise LaunchError(answer["refuse"])
            return Peers(node, [link], answer["go"])
        link.close()  # node 0 was stopped; it may be started again
        time.sleep(_RETRY_SECONDS)
    raise LaunchError(
        f"node 0 did not answer at {address}:{port} within {seconds:g} s; start it there, with the same address and "
        f"port of node 0, or wait longer ({argument('--wait')})"
    )
