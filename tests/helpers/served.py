"""A server in this process: a decoder, mostly one without a network, behind the real application, and a client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import numpy as np
from fastapi.testclient import TestClient
from helpers.toy_weights import ToyWeights

from experiments.tiny import tiny_config
from pangu_sigma.config import Config
from pangu_sigma.data.prepared import PreparedData, drawn_tables
from pangu_sigma.domains import Domain
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.weights import Weights
from pangu_sigma.serve.app import make_app
from pangu_sigma.serve.served import Limits, Served
from pangu_sigma.serve.server import Address, bind, make_server
from pangu_sigma.text.tokenizer import Tokenizer

LENGTH = 96
EOT_EVERY = 37
"""<eot> is the most likely token where the hash of a text is divisible by this, so that answers end."""


@cache
def tokenizer_in(prepared: Path) -> Tokenizer:
    """The tokenizer of prepared data, loaded once."""
    return PreparedData(prepared).tokenizer()


class DrawnDecoder:
    """A `Decoder` with a real tokenizer, whose logits are drawn by a hash of the text so far.

    seconds: time that a reading takes. read_ids: number of tokens that were read.
    """

    def __init__(self, prepared: Path, lanes: int = 4, seconds: float = 0.0, ends: bool = True, **chat: Any):
        self.config = tiny_config(prepared, model={"seq_length": LENGTH}, chat=chat)
        self.tokenizer = tokenizer_in(prepared)
        self.lanes, self.seconds, self.ends = lanes, seconds, ends
        self.texts: dict[int, tuple[Domain, list[int]]] = {}
        self.read_ids = 0

    def begin(self, lane: int, domain: Domain) -> None:
        self.texts[lane] = domain, []

    def copy(self, source: int, target: int) -> None:
        domain, ids = self.texts[source]
        self.texts[target] = domain, list(ids)

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        time.sleep(self.seconds)
        return [self._read(chunk) for chunk in chunks]

    def _read(self, chunk: Chunk) -> np.ndarray:
        domain, ids = self.texts[chunk.lane]
        ids += chunk.ids
        self.read_ids += len(chunk.ids)
        assert len(ids) <= LENGTH
        return np.array([self.logits(domain, ids[:end]) for end in range(len(ids) - chunk.wanted + 1, len(ids) + 1)])

    def logits(self, domain: Domain, ids: list[int]) -> np.ndarray:
        """Logits of the successor of a text, [R]."""
        seed = int.from_bytes(hashlib.blake2b(f"{domain.index} {ids}".encode(), digest_size=8).digest(), "little")
        used_R = self.tokenizer.slot_rows[domain.slot] >= 0
        drawn_R = (4 * np.random.default_rng(seed).standard_normal(len(used_R))).astype(np.float32)
        drawn_R[self.tokenizer.row_of[domain.slot, self.tokenizer.eot]] = (
            30 if self.ends and seed % EOT_EVERY == 0 else -30
        )
        return np.where(used_R, drawn_R, np.float32(-np.inf))

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        return domain.first_expert + np.array([np.array(ids) % 2, np.array(ids) // 2 % 2])


def toy_decoder(
    prepared: Path, lanes: int = 4, seq_length: int = LENGTH, weights: Callable[[Config], Weights] = ToyWeights
) -> Decoder:
    """The decoder that serves on a CPU, of a small network with drawn weights."""
    config, tokenizer = tiny_config(prepared, model={"seq_length": seq_length}), tokenizer_in(prepared)
    return Decoder(config, tokenizer, drawn_tables(config, tokenizer), weights(config), lanes)


def served_app(decoder: Any, key: str | None = None, **limits: int):
    """The application of a decoder. Its limits by name."""
    chosen = Limits(**{"lanes": decoder.lanes} | limits)
    served = Served(Engine(decoder, waiting=chosen.waiting), chosen)
    return make_app(served, ["127.0.0.1", "testserver"], key)


@contextmanager
def client_of(decoder: Any, key: str | None = None, **limits: int) -> Iterator[TestClient]:
    """A client of a server that is gone afterwards."""
    with TestClient(served_app(decoder, key, **limits), raise_server_exceptions=False) as client:
        yield client


@contextmanager
def server_of(decoder: Any, key: str | None = None, **limits: int) -> Iterator[str]:
    """The address of a real server, in a thread of this process, such as http://127.0.0.1:40123."""
    address = Address(port=0)
    with bind(address) as listening:
        server = make_server(decoder, address, key, Limits(**{"lanes": decoder.lanes} | limits))
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield "http://{}:{}".format(*listening.getsockname()[:2])
        finally:
            server.stop()
            thread.join()


PROGRAM = """
import logging, sys
from pathlib import Path
from helpers.served import DrawnDecoder, toy_decoder
from pangu_sigma.errors import exit_status
from pangu_sigma.serve.served import Limits
from pangu_sigma.serve.server import Address, bind, serve
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
def run():
    address = Address(port=int(sys.argv[2]))
    with bind(address) as listening:
        decoder = eval(sys.argv[4], globals(), {"data": Path(sys.argv[1])})
        return serve(decoder, listening, address, None, Limits(stop_seconds=int(sys.argv[3])))
sys.exit(exit_status(run))
"""


def start_server(data: Path, decoder: str, port: int = 0, stop_seconds: int = 7) -> tuple[subprocess.Popen, str]:
    """A server in a process of its own, and its address. decoder: an expression that makes it of `data`."""
    root = Path(__file__).parents[2]
    # with a user's allocator: the suite's own (run_scripts/test.sh) keeps what threads have freed
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (root / "src", root, root / "tests")))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(data), str(port), str(stop_seconds), decoder],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("serving "):
            url = line.split(" at ")[1].strip()
            for _ in range(500):
                try:
                    if httpx2.get(f"{url}/health").status_code == 200:
                        break
                except httpx2.TransportError:
                    time.sleep(0.02)
            return process, url
    raise AssertionError(f"ended with {process.wait()}")


def events(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end as one does."""
    *lines, last = [line for line in text.split("\n\n") if line]
    assert last == "data: [DONE]", last
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]
