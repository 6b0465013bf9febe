"""Limits of the server on requests; each has a name and can be changed at the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import argument
from pangu_sigma.sections import MOST


@dataclass(frozen=True)
class Limits:
    """Limits of the HTTP server, each a whole number of at least 1.

    lanes: texts in one batch; each takes memory for model.seq_length tokens. waiting: requests in the queue. body_kib: KiB of a
    request's body. prompts: prompts of a request. n: answers to a prompt. stops: stop strings of a request, and stop ids.
    stop_characters: characters of a stop string. logprobs: alternatives to a token. messages: messages of a chat. connections:
    open ones. keep_alive_seconds: for the next request of a connection. stop_seconds: for running answers when the server stops.
    """

    lanes: int = 8
    waiting: int = 256
    body_kib: int = 2048
    prompts: int = 128
    n: int = 16
    stops: int = 16
    stop_characters: int = 100
    logprobs: int = 20
    messages: int = 256
    connections: int = 512
    keep_alive_seconds: int = 10
    stop_seconds: int = 7

    @classmethod
    def changed(cls, changes: Sequence[str]) -> Limits:
        """Return the default limits with changes, texts NAME=NUMBER. Raises ConfigError for unknown names and unfit numbers."""
        limits, names, named = cls(), [field.name for field in fields(cls)], argument("--set", "limits")
        for change in changes:
            name, _, number = change.partition("=")
            if name not in names:
                raise ConfigError(f"{named} {change}: there is no limit {name!r}; there are {', '.join(names)}")
            if not (number.isascii() and number.isdigit() and len(number) < 14 and 1 <= int(number) <= MOST):
                raise ConfigError(f"{named} {change}: {number!r} is not a whole number from 1 to {MOST}")
            limits = replace(limits, **{name: int(number)})
        return limits
