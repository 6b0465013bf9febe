"""Served model with the objects that request handlers share, and the code that completions and chats have in common."""

from __future__ import annotations

import asyncio
import difflib
import logging
import secrets
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.generate.chat_template import ChatTemplate
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Answer
from pangu_sigma.generate.request import Request as TextRequest
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.structure import Structure, Structures
from pangu_sigma.serve.answers import Answers
from pangu_sigma.serve.engine_thread import EngineThread
from pangu_sigma.serve.limits import Limits
from pangu_sigma.serve.logprobs import TokenTexts
from pangu_sigma.serve.prometheus import Metrics
from pangu_sigma.serve.prompts import PromptTokenizer
from pangu_sigma.serve.refusals import ApiError
from pangu_sigma.serve.requests import GenerationRequest, WithoutEffect
from pangu_sigma.serve.responses import Usage

logger = logging.getLogger(__name__)

PREFIX = "sigma-"
"""Prefix of model names: `sigma-zh` is the domain zh."""


@dataclass
class Served:
    """Model with its engine, for request handlers. Each domain is a model of OpenAI's interface: `sigma-zh` is the domain zh.

    stopping: True once the server stops; every response then closes its connection. unanswered: a timeout for each request that has
    no response yet. broken_off: True once `break_off` has ended them.
    """

    engine: Engine
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self):
        decoder = self.engine.decoder
        self.config, self.tokenizer = decoder.config, decoder.tokenizer
        self.length = self.config.model.seq_length
        self.domains: dict[str, Domain] = {PREFIX + domain.name: domain for domain in domains_of(self.config)}
        self.thread = EngineThread(self.engine)
        self.metrics = Metrics(self.engine, {domain.name: name for name, domain in self.domains.items()})
        self.prompts = PromptTokenizer(self.tokenizer, self.config)
        self.structures = Structures(self.tokenizer)
        self.texts = TokenTexts(self.tokenizer.vocabulary)
        self.started = int(time.time())
        self.stopping = self.broken_off = False
        self.unanswered: set[asyncio.Timeout] = set()
        self._logged: set[str] = set()
        self.fingerprint = f"{self.config.name}-{self.tokenizer.hash[:12]}"
        """System fingerprint: configuration and tokenizer. Answers with the same seed are equal if it is."""

    def warm_up(self) -> None:
        """Let every domain answer with a token, so that no request waits for dictionaries, tokenizer models or kernels to load."""
        for domain in self.domains.values():
            self.tokenizer.encode("a 中", domain)
        self.engine.complete([TextRequest(domain, (self.tokenizer.eot,), 1) for domain in self.domains.values()])

    def break_off(self) -> None:
        """End all unfinished requests: `Guard` refuses those without a response yet, and streams end with an error event."""
        self.broken_off = True
        for waiting in self.unanswered:
            waiting.reschedule(0)
        self.thread.cancel_all()

    def domain(self, name: str | None, of_path: str | None = None) -> Domain:
        """Return the domain that answers a request. name, of_path: model name in the request's body and in its path; None: missing.

        Raises ApiError for an unknown name, for two different names, and without a name if there are several domains.
        """
        if name is not None and of_path is not None and name != of_path:
            raise ApiError(
                400, f"model: the body says {name[:100]!r}, the path {of_path!r}; say one", "model", "invalid_value"
            )
        name = of_path if name is None else name
        if name is None and len(self.domains) == 1:
            return next(iter(self.domains.values()))
        if name is None:
            raise ApiError(
                400,
                f"model: each domain reads text in its own way, so name one of {', '.join(self.domains)}, here or in front of the "
                f"path: /{next(iter(self.domains))}/…",
                "model",
                "missing_required_parameter",
            )
        if name not in self.domains:
            (near,) = difflib.get_close_matches(name[:100], self.domains, n=1, cutoff=0.0)
            raise ApiError(
                404,
                f"model: there is no {name[:100]!r} here; the nearest is {near}, and /v1/models lists all",
                "model",
                "model_not_found",
            )
        return self.domains[name]

    def head(self, prefix: str, domain: Domain) -> dict[str, Any]:
        """Return the fields that every response begins with. prefix: beginning of the id. domain: the one that answers."""
        model = PREFIX + domain.name
        fields = {"created": int(time.time()), "model": model, "system_fingerprint": self.fingerprint}
        return {"id": f"{prefix}-{uuid.uuid4().hex}", **fields}

    def template(self, domain: Domain) -> ChatTemplate:
        """Return the chat template of a domain."""
        return ChatTemplate.of(domain, self.config.chat)

    def room(self, prompts: Sequence[list[int]], wanted: int | None, usual: int) -> list[int]:
        """Return how many new tokens each prompt may get. wanted: the client's max_tokens; usual: the default without it.

        Raises ApiError if a prompt, or prompt and new tokens together, exceed model.seq_length.
        """
        new = []
        for ids in prompts:
            room = self.length - len(ids)
            if room < (wanted or 0) or room < 0:
                raise ApiError(
                    400,
                    f"the prompt has {len(ids)} tokens{f' and max_tokens is {wanted}' if wanted else ''}; together they may be "
                    f"{self.length}; shorten the prompt{' or lower max_tokens' if wanted else ''}",
                    "prompt" if room < 1 else "max_tokens",
                    "context_length_exceeded",
                )
            new.append(min(usual, room) if wanted is None else wanted)
        return new

    async def structure(self, body: GenerationRequest, domain: Domain) -> Structure | None:
        """Return the structure that a request wants of its answers. Raises ApiError for one that cannot be followed."""
        if body.structure is None:
            return None
        parameter, kind, what = body.structure
        try:
            return await self.prompts.in_thread(self.structures.compile, kind, what, domain)
        except ConfigError as error:
            raise ApiError(400, f"{parameter}: {error}", parameter, "invalid_value") from error

    def requests(
        self,
        body: GenerationRequest,
        domain: Domain,
        prompts: Sequence[list[int]],
        new: Sequence[int],
        extra: dict[str, Any],
    ) -> list[TextRequest]:
        """Make the engine's requests, body.n for each prompt. new: maximum number of new tokens of each prompt. extra: values of
        `stop`, `logprobs`, `prompt_logprobs` and `structure` of `TextRequest`, if the body sets them in its own way."""
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        self.check("n", body.n or 1, "n")
        self.check("stop", len(stop), "stops")
        self.check("stop", max(map(len, stop), default=0), "stop_characters")
        self.check("stop_token_ids", len(body.stop_token_ids or ()), "stops")
        self._check_ids("stop_token_ids", body.stop_token_ids or (), domain)
        self._check_ids("logit_bias", list(map(int, body.logit_bias or ())), domain)
        sampling, first = _sampling(body), secrets.randbits(53) if body.seed is None else body.seed
        seeds: defaultdict[tuple[int, ...], count[int]] = defaultdict(lambda: count(first))  # of each prompt
        bias = tuple((int(token), float(value)) for token, value in (body.logit_bias or {}).items())
        return [
            TextRequest(
                domain,
                tuple(ids),
                most,
                sampling,
                next(seeds[tuple(ids)]),
                stop + extra.get("stop", ()),
                tuple(body.stop_token_ids or ()),
                logprobs=extra.get("logprobs"),
                prompt_logprobs=extra.get("prompt_logprobs"),
                ignore_eot=bool(body.ignore_eos),
                logit_bias=bias,
                structure=extra.get("structure"),
            )
            for ids, most in zip(prompts, new, strict=True)
            for _ in range(body.n or 1)
        ]

    def ask(self, requests: list[TextRequest]) -> Answers:
        """Submit requests to the engine. Raises ApiError if the queue has no room for them, or if a request does not fit."""
        if len(requests) > self.limits.waiting:
            raise ApiError(
                400,
                f"prompt, n: {len(requests)} answers are more than may wait ({self.limits.waiting}); ask for fewer at once, or "
                "start the server with --set waiting=N",
                "n",
                "invalid_value",
            )
        return Answers(self.thread, self.metrics, requests)

    def without_effect(self, body: GenerationRequest) -> list[str]:
        """Return a list of one warning that names the request's parameters without effect; else []. New names are logged."""
        names = [name for name in WithoutEffect.model_fields if getattr(body, name) is not None]
        if new := [name for name in names if name not in self._logged]:
            self._logged.update(new)
            logger.info("a client sends %s, which is taken and has no effect", ", ".join(new))
        return [f"{', '.join(names)}: without effect on this server"] if names else []

    def _check_ids(self, parameter: str, ids: Sequence[int], domain: Domain) -> None:
        try:
            self.tokenizer.rows(ids, domain)
        except ConfigError as error:
            raise ApiError(400, f"{parameter}: {error}", parameter, "invalid_value") from error

    def usage(self, answers: Sequence[Answer], n: int) -> Usage:
        """Count the tokens of a request. answers: all its answers, n to each prompt, prompt by prompt."""
        prompt, new = sum(len(a.request.ids) for a in answers[::n]), sum(len(a.tokens) for a in answers)
        return Usage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)

    def check(self, parameter: str, number: int, limit: str) -> None:
        """Raise ApiError if the number that a parameter of a request asks for is above a limit. limit: a field of `Limits`."""
        if number > (most := getattr(self.limits, limit)):
            raise ApiError(
                400,
                f"{parameter}: {number} is more than {most}, the limit {limit} of this server; lower it, or start the server with "
                f"--set {limit}=N",
                parameter,
                "invalid_value",
            )


def _sampling(body: GenerationRequest) -> Sampling:
    """Return the sampling options, with OpenAI's defaults for those that the client does not give."""
    options = {
        name: getattr(body, name)
        for name in ("top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        if getattr(body, name) is not None
    }
    return Sampling(1.0 if body.temperature is None else body.temperature, max(body.top_k or 0, 0), **options)
