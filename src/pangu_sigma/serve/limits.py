"""What a request may ask for at most: each limit has a name and can be changed when the server starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from pangu_sigma.config import MOST, ConfigError


@dataclass(frozen=True)
class Limits:
    """Limits of the server, each a whole number, 1 or more.

    lanes: texts that are computed together; each takes memory for model.seq_length tokens. waiting: texts that may wait for a lane.
    body_kib: KiB of a request's body. prompts: prompts of a request. n: answers to a prompt. stops: stop strings of a request, and
    stop ids. stop_characters: characters of a stop string. logprobs: alternatives to a token. messages: messages of a chat.
    body_seconds: time for a body to come. head_seconds: time for a request line and its headers to come. send_seconds: time for a
    client to take a part of an answer. connections: open connections. stop_seconds: time that running answers have to end when the
    server stops.
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
    body_seconds: int = 30
    head_seconds: int = 10
    send_seconds: int = 60
    connections: int = 512
    stop_seconds: int = 7

    @classmethod
    def changed(cls, changes: Sequence[str]) -> Limits:
        """The limits with `changes`, each NAME=NUMBER. Raises ConfigError for a name that does not exist or another number."""
        limits, names = cls(), [field.name for field in fields(cls)]
        for change in changes:
            name, _, number = change.partition("=")
            if name not in names:
                raise ConfigError(f"--set {change}: there is no limit {name!r}; there are {', '.join(names)}")
            if not (number.isascii() and number.isdigit() and len(number) < 13 and 1 <= int(number) <= MOST):
                raise ConfigError(f"--set {change}: {number!r} is not a whole number from 1 to {MOST}")
            limits = replace(limits, **{name: int(number)})
        return limits
