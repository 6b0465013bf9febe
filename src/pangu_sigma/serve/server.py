"""Server process: listening socket, API key, timeouts of connections, graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pangu_sigma.config import ConfigError
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.serve.app import make_app
from pangu_sigma.serve.guard import HostNames, is_local
from pangu_sigma.serve.limits import Limits
from pangu_sigma.serve.refusals import ApiError, error_response
from pangu_sigma.serve.served import Served

logger = logging.getLogger(__name__)

KEY_VARIABLE = "PANGU_SIGMA_API_KEY"
"""Environment variable with the API key that clients must send."""

_KEY_BYTES = 4 << 10
"""Maximum length of an API key."""
_HEAD_BYTES = 64 << 10
"""Maximum size of request line and headers together."""
_LAST_HEAD_SECONDS = 0.5
"""Timeout in seconds for the request line and headers of a connection that is open when the server stops."""
LAST_SECONDS = 2
"""Timeout in seconds for connections to close after the last answer when the server stops."""


@dataclass(frozen=True)
class Address:
    """Address on which a server listens. port: 0 for any free port. others: further host names, such as a proxy's."""

    host: str = "127.0.0.1"
    port: int = 8000
    others: Collection[str] = ()


def bind(address: Address) -> socket.socket:
    """Return a socket bound to an address. Connections are refused until the server is ready. Raises ConfigError for a bad address.

    The port of a killed server can be bound again at once.
    """
    HostNames(address.host, address.others)
    if not 0 <= address.port < 1 << 16:
        raise ConfigError(f"--port {address.port} is not allowed: 0 (any that is free) to 65535")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {address.host}: {error.strerror}; choose an address of this machine") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise _cannot_listen(address.host, address.port, error) from error
    return bound


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot listen at {host}, port {port}: {error.strerror}; stop what listens there, or choose another "
        "--port (0: any that is free) or --host"
    )


def read_key(file: Path | None) -> str | None:
    """Read the API key from a file, or else from PANGU_SIGMA_API_KEY. Returns None if there is neither.

    Raises ConfigError for a file that cannot be read, and for a key that cannot be sent in a header.
    """
    if file is not None:
        named = f"--api-key-file {file}"
        try:
            with open(file, "rb") as stream:
                key = stream.read(_KEY_BYTES + 1).decode("latin-1").strip()  # a device may have no end
        except OSError as error:
            raise ConfigError(f"{named}: {error.strerror}; give a file with the key") from error
    elif KEY_VARIABLE in os.environ:
        key, named = os.environ[KEY_VARIABLE].strip(), KEY_VARIABLE
    else:
        return None
    if not 0 < len(key) <= _KEY_BYTES or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{named}: a key has 1 to {_KEY_BYTES:,} ASCII letters, digits and marks, and no blanks")
    return key


def serve(decoder: Decoder, listening: socket.socket, address: Address, key: str | None, limits: Limits) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status: 1 if the model failed, else 0.

    Requests that were accepted before the signal have limits.stop_seconds to finish.
    """
    server = make_server(decoder, address, key, limits)
    warn_if_open(address, key)
    server.served.warm_up()
    server.run([listening])
    return 1 if server.served.thread.failed else 0


def warn_if_open(address: Address, key: str | None) -> None:
    """Warn if the server is reachable from other machines without an API key."""
    if key is None and not is_local(address.host):
        logger.warning(
            "--host %s: everybody who reaches this machine can use the model; set %s, or --api-key-file",
            address.host,
            KEY_VARIABLE,
        )


def make_server(decoder: Decoder, address: Address, key: str | None, limits: Limits) -> Server:
    """Make the HTTP server of a model. Its method `run` takes the sockets on which it listens."""
    served = Served(Engine(decoder, waiting=limits.waiting), limits)
    app = make_app(served, HostNames(address.host, address.others), key)
    config = uvicorn.Config(
        app,
        http=_protocol(served),
        ws="none",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=limits.head_seconds,
        timeout_graceful_shutdown=limits.stop_seconds + LAST_SECONDS,
    )
    return Server(config, served)


class Server(uvicorn.Server):
    """Uvicorn server that answers every request that reached it before it stops: in full, or with an error."""

    def __init__(self, config: uvicorn.Config, served: Served):
        super().__init__(config)
        self.served = served
        served.thread.on_failure = self.stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after the current requests at the first SIGINT or SIGTERM, and at once at the second SIGINT."""
        if not self.should_exit:
            logger.info("stopping; what runs may go on for %d s", self.served.limits.stop_seconds)
            self.stop()
        else:
            super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Accept no more requests, and stop once the current requests are answered."""
        self.should_exit = self.served.stopping = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the address."""
        host, port = (sockets or [])[0].getsockname()[:2]
        try:
            await super().startup(sockets)
        except OSError as error:  # another server was bound to this port at the same time, and listened first
            raise _cannot_listen(host, port, error) from error
        shown = f"[{host}]" if ":" in host else host
        logger.info("serving %s at http://%s:%d", ", ".join(self.served.domains), shown, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give the requests limits.stop_seconds to finish, then break them off."""
        end = asyncio.get_running_loop().call_later(self.served.limits.stop_seconds, self._break_off)
        for listening in sockets or []:
            await self._accept_the_last(listening)
        await super().shutdown(sockets)
        end.cancel()

    async def _accept_the_last(self, listening: socket.socket) -> None:
        """Accept the connections that wait in the kernel: it would reset them, with the requests that they have sent already."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        waiting = []
        with contextlib.suppress(OSError):  # of an empty queue
            while True:
                waiting.append(listening.accept()[0])
        listening.shutdown(socket.SHUT_RD)  # from here on connections are refused
        protocol = partial(self.config.http_protocol_class, self.config, self.server_state, self.lifespan.state)  # type: ignore[call-arg]
        for connection in waiting:
            await loop.connect_accepted_socket(protocol, connection)
        # asyncio drops connections that it has accepted and not yet begun when it closes the socket
        await asyncio.sleep(0)

    def _break_off(self) -> None:
        seconds, open_requests = self.served.limits.stop_seconds, len(self.server_state.tasks)
        if open_requests:
            logger.warning("%d requests were not finished after %d s, and are broken off", open_requests, seconds)
        self.served.break_off()


def _protocol(served: Served) -> type[asyncio.Protocol]:
    limits = served.limits

    class Patient(H11Protocol):
        """HTTP protocol that closes connections that send no request in time or exceed the limit of connections."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            self._wait_for_head()

        def handle_events(self) -> None:
            if self.conn.their_state is h11.IDLE and _has_two_lengths(self.conn.trailing_data[0]):
                self.send_400_response("Content-Length has two values; send one")
            else:
                super().handle_events()

        def send_400_response(self, msg: str) -> None:
            self._refuse(ApiError(400, msg, code="invalid_http"))

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait_for_head()

        def shutdown(self) -> None:
            """Let a request finish that has begun, and wait shortly for one that is on its way."""
            if self._is_idle:
                self._wait_for_head()
            else:
                super().shutdown()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _should_upgrade(self) -> bool:
            return False  # and uvicorn logs no advice to install packages for WebSockets

        @property
        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _wait_for_head(self) -> None:
            self._stop_waiting()
            seconds = _LAST_HEAD_SECONDS if served.stopping else limits.head_seconds
            self._deadline = self.loop.call_later(seconds, self._give_up)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()

        def _give_up(self) -> None:
            if self._is_idle and self.conn.trailing_data[0]:
                self._refuse(ApiError(408, "the request line and headers did not come in time", code="too_slow"))
            elif self._is_idle:
                self.transport.close()

        def _refuse(self, refused: ApiError) -> None:
            """Answer what is no request yet."""
            response = error_response(refused)
            head = h11.Response(
                status_code=response.status_code, headers=[*response.raw_headers, (b"connection", b"close")]
            )
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
            self.transport.close()

    return Patient


def _has_two_lengths(received: bytes) -> bool:
    """Return True if a head has two values of Content-Length, of which h11 takes equal ones as one."""
    head = re.split(rb"\n\r?\n", received, maxsplit=1)[0]
    return b"," in b",".join(re.findall(rb"(?im)^content-length[ \t]*:(.*)", head))
