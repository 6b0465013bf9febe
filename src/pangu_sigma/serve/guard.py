"""Middleware before all handlers: checks host name, origin, API key, and the size and duration of the body."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import argument
from pangu_sigma.serve.refusals import ApiError, error_response, stopping
from pangu_sigma.serve.served import Served

PUBLIC_PATHS = ("/", "/health")
"""Paths that need no API key: the page, which has no data and asks for the key, and the health check."""

_POLITE_BYTES, _POLITE_SECONDS = 256 << 20, 5.0
"""Limits in bytes and seconds for draining a refused body, so that the client reads the reason."""

_PROTECTING = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_CLOSE = (b"connection", b"close")


class HostNames:
    """Host names that requests to this server may name, as a defence against DNS rebinding.

    A page of another site may point its own name at this machine and reach the server through the browser of a local user. The
    browser sends that name as Host; IP addresses cannot be redirected in this way.
    """

    def __init__(self, host: str, others: Collection[str] = ()):
        """host: address on which the server listens. others: further names of it. Raises ConfigError for what is no name."""
        self._names = {name.lower().strip("[]") for name in ("localhost", host, *others)}
        self._local = is_local(host)
        for name in others:
            if not self.knows(name) and not self.knows(f"[{name}]"):
                named = f"{argument('--allow-host')}={name!r}"
                raise ConfigError(f"{named} is no name of a host; leave out http://, port and path")

    def knows(self, host: str) -> bool:
        """Return True if the value of a Host header, with or without a port, names this server."""
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s*]+)(?::\d{1,5})?", host)
        if not match:
            return False
        name = match[1].strip("[]").lower()
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._local


def is_local(host: str) -> bool:
    """Return True if a server that listens on `host` is reachable from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that reads a request's whole body and passes the request on, or refuses it.

    A path may begin with the name of a served model: /sigma-zh/tokenize is /tokenize with model=sigma-zh, for clients that have no
    such parameter. Handlers find the name in the ASGI scope, as scope["model"].
    """

    def __init__(self, app: ASGIApp, names: HostNames, key: str | None, served: Served):
        self._app, self._names, self._served, self._limits = app, names, served, served.limits
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [*_PROTECTING, *([_CLOSE] if self._served.stopping else [])]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._served.unanswered.discard(waiting)
                waiting.reschedule(None)
            await send_protected(message)

        try:
            async with asyncio.timeout_at(0 if self._served.broken_off else None) as waiting:
                self._served.unanswered.add(waiting)
                await self._answer(scope, receive, send_in_time)
        except TimeoutError:
            if not waiting.expired():
                raise
            await error_response(stopping())(scope, receive, send_protected)
        finally:
            self._served.unanswered.discard(waiting)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        try:
            scope = self._of_model(scope)
            _check_framing(Headers(scope=scope))
            self._check_names(Headers(scope=scope))
            self._check_key(scope)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                receive = _again(await self._body(scope, receive), receive)
        except _TooLarge as refused:
            await _refuse_politely(refused, receive, send)
            return
        except ApiError as refused:
            await error_response(refused)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        await self._app(scope, receive, send)

    def _of_model(self, scope: Scope) -> Scope:
        first, slash, rest = scope["path"].removeprefix("/").partition("/")
        if not slash or first not in self._served.domains:
            return scope
        return {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode(), "model": first}

    def _check_names(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._names.knows(hosts[0]):
            raise ApiError(
                403,
                f"Host: {', '.join(hosts)[:200]!r} is not a name of this server; if it is, start it with --allow-host NAME",
                code="foreign_host",
            )
        origin = headers.get("origin")
        if origin is not None and not self._names.knows(_netloc(origin)):
            raise ApiError(403, f"Origin: {origin[:200]!r}: pages of other sites may not ask", code="foreign_origin")

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] in PUBLIC_PATHS:
            return
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode("latin-1", "replace"), self._key):
            raise ApiError(
                401,
                "the key is missing or wrong; send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the whole body of a request. Raises ApiError if it is too large or too slow."""
        most = self._limits.body_kib << 10
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or len(length) > 15 or int(length) > most:
            raise _TooLarge(self._limits.body_kib, more=True)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _TooLarge(self._limits.body_kib, more=bool(message.get("more_body")))
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not come within {self._limits.body_seconds} s; send it faster, or start the server with "
                "--set body_seconds=N",
                headers={"Connection": "close"},
            ) from None


class _TooLarge(ApiError):
    """Refusal of a body of more than `kib` KiB. more: True if the rest of the body has not been received."""

    def __init__(self, kib: int, more: bool):
        reason = f"the body has more than {kib} KiB; send less, or start the server with --set body_kib=N"
        super().__init__(413, reason, headers={"Connection": "close"})
        self.more = more


def _check_framing(headers: Headers) -> None:
    """Refuse two lengths of one body, and close: a proxy in front may believe the other one, and see another next request."""
    if "content-length" in headers and "transfer-encoding" in headers:
        raise ApiError(
            400,
            "Content-Length and Transfer-Encoding are both there; send one of them",
            code="two_lengths",
            headers={"Connection": "close"},
        )


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first returns a body that was already read."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return first.pop() if first else await receive()

    return received


async def _refuse_politely(refused: _TooLarge, receive: Receive, send: Send) -> None:
    """Refuse a body, and drain its rest for a while: after a close, a client that is still sending could not read the reason."""
    response, left = error_response(refused), _POLITE_BYTES
    await send({"type": "http.response.start", "status": refused.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    more = refused.more
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_POLITE_SECONDS):
            while more and left > 0:
                message = await receive()
                more = message["type"] == "http.request" and bool(message.get("more_body"))
                left -= len(message.get("body", b""))
    await send({"type": "http.response.body", "body": b"", "more_body": False})
