"""Server process: socket, API key, host names, and the end of uvicorn with a word to each open request."""

from __future__ import annotations

import logging
import os
import re
import socket
from asyncio import CancelledError
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import argument
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.serve.app import make_app
from pangu_sigma.serve.served import Limits, Served

logger = logging.getLogger(__name__)

KEY_VARIABLE = "PANGU_SIGMA_API_KEY"
"""Environment variable with the API key that clients must send."""

LAST_SECONDS = 2
"""Timeout in seconds for connections to close after the last event when the server stops."""
_NAME = r"(\*\.)?[\w-]+(\.[\w-]+)*|\*|\[[0-9a-fA-F:.]+\]"
"""Name of a host as TrustedHostMiddleware takes it."""


@dataclass(frozen=True)
class Address:
    """Address on which a server listens. port: 0 for any free port. others: further host names, such as a proxy's."""

    host: str = "127.0.0.1"
    port: int = 8000
    others: Collection[str] = ()

    @property
    def is_local(self) -> bool:
        """True if the server is reachable from this machine only."""
        return self.host.lower() in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def names(self) -> list[str]:
        """Host names that requests may name: a page of another site may point its site's name at this machine (DNS rebinding)."""
        if not self.is_local and not self.others:
            return ["*"]  # other machines may know this one by any name or address
        url_host = f"[{self.host}]" if ":" in self.host else self.host  # IPv6 addresses are in brackets
        return ["localhost", "127.0.0.1", "[::1]", url_host, *self.others]


def bind(address: Address) -> socket.socket:
    """Bind a socket to an address, and return it. It refuses connections until the server is ready. Raises ConfigError."""
    for name in address.others:
        if not re.fullmatch(_NAME, name):
            host_option = f"{argument('--allow-host')}={name!r}"
            raise ConfigError(f"{host_option} is not a host name; leave out http://, port and path")
    if not 0 <= address.port < 1 << 16:
        raise ConfigError(f"{argument('--port')} {address.port} is not allowed: 0 (any that is free) to 65535")
    server_socket = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a killed server's port is free at once
        server_socket.bind((address.host, address.port))
    except OSError as error:
        server_socket.close()
        raise _cannot_listen(address.host, address.port, error) from error
    return server_socket


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    fix = f"stop what listens there, or choose another {argument('--port')} (0: any free one) or {argument('--host')}"
    return ConfigError(f"cannot listen at {host}, port {port}: {error.strerror}; {fix}")


def read_key(file: Path | None) -> str | None:
    """Read the API key from a file, or else from PANGU_SIGMA_API_KEY. Returns None if there is neither.

    Raises ConfigError for a file that cannot be read, and for a key that cannot be sent in a header.
    """
    if file is None and KEY_VARIABLE not in os.environ:
        return None
    source, text = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "")
    if file is not None:
        source = f"{argument('--api-key-file')} {file}"
        try:
            text = file.read_text(encoding="latin-1")
        except OSError as error:
            raise ConfigError(f"{source}: {error.strerror}; give a file with the key") from error
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{source}: a key has ASCII letters, digits and marks, at least one, and no blanks")
    return key


def serve(decoder: Decoder, listening: socket.socket, address: Address, key: str | None, limits: Limits) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status: 1 if the model failed, else 0. listening: socket from `bind`.

    Requests that were accepted before the signal have limits.stop_seconds to finish. key: API key; None: none is needed.
    """
    if key is None and not address.is_local:
        problem = f"{argument('--host')} {address.host}: everybody who reaches this machine can use the model"
        logger.warning("%s; set %s, or %s", problem, KEY_VARIABLE, argument("--api-key-file"))
    server = make_server(decoder, address, key, limits)
    server.served.warm_up()
    server.run([listening])
    return 1 if server.served.thread.failed else 0


def make_server(decoder: Decoder, address: Address, key: str | None, limits: Limits) -> Server:
    """Make the HTTP server of a model. Its method `run` takes the sockets on which it listens."""
    served = Served(Engine(decoder, waiting=limits.waiting), limits)
    config = uvicorn.Config(
        make_app(served, address.names, key),
        http="h11",
        ws="none",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections + 1,  # this number itself is refused
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=limits.stop_seconds + LAST_SECONDS,
    )
    return Server(config, served)


class Server(uvicorn.Server):
    """Uvicorn server that tells the open requests when it stops. Uvicorn alone cuts them: the lifespan ends after them."""

    def __init__(self, config: uvicorn.Config, served: Served):
        super().__init__(config)
        self.served = served
        # uvicorn has a line for the requests that it cancels at the end, and then a traceback for each
        logging.getLogger("uvicorn.error").addFilter(lambda record: CancelledError not in (record.exc_info or ()))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after the open requests at the first SIGINT or SIGTERM, and at once at the second SIGINT."""
        if self.should_exit:  # this is the second signal
            super().handle_exit(sig, frame)
        else:
            self.stop()

    def stop(self) -> None:
        """Accept no more requests, and break off those that are still open after limits.stop_seconds. Any thread may call it."""
        logger.info("stopping; what runs may go on for %d s", self.served.limits.stop_seconds)
        self.should_exit = True
        if loop := self.served.thread.loop:  # None before the application starts
            loop.call_soon_threadsafe(loop.call_later, self.served.limits.stop_seconds, self.served.thread.stop)

    async def on_tick(self, counter: int) -> bool:
        """Return True if the server must stop."""
        return self.served.thread.failed or await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen at the socket that `run` was called with, and log its address. Raises ConfigError if another server listens."""
        host, port = (sockets or [])[0].getsockname()[:2]
        try:
            await super().startup(sockets)
        except OSError as error:  # another server was bound to this port at the same time, and listened first
            raise _cannot_listen(host, port, error) from error
        url_host = f"[{host}]" if ":" in host else host
        logger.info("serving %s at http://%s:%d", ", ".join(self.served.domains), url_host, port)
