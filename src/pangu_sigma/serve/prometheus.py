"""Metrics of the server for Prometheus. Metrics that vLLM has too have its names, so that its dashboards work."""

from __future__ import annotations

import math
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_LABEL = ["model_name"]


class Metrics:
    """Prometheus metrics of the HTTP server."""

    def __init__(self, engine: Engine, names: dict[str, str]):
        """names: names of the served models by domain name."""
        self._names, self._lanes = names, engine.decoder.lanes
        self._engine = engine
        self._registry = registry = CollectorRegistry()
        running = Gauge("vllm:num_requests_running", "Texts that are computed", registry=registry)
        running.set_function(lambda: engine.running)
        waiting = Gauge("vllm:num_requests_waiting", "Texts that wait for a lane", registry=registry)
        waiting.set_function(lambda: engine.waiting)
        self._prompt = Counter("vllm:prompt_tokens", "Tokens of prompts", _LABEL, registry=registry)
        self._new = Counter("vllm:generation_tokens", "Tokens of answers", _LABEL, registry=registry)
        self._ended = Counter(
            "vllm:request_success", "Answers that ended, and why", [*_LABEL, "finished_reason"], registry=registry
        )
        self._first, self._next, self._whole = (
            Histogram(name, help, _LABEL, registry=registry, buckets=_SECONDS)
            for name, help in (
                ("vllm:time_to_first_token_seconds", "From the request to the first token"),
                ("vllm:inter_token_latency_seconds", "From a token to the next"),
                ("vllm:e2e_request_latency_seconds", "From the request to the end of the answer"),
            )
        )
        self._refused = Counter(
            "pangu_sigma:requests_refused", "Requests that were refused", ["reason"], registry=registry
        )
        self._mean_seconds = 1.0

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def refused(self, reason: str) -> None:
        """Count a refused request. reason: label of the metric, a word such as "busy"."""
        self._refused.labels(reason).inc()

    def watch(self, request: Request) -> AnswerWatch:
        """Start the measurement of the answer to a request."""
        return AnswerWatch(self, self._names[request.domain.name], len(request.ids))

    def wait_seconds(self) -> int:
        """Estimate the seconds until the requests in the queue are answered, 1 to 60, for the header Retry-After."""
        rounds = (self._engine.waiting + self._engine.running) / max(self._lanes, 1)
        return min(max(math.ceil(rounds * self._mean_seconds), 1), 60)

    def _count(self, watch: AnswerWatch, why: str) -> None:
        seconds = time.monotonic() - watch.started
        self._whole.labels(watch.name).observe(seconds)
        self._ended.labels(watch.name, why).inc()
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)


class AnswerWatch:
    """Latency measurement of one answer of the HTTP server, for the Prometheus histograms."""

    def __init__(self, metrics: Metrics, name: str, prompt: int):
        self.name, self.started = name, time.monotonic()
        self._metrics, self._prompt = metrics, prompt
        self._last: float | None = None
        self._open = True

    def record(self, tokens: int) -> None:
        """Record that `tokens` new tokens are sent to the client together, now."""
        if not tokens:
            return
        now = time.monotonic()
        if self._last is None:
            self._metrics._first.labels(self.name).observe(now - self.started)
            self._metrics._prompt.labels(self.name).inc(self._prompt)
        else:
            self._metrics._next.labels(self.name).observe((now - self._last) / tokens)
        self._last = now
        self._metrics._new.labels(self.name).inc(tokens)

    def ended(self, why: str) -> None:
        """Record the end of the answer with its reason; later calls are ignored."""
        if self._open:
            self._open = False
            self._metrics._count(self, why)
