"""Server process: listening socket, API key, timeouts of connections, graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pangu_sigma.config import ConfigError
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.serve.app import make_app
from pangu_sigma.serve.guard import HostNames, is_local
from pangu_sigma.serve.limits import Limits
from pangu_sigma.serve.served import Served

logger = logging.getLogger(__name__)

KEY_VARIABLE = "PANGU_SIGMA_API_KEY"
"""Environment variable with the API key that clients must send."""

_HEAD_BYTES = 64 << 10
"""Maximum size of request line and headers together."""
LAST_SECONDS = 2
"""Timeout in seconds for connections to close after the last answer when the server stops."""


@dataclass(frozen=True)
class Address:
    """Address on which a server listens. port: 0 for any free port. others: further host names, such as a proxy's."""

    host: str = "127.0.0.1"
    port: int = 8000
    others: Collection[str] = ()


def bind(address: Address) -> socket.socket:
    """Bind a listening socket. Raises ConfigError if that fails. The port of a killed server can be bound again at once."""
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
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen at {address.host}, port {address.port}: {error.strerror}; stop what listens there, or choose another "
            "--port (0: any that is free) or --host"
        ) from error
    return bound


def read_key(file: Path | None) -> str | None:
    """Read the API key from a file, or else from PANGU_SIGMA_API_KEY. Returns None if there is neither.

    Raises ConfigError for a file that cannot be read, and for a key that cannot be sent in a header.
    """
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api-key-file {file}: {getattr(error, 'strerror', error)}; give a file with the key"
            ) from error
        named = f"--api-key-file {file}"
    elif KEY_VARIABLE in os.environ:
        key, named = os.environ[KEY_VARIABLE].strip(), KEY_VARIABLE
    else:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{named}: a key has one or more ASCII letters, digits and marks, and no blanks")
    return key


def serve(decoder: Decoder, listening: socket.socket, address: Address, key: str | None, limits: Limits) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status: 1 if the model failed, else 0.

    Answers that run at the signal have limits.stop_seconds to finish.
    """
    server = make_server(decoder, address, key, limits)
    warn_if_open(address, key)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("serving %s at http://%s:%d", ", ".join(server.served.domains), shown, port)
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
    """Make a server, whose `run` takes listening sockets."""
    served = Served(Engine(decoder, waiting=limits.waiting), limits)
    app = make_app(served, HostNames(address.host, address.others), key)
    config = uvicorn.Config(
        app,
        http=_protocol(limits),
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
    """Uvicorn server that lets running answers finish before it stops."""

    def __init__(self, config: uvicorn.Config, served: Served):
        super().__init__(config)
        self.served = served
        served.thread.on_failure = self.stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            logger.info("stopping; what runs may go on for %d s", self.served.limits.stop_seconds)
            self.stop()
            threading.Thread(
                target=self.served.thread.finish_within, args=(self.served.limits.stop_seconds,), daemon=True
            ).start()
        else:
            super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Accept no more requests, and stop after the current requests."""
        self.should_exit = True


def _protocol(limits: Limits) -> type[asyncio.Protocol]:
    class Patient(H11Protocol):
        """HTTP protocol that closes connections that send no request in time or exceed the limit of connections."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            self._wait_for_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            self._stop_waiting()
            self._deadline = self.loop.call_later(limits.head_seconds, self._give_up)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()

        def _give_up(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Patient
