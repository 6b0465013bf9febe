"""Served model and the limits of its server: what all request handlers share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.errors import argument
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.structure import Structures
from pangu_sigma.sections import MOST
from pangu_sigma.serve.engine_thread import EngineThread
from pangu_sigma.serve.logprobs import TokenTexts
from pangu_sigma.serve.prometheus import Metrics
from pangu_sigma.serve.prompts import PromptTokenizer


@dataclass(frozen=True)
class Limits:
    """Limits of the HTTP server, each a whole number of at least 1. Limits of one request are in its schema.

    lanes: texts in one batch; each takes memory for model.seq_length tokens. waiting: texts in the queue. body_kib: KiB of a
    request's body. connections: open ones. keep_alive_seconds: for the next request of a connection. stop_seconds: for running
    answers when the server stops.
    """

    lanes: int = 8
    waiting: int = 256
    body_kib: int = 2048
    connections: int = 512
    keep_alive_seconds: int = 10
    stop_seconds: int = 7

    @classmethod
    def changed(cls, changes: Sequence[str]) -> Limits:
        """Return the default limits with changes, texts NAME=NUMBER. Raises ConfigError for unknown names and unfit numbers."""
        limits, names, option = cls(), [field.name for field in fields(cls)], argument("--set", "limits")
        for change in changes:
            name, _, number = change.partition("=")
            if name not in names:
                raise ConfigError(f"{option} {change}: there is no limit {name!r}; there are {', '.join(names)}")
            if not (number.isascii() and number.isdigit() and len(number) < 14 and 1 <= int(number) <= MOST):
                raise ConfigError(f"{option} {change}: {number!r} is not a whole number from 1 to {MOST}")
            limits = replace(limits, **{name: int(number)})
        return limits


PREFIX = "sigma-"  # of model names: `sigma-zh` is the domain zh


class Served:
    """Model with its engine, for request handlers.

    domains: each domain by its name as a model of OpenAI's interface. started: time of the start. fingerprint: configuration and
    tokenizer; answers with the same seed are equal if the fingerprint is.
    """

    def __init__(self, engine: Engine, limits: Limits | None = None):
        self.limits = limits or Limits()
        self.config, self.tokenizer = engine.decoder.config, engine.decoder.tokenizer
        self.length = self.config.model.seq_length
        self.domains: dict[str, Domain] = {PREFIX + domain.name: domain for domain in domains_of(self.config)}
        self.metrics = Metrics(engine, {domain.name: name for name, domain in self.domains.items()})
        self.thread = EngineThread(engine, self.metrics)
        self.prompts = PromptTokenizer(self.tokenizer, self.config)
        self.structures = Structures(self.tokenizer)
        self.texts = TokenTexts(self.tokenizer.vocabulary)
        self.started = int(time.time())
        self.fingerprint = f"{self.config.name}-{self.tokenizer.hash[:12]}"

    def warm_up(self) -> None:
        """Let every domain answer with a token, so that no request waits for dictionaries, tokenizer models or kernels to load."""
        for domain in self.domains.values():
            self.tokenizer.encode("a 中", domain)
        self.thread.engine.complete([Request(domain, (self.tokenizer.eot,), 1) for domain in self.domains.values()])
