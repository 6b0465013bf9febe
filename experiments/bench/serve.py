"""Bench of serving: clients that stream at once, from a server that computes their texts together and from one that has one lane.

The peer is the same server with one lane, so that requests wait for each other, as they do where each is answered by itself. Both
are processes of their own with the same drawn weights, and take turns; all requests of a round come at the same moment.
"""

from __future__ import annotations

import http.client
import json
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from experiments.bench.decode import FORM, SIZES, DrawnWeights
from experiments.bench.harness import Row, compare, figure, take_turns
from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.prepared import drawn_tables
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.serve.served import Limits
from pangu_sigma.serve.server import Address, bind, serve
from pangu_sigma.text.sentencepieces import alpha_model, train_english
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import special_ids

_CLIENTS, _READ, _TOKENS = 16, 32, 32
"""Clients at once, tokens of a prompt, and tokens of an answer."""
_ROUNDS = 5
_OURS, _ONE_BY_ONE = "ours", "one by one"


@dataclass
class Times:
    """Seconds that clients waited for a first token, and from a token to the next, over all rounds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: has no effect, because the peer is this project's own server."""
    return compare_servers("small", _CLIENTS, _TOKENS, _ROUNDS)


def compare_servers(size: str, clients: int, tokens: int, rounds: int) -> list[Row]:
    """Rows of a model of one of `decode.SIZES`: tokens a second, time to the first token and between tokens."""
    config = drawn_config(size)
    times = {_OURS: Times(), _ONE_BY_ONE: Times()}
    with ExitStack() as stack, ThreadPoolExecutor(clients) as threads:
        urls = {name: stack.enter_context(_server(size, lanes)) for name, lanes in ((_OURS, clients), (_ONE_BY_ONE, 1))}
        prompts = np.random.default_rng(0).integers(100, config.model.slot_rows // 2, (rounds + 1, clients, _READ))
        asked = {name: iter(prompts.tolist()) for name in urls}

        def round_of(name: str) -> None:
            def ask(ids: list[int]) -> None:
                _stream(urls[name], ids, tokens, times[name])

            list(threads.map(ask, next(asked[name])))

        seconds = take_turns({name: lambda name=name: round_of(name) for name in urls}, rounds)  # type: ignore[misc]
    case = f"{size}, {clients} clients at once, {_READ} + {tokens} tokens each"
    rows = compare("serve", case, seconds, work=clients * tokens, unit="tokens/s")
    for what in ("first", "between"):
        mine, theirs = (np.array(getattr(times[name], what)) * 1e3 for name in (_OURS, _ONE_BY_ONE))
        label = "first token" if what == "first" else "between tokens"
        for share in (50, 95):
            ours, other = (float(np.percentile(values, share)) for values in (mine, theirs))
            rows.append(figure("serve", case, f"{_ONE_BY_ONE}, {label} p{share}", ours, other, "ms", lower=True))
    return rows


def drawn_config(size: str, language: str = "en") -> Config:
    """A configuration of one of `decode.SIZES` in the form of `sigma_tiny`, with four domains of a language."""
    domains = [{"name": f"d{i}", "language": language} for i in range(4)]
    return parse_config({"name": size, "model": SIZES[size] | FORM, "domains": domains})


def real_tokenizer(config: Config) -> Tokenizer:
    """The real tokenizer, with a slot of the first ids and those that every slot has."""
    alpha, english = alpha_model(), train_english([], 0)
    special = special_ids(list(domains_of(config)))
    rest = [i for i in range(config.model.slot_rows) if i not in special]
    rows = np.sort(np.array([*special, *rest][: config.model.slot_rows], np.int32))
    return Tokenizer(alpha, english, rows[None])


@contextmanager
def _server(size: str, lanes: int) -> Iterator[str]:
    """The address of a server in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, lanes, Path(folder) / "weights.safetensors", there)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        there.close()
        try:
            yield _warm(here.recv())
        finally:
            process.terminate()
            process.join()


def _warm(url: str) -> str:
    """The address, once the server accepts connections: it does so when every domain has answered."""
    while True:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        try:
            connection.request("GET", "/health")
            return url
        except ConnectionRefusedError:
            time.sleep(0.02)
        finally:
            connection.close()


def _serve(size: str, lanes: int, file: Path, told: Connection) -> None:
    """Serve drawn weights until SIGTERM."""
    logging.disable(logging.INFO)
    config, address = drawn_config(size), Address(port=0)
    tokenizer = real_tokenizer(config)
    decoder = Decoder(config, tokenizer, drawn_tables(config, tokenizer), DrawnWeights(config, file), lanes)
    with bind(address) as listening:
        host, port = listening.getsockname()[:2]
        told.send(f"http://{host}:{port}")
        serve(decoder, listening, address, None, Limits(lanes=lanes))


def _stream(url: str, ids: list[int], tokens: int, times: Times) -> None:
    """Ask for an answer of exactly so many tokens, and note when they come."""
    parts = urlsplit(url)
    body = {
        "model": "sigma-d0",
        "prompt": ids,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "logprobs": 0,  # tells how many tokens an event has
    }
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)
    last = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    with connection.getresponse() as answer:
        come = 0
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            now, new = time.perf_counter(), len(json.loads(line[6:])["choices"][0]["logprobs"]["tokens"])
            if come:
                times.between += [(now - last) / new] * new
            else:
                times.first.append(now - last)
            come, last = come + new, now
    if come != tokens:
        raise RuntimeError(f"an answer with status {answer.status} has {come} tokens instead of {tokens}")
