"""Served model: what all request handlers share."""

from __future__ import annotations

import time

from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.structure import Structures
from pangu_sigma.serve.engine_thread import EngineThread
from pangu_sigma.serve.limits import Limits
from pangu_sigma.serve.logprobs import TokenTexts
from pangu_sigma.serve.prometheus import Metrics
from pangu_sigma.serve.prompts import PromptTokenizer

PREFIX = "sigma-"
"""Prefix of model names: `sigma-zh` is the domain zh."""


class Served:
    """Model with its engine, for request handlers.

    domains: each domain by its name as a model of OpenAI's interface. started: time of the start. fingerprint: configuration and
    tokenizer; answers with the same seed are equal if the fingerprint is. without_effect: parameters that the log has named.
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
        self.without_effect: set[str] = set()

    def warm_up(self) -> None:
        """Let every domain answer with a token, so that no request waits for dictionaries, tokenizer models or kernels to load."""
        for domain in self.domains.values():
            self.tokenizer.encode("a 中", domain)
        self.thread.engine.complete([Request(domain, (self.tokenizer.eot,), 1) for domain in self.domains.values()])
