"""Rendezvous of the launchers of a run's nodes: they agree before ranks start, and send each other failures while ranks run.

Node 0 listens at the port after the scheduler's; the others connect and send the facts of the run that they will start
(`training_facts`), which node 0 compares: ranks would need MindSpore and minutes to find a difference. TCP, because a shared file
system may be missing, or show a file late. The connections stay open: one node's failure or end reaches all others within a poll.

    node → 0   {"node", "host", "facts"}
    0 → node   {"go": name of the log folder}   or   {"refuse": message}
    both ways  {"stop": [reason, status]}       ranks must be stopped
    both ways  {"done": true}                   its ranks have ended well; from node 0: the ranks of all nodes have
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pangu_sigma.bars import Bar
from pangu_sigma.errors import argument
from pangu_sigma.ranks.processes import LaunchError

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.3
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
        self._connection, self._received = connection, b""
        self.fileno, self.close = connection.fileno, connection.close
        self.node, self.host, self.facts = -1, connection.getpeername()[0], dict[str, str]()

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a lost node is noticed when it is read from
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def messages(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Yield the messages that have arrived, or the first that arrive within `seconds`.

        Raises OSError if the other end is closed, and ValueError if it is not a launcher.
        """
        if b"\n" not in self._received and select.select([self], [], [], seconds)[0]:
            arrived = self._connection.recv(1 << 16)
            if not arrived:
                raise ConnectionError(f"{self} closed the connection")
            self._received += arrived
        while b"\n" in self._received:
            line, _, self._received = self._received.partition(b"\n")
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError(f"{self} sent no JSON object")
            yield message
        if len(self._received) > _LONGEST_MESSAGE:
            raise ValueError(f"{self} sent a line of more than {_LONGEST_MESSAGE} bytes")

    def __str__(self) -> str:
        return f"node {self.node} ({self.host})"


class Peers:
    """Connections to the launchers of other nodes after the rendezvous. A single node has none, and `wait` only sleeps."""

    def __init__(self, node: int, links: list[_Link], folder: str):
        self._node, self._links, self.folder = node, links, folder
        self._done: set[int] = set()
        self._awaited = {0} if node else {0, *(link.node for link in links)}

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            link.close()

    @property
    def ended(self) -> bool:
        """True once the ranks of all nodes have ended well."""
        return self._awaited <= self._done

    def wait(self, seconds: float) -> Stop | None:
        """Wait for messages, at most `seconds`. Returns the reason to stop if a node sends a reason or is gone, else None."""
        select.select(self._links, [], [], seconds)
        for link in list(self._links):
            try:
                for message in link.messages(0.0):
                    if "stop" in message:
                        return Stop(*message["stop"])
                    if "done" in message:
                        self._finish(link.node)
            except (OSError, ValueError):
                self._links.remove(link)
                link.close()
                if link.node not in self._done:
                    return Stop(
                        f"{link} is gone: its launcher was killed, its machine stopped, or the network broke", 1
                    )
        return None

    def tell(self, stop: Stop) -> None:
        """Send the reason to stop to all other nodes."""
        for link in self._links:
            link.send(stop=[stop.reason, stop.status])

    def done(self) -> None:
        """Report that the ranks of this node have ended well. It may be called again."""
        if self._node not in self._done:
            self._finish(self._node)

    def _finish(self, node: int) -> None:
        """Note that a node is done; send it to node 0, and from node 0, once all are done, to all."""
        self._done.add(node)
        if node == self._node > 0 or (self._node == 0 and self.ended):
            for link in self._links:
                link.send(done=True)


def rendezvous(
    node: int, nodes: int, address: str, port: int, facts: dict[str, str], folder: str, seconds: float
) -> Peers:
    """Wait for the launchers of all nodes, at most `seconds`, and check that they launch the same run.

    facts: values that must be equal on all nodes, by name.
    folder: name of the log folder; all nodes use the name of node 0.
    Raises LaunchError, on every node that came, if facts differ or nodes are missing; the message names them.
    """
    if nodes == 1:
        return Peers(node, [], folder)
    if node > 0:
        return _visit(node, address, port, facts, seconds)
    links = _gather(nodes, address, port, time.monotonic() + seconds)
    came = [link for link in links if link.node >= 0]
    problems = [problem for i, link in enumerate(came) for problem in _problems(link, came[:i], nodes, facts)]
    missing = [str(n) for n in range(1, nodes) if n not in {link.node for link in came}]
    if missing and not problems:
        problems = [
            f"of {nodes} nodes, {len(missing)} did not come to {address}:{port} within {seconds:g} s: "
            f"{', '.join(missing)}; start them with the same address and port of node 0, or wait longer ({argument('--wait')})"
        ]
    for link in links:
        if problems:
            link.send(refuse="\n".join(problems))
        elif link in came:
            link.send(go=folder)
            continue
        link.close()
    if problems:
        raise LaunchError("\n".join(problems))
    return Peers(node, came, folder)


def _gather(nodes: int, address: str, port: int, deadline: float) -> list[_Link]:
    """Accept connections on node 0 until as many launchers as there are other nodes have said who they are, or the time is over."""
    links: list[_Link] = []
    with (
        listen(address, port) as server,
        Bar(total=nodes, initial=1, desc="nodes here", unit="node", leave=False) as progress,
    ):
        while progress.n < nodes and time.monotonic() < deadline:
            readers: list[socket.socket | _Link] = [server, *links]
            ready = select.select(readers, [], [], _RETRY_SECONDS)[0]
            if server in ready:
                links.append(_Link(server.accept()[0]))
            for link in (link for link in links if link in ready):
                try:
                    for message in link.messages(0.0):
                        if message.keys() == {"node", "host", "facts"}:  # anything else is not a launcher's
                            link.node, link.host, link.facts = message["node"], message["host"], message["facts"]
                except (OSError, ValueError):  # it left, and may come again
                    link.close()
            links = [link for link in links if link.fileno() >= 0]
            progress.update(1 + sum(link.node >= 0 for link in links) - progress.n)
    return links


def _problems(link: _Link, before: list[_Link], nodes: int, facts: dict[str, str]) -> Iterator[str]:
    """Yield what keeps a node from the run. before: nodes that came before it. facts: the facts of node 0."""
    taken = next((f"{other} is there" for other in before if other.node == link.node), None)
    if taken or not 0 < link.node < nodes:
        taken = taken or "node 0 is this one"
        yield f"{link} came, and {taken}; give each node its own {argument('--node-rank')}, 0 … {nodes - 1}"
    different = [name for name in {**facts, **link.facts} if link.facts.get(name) != facts.get(name)]
    if different:
        shown = [
            f"{name} ({link.facts.get(name, 'none')}, on node 0 {facts.get(name, 'none')})"
            for name in different[:_DIFFERENCES_SHOWN]
        ]
        more = len(different) - len(shown)
        here = f"node 0 ({socket.gethostname()})"
        yield f"{link} differs from {here} in " + "; ".join(shown) + f"; and {more} more" * (more > 0)


def listen(address: str, port: int) -> socket.socket:
    """Listen at a port of node 0. Raises LaunchError if the port cannot be used."""
    try:
        return socket.create_server((address, port))
    except OSError as error:
        raise LaunchError(
            f"{address}:{port} cannot be used: {error.strerror}; the master's address is one of node 0, and the port must be free "
            f"there: choose another {argument('--master-port')}"
        ) from error


def _visit(node: int, address: str, port: int, facts: dict[str, str], seconds: float) -> Peers:
    """Run the rendezvous on a node other than 0."""
    logger.info("waiting up to %g s for node 0 at %s:%d", seconds, address, port)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            link = _Link(socket.create_connection((address, port), timeout=_SEND_SECONDS))
            link.node, link.host = 0, address
            link.send(node=node, host=socket.gethostname(), facts=facts)
            while not (first := next(link.messages(seconds), None)):
                pass
        except (OSError, ValueError):  # node 0 is not there yet, or was stopped and may be started again
            time.sleep(_RETRY_SECONDS)
            continue
        if "refuse" in first:
            raise LaunchError(first["refuse"])
        return Peers(node, [link], first["go"])
    raise LaunchError(
        f"node 0 did not answer at {address}:{port} within {seconds:g} s; start it there, with the same address and "
        f"port of node 0, or wait longer ({argument('--wait')})"
    )
