"""Many clients at once: no error, each gets its own answer, and memory stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from helpers.served import DrawnDecoder, events, server_of, start_server, toy_decoder

from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.sampling import Sampling

CLIENTS = 16
PROMPTS = ["the cat", "今天 天气", "a red house and a tree", "x", "return total"]


def alone(decoder: Decoder) -> dict[tuple[str, str, int], str]:
    """The answer to each prompt in each domain with each seed, computed by itself."""
    found = {}
    for domain in domains_of(decoder.config):
        for prompt in PROMPTS:
            for seed in range(3):
                ids = tuple(decoder.tokenizer.prompt(prompt, domain))
                request = Request(domain, ids, 24, Sampling(temperature=1.0), seed)
                found[domain.name, prompt, seed] = Engine(decoder).complete([request])[0].text
    return found


def resident_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def stream_all(url: str, expected: dict[tuple[str, str, int], str], go_on: Callable[[int], bool]) -> int:
    """Stream by all clients while `go_on(number of rounds)`, some of them leaving early; returns the number of whole answers."""
    wrong: list[str] = []
    counts = [0] * CLIENTS

    def work(number: int) -> None:
        cases, rounds = list(expected.items()), 0
        with httpx2.Client(base_url=url, timeout=60) as client:
            while go_on(rounds):
                (domain, prompt, seed), text = cases[(number * 7 + rounds) % len(cases)]
                rounds += 1
                body = {"model": f"sigma-{domain}", "prompt": prompt, "seed": seed, "max_tokens": 24, "stream": True}
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    if rounds % 5 == 4:  # leaves after the first event
                        next(answer.iter_lines())
                        continue
                    chunks = events(answer.read().decode())
                found = "".join(chunk["choices"][0]["text"] for chunk in chunks)
                if answer.status_code != 200 or found != text:
                    wrong.append(f"{domain} {prompt} {seed}: {found!r} for {text!r}")
                counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    return sum(counts)


def test_many_clients_get_their_own_answers(tiny_data):
    expected = alone(DrawnDecoder(tiny_data))
    with server_of(DrawnDecoder(tiny_data, lanes=6)) as url:
        assert stream_all(url, expected, lambda rounds: rounds < 5) == CLIENTS * 4
        assert "vllm:num_requests_running 0.0" in httpx2.get(f"{url}/metrics").text


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [DrawnDecoder, toy_decoder])
def test_two_minutes_of_load_take_no_memory(tiny_data, decoder):
    """The server is a process of its own, so that what its clients keep does not count."""
    expected = alone(decoder(tiny_data))
    process, url = start_server(tiny_data, f"{decoder.__name__}(data, lanes=6)")
    try:
        stream_all(url, expected, _for(60))  # until what is kept for threads, connections and beginnings is there
        before = resident_mib(process.pid)
        answered = stream_all(url, expected, _for(120))
        after = resident_mib(process.pid)
    finally:
        process.kill()
        process.wait()
    print(f"{answered} answers; the server has {before:.1f} MiB, then {after:.1f}")
    assert answered > 100
    assert after < before * 1.02, f"{before:.1f} MiB, then {after:.1f}"


def _for(seconds: float) -> Callable[[int], bool]:
    until = time.monotonic() + seconds
    return lambda rounds: time.monotonic() < until
