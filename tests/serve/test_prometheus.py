"""What is counted is what happened."""

from __future__ import annotations

from types import SimpleNamespace

from helpers.served import DrawnDecoder, client_of
from prometheus_client.parser import text_string_to_metric_families

from pangu_sigma.generate.engine import Engine
from pangu_sigma.serve.prometheus import Metrics


def samples(client) -> dict[tuple[str, str], float]:
    """Values by their name and the labels of the model and the reason."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            words = [v for k, v in sorted(sample.labels.items()) if k in ("model_name", "finished_reason", "reason")]
            found[sample.name, " ".join(words)] = sample.value
    return found


def test_tokens_and_ends_are_counted(tiny_data):
    with client_of(DrawnDecoder(tiny_data, ends=False)) as client:
        body = {"model": "sigma-en", "prompt": ["the cat", "a dog"], "n": 2, "max_tokens": 5}
        usage = client.post("/v1/completions", json=body).json()["usage"]
        found = samples(client)
        assert found["vllm:generation_tokens_total", "sigma-en"] == usage["completion_tokens"] == 20
        assert found["vllm:prompt_tokens_total", "sigma-en"] == 2 * usage["prompt_tokens"], (
            "each answer reads its prompt"
        )
        assert found["vllm:request_success_total", "length sigma-en"] == 4
        assert found["vllm:time_to_first_token_seconds_count", "sigma-en"] == 4
        assert found["vllm:e2e_request_latency_seconds_count", "sigma-en"] == 4
        assert found["vllm:num_requests_running", ""] == found["vllm:num_requests_waiting", ""] == 0


def test_the_guess_of_a_wait_is_between_a_second_and_a_minute(decoder):
    metrics = Metrics(Engine(decoder), {})
    assert metrics.wait_seconds() == 1
    metrics._engine = SimpleNamespace(waiting=10_000, running=4, decoder=decoder)
    assert metrics.wait_seconds() == 60
