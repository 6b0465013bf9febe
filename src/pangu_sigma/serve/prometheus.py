"""Metrics of the server for Prometheus. Metrics that vLLM has too have its names, so that its dashboards work."""

from __future__ import annotations

import math
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Prometheus metrics of the HTTP server. mean_seconds: moving average of the seconds of an answer."""

    def __init__(self, engine: Engine, names: dict[str, str]):
        """Register the metrics. names: names of the served models by domain name, with which metrics of answers are labelled."""
        self._engine, self.names, self.registry = engine, names, CollectorRegistry()
        base, label = dict[str, Any](registry=self.registry), ["model_name"]
        Gauge("vllm:num_requests_running", "Texts that are computed", **base).set_function(lambda: engine.running)
        Gauge("vllm:num_requests_waiting", "Texts that wait for a lane", **base).set_function(lambda: engine.waiting)
        self.prompt = Counter("vllm:prompt_tokens", "Tokens of prompts", label, **base)
        self.new = Counter("vllm:generation_tokens", "Tokens of answers", label, **base)
        self.ended = Counter("vllm:request_success", "Answers that ended, and why", [*label, "finished_reason"], **base)
        self.first_token, self.next_token, self.answer = (
            Histogram(name, help, label, buckets=_SECONDS, **base)
            for name, help in (
                ("vllm:time_to_first_token_seconds", "From the request to the first token"),
                ("vllm:inter_token_latency_seconds", "From a token to the next"),
                ("vllm:e2e_request_latency_seconds", "From the request to the end of the answer"),
            )
        )
        self.refused = Counter("pangu_sigma:requests_refused", "Requests that were refused", ["reason"], **base)
        self.mean_seconds = 1.0

    def wait_seconds(self) -> int:
        """Estimate the seconds until the requests in the queue are answered, 1 to 60, for the header Retry-After."""
        answers_per_lane = (self._engine.waiting + self._engine.running) / max(self._engine.decoder.lanes, 1)
        return min(max(math.ceil(answers_per_lane * self.mean_seconds), 1), 60)


class AnswerWatch:
    """Measurement of the answer to a request, which begins now."""

    def __init__(self, metrics: Metrics, request: Request):
        self._metrics, self._name, self._prompt = metrics, metrics.names[request.domain.name], len(request.ids)
        self._start_time, self._last_time, self._is_open = time.monotonic(), 0.0, True

    def record(self, tokens: int) -> None:
        """Record that `tokens` new tokens are sent to the client together, now."""
        if not tokens:
            return
        now, metrics = time.monotonic(), self._metrics
        if self._last_time:
            metrics.next_token.labels(self._name).observe((now - self._last_time) / tokens)  # their mean
        else:
            metrics.first_token.labels(self._name).observe(now - self._start_time)
            metrics.prompt.labels(self._name).inc(self._prompt)
        self._last_time = now
        metrics.new.labels(self._name).inc(tokens)

    def ended(self, reason: str) -> None:
        """Record the end of the answer with its reason; later calls are ignored."""
        if self._is_open:
            self._is_open, seconds = False, time.monotonic() - self._start_time
            self._metrics.answer.labels(self._name).observe(seconds)
            self._metrics.ended.labels(self._name, reason).inc()
            self._metrics.mean_seconds += 0.1 * (seconds - self._metrics.mean_seconds)
