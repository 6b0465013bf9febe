"""Real sockets and a real process: what no client may do to the server, how it ends, how it begins again."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from helpers.served import DrawnDecoder, events, server_of, start_server

from experiments.chaos.stops import STOP_SECONDS, stop_while_asked
from pangu_sigma.config import ConfigError
from pangu_sigma.serve.served import Limits
from pangu_sigma.serve.server import KEY_VARIABLE, LAST_SECONDS, Address, Server, bind, make_server, read_key, serve

ASKED = {"model": "sigma-en", "prompt": "the cat", "max_tokens": 3}


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    found = socket.create_connection((parts.hostname, parts.port), timeout=60)
    found.settimeout(60)
    return found


def post(body: dict) -> bytes:
    """A request for completions."""
    text = json.dumps(body)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode()


def all_of(sock: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    try:
        while part := sock.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def test_connections_have_a_limit(tiny_data):
    with server_of(DrawnDecoder(tiny_data), connections=8) as url:
        held = [connect(url) for _ in range(8)]
        time.sleep(0.1)
        with connect(url) as beyond:
            beyond.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert all_of(beyond).startswith(b"HTTP/1.1 503"), "uvicorn's own words, in plain text"
        for sock in held:
            sock.close()
        time.sleep(0.1)
        assert httpx2.post(f"{url}/v1/completions", json=ASKED, timeout=60).status_code == 200


class SteppedDecoder(DrawnDecoder):
    """Reads only as often as `permits` were released."""

    def __init__(self, prepared: Path, **options):
        super().__init__(prepared, lanes=1, ends=False, **options)
        self.permits = threading.Semaphore(0)

    def read(self, chunks):
        self.permits.acquire()
        return super().read(chunks)


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def stepped(data: Path, **limits: int) -> Iterator[tuple[SteppedDecoder, str, httpx2.Client]]:
    decoder = SteppedDecoder(data)
    with server_of(decoder, **limits) as url, httpx2.Client(base_url=url, timeout=60) as client:
        try:
            yield decoder, url, client
        finally:
            decoder.permits.release(10_000)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_while_it_waits_is_let_go(tiny_data, stream):
    """Its request has no token yet, and so no status."""
    with stepped(tiny_data) as (decoder, url, client), connect(url) as running, connect(url) as leaving:
        for connection, tokens in ((running, 90), (leaving, 1)):
            connection.sendall(post(ASKED | {"max_tokens": tokens, "stream": stream}))
            wait_for(lambda: "vllm:num_requests_running 1.0" in client.get("/metrics").text)
        wait_for(lambda: "vllm:num_requests_waiting 1.0" in client.get("/metrics").text)
        leaving.close()
        wait_for(lambda: 'finished_reason="abort"' in client.get("/metrics").text)
        decoder.permits.release(1)
        wait_for(lambda: "vllm:num_requests_waiting 0.0" in client.get("/metrics").text)
        assert "vllm:num_requests_running 1.0" in client.get("/metrics").text, "the other one goes on"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_lane_within_a_token(tiny_data, stream):
    with stepped(tiny_data) as (decoder, url, client):
        with connect(url) as leaving:
            leaving.sendall(post(ASKED | {"max_tokens": 90, "stream": stream}))
            decoder.permits.release(3)
            prompt = client.post("/tokenize", json={"model": "sigma-en", "prompt": ASKED["prompt"]}).json()["count"]
            wait_for(lambda: decoder.read_ids == prompt + 2)
        wait_for(lambda: 'finished_reason="abort"' in client.get("/metrics").text)
        decoder.permits.release(100)
        assert client.post("/v1/completions", json=ASKED | {"max_tokens": 1}).status_code == 200, (
            "there is one lane only"
        )
        assert decoder.read_ids <= prompt + 2 + 1 + prompt, "at most the token that was being computed"


def test_too_many_are_told_when_to_come_again(tiny_data):
    with stepped(tiny_data, waiting=2) as (decoder, _, client), ThreadPoolExecutor(1) as waiting:
        assert client.post("/v1/completions", json=ASKED | {"n": 3}).status_code == 400, "more than may wait never fits"
        decoder.permits.release(1)
        with client.stream("POST", "/v1/completions", json=ASKED | {"logprobs": 0, "stream": True}) as running:
            lines = running.iter_lines()
            next(lines)
            waits = waiting.submit(client.post, "/v1/completions", json=ASKED | {"n": 2, "stream": True})
            wait_for(lambda: "vllm:num_requests_waiting 2.0" in client.get("/metrics").text)
            refused = client.post("/v1/completions", json=ASKED)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert 'requests_refused_total{reason="busy"} 1.0' in client.get("/metrics").text
            decoder.permits.release(10_000)
            assert list(lines) and waits.result().text.endswith("data: [DONE]\n\n"), "read to the end"
        assert client.post("/v1/completions", json=ASKED).status_code == 200


DRAWN = "DrawnDecoder(data, seconds=0.03, ends=False)"
NETWORK = "toy_decoder(data, seq_length=16384)"


@pytest.fixture
def start(tiny_data) -> Iterator[Callable[..., tuple[subprocess.Popen, str]]]:
    """Starts server processes, which end with the test."""
    with ExitStack() as ends:

        def start(port: int = 0, stop_seconds: int = 7, decoder: str = DRAWN) -> tuple[subprocess.Popen, str]:
            process, url = start_server(tiny_data, decoder, port, stop_seconds)
            ends.callback(process.kill)
            return process, url

        yield start


def test_sigkill_leaves_nothing_and_sigint_breaks_off_what_does_not_end(start):
    process, url = start()
    port = urlsplit(url).port
    with pytest.raises(ConfigError, match=f"port {port}: Address already in use; .* choose another port"):
        bind(Address(port=port))
    body = ASKED | {"max_tokens": 90, "n": 16, "stream": True}  # longer than a second
    with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
        process.kill()
        process.wait()
    process, url = start(port, stop_seconds=1)
    with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        *_, before, last = [line for line in lines if line]
    assert last == "data: [DONE]"
    assert "broken off" in json.loads(before.removeprefix("data: "))["error"]["message"]
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("tokens", "stop_seconds", "finished"),
    [(100, 7, True), (16000, 1, False), pytest.param(16000, 7, False, marks=pytest.mark.slow)],
)
def test_sigterm_ends_all_streams_of_a_network(start, tokens, stop_seconds, finished):
    """More than there are lanes: they finish, or each of them is told that it does not."""
    process, url = start(stop_seconds=stop_seconds, decoder=NETWORK)
    body = ASKED | {"max_tokens": tokens, "ignore_eos": True, "stream": True}
    with ThreadPoolExecutor(6) as clients:
        answers = [clients.submit(httpx2.post, f"{url}/v1/completions", json=body, timeout=60) for _ in range(6)]
        wait_for(lambda: "vllm:num_requests_waiting 2.0" in httpx2.get(f"{url}/metrics").text)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        found = [answer.result() for answer in answers]
    assert process.wait(60) == 0
    assert time.monotonic() - began < 10
    assert Limits().stop_seconds + LAST_SECONDS < 10, "what does not end by itself is broken off by then"
    assert sorted(answer.status_code for answer in found) == ([200] * 6 if finished else [200] * 4 + [503] * 2)
    for answer in found:
        last = events(answer.text)[-1] if answer.status_code == 200 else answer.json()
        if finished:
            assert last["choices"][0]["finish_reason"] == "length"
        else:
            assert last["error"]["code"] == "server_stopping"


def test_sigterm_from_the_first_millisecond_on_cuts_no_request(start):
    """experiments/chaos/stops.py asks at 50 more moments."""
    process, url = start(stop_seconds=STOP_SECONDS, decoder=NETWORK)
    print(stop_while_asked(process, url, 0.001, 1000))


def test_sigterm_while_a_body_is_being_read_tells_so(start):
    """Whose head was read is told; silence, and a head that is not whole, are just closed."""
    process, url = start(stop_seconds=1)
    whole = post(ASKED)
    with ExitStack() as opened:
        half_body, late_body, half_head, silent = (opened.enter_context(connect(url)) for _ in range(4))
        half_body.sendall(whole[:-5])
        late_body.sendall(whole[:-5])
        half_head.sendall(whole[:50])
        assert httpx2.get(f"{url}/health").status_code == 200  # by now they have been read
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        late_body.sendall(whole[-5:])
        assert all_of(late_body).startswith(b"HTTP/1.1 200")
        assert all_of(half_head) == all_of(silent) == b""
        assert all_of(half_body).startswith(b"HTTP/1.1 500"), "uvicorn's own words"
    _, console = process.communicate(timeout=60)
    assert process.returncode == 0
    (line,) = (line for line in console.splitlines() if not line.startswith("stopping; "))
    assert line.startswith("Cancel 1 running task"), "no traceback"


def test_two_servers_that_start_at_once_do_not_take_one_port(tiny_data):
    """Both are bound before the first listens: the second one says so."""
    with bind(Address(port=0)) as first:
        address = Address(port=first.getsockname()[1])
        with bind(address) as second:
            first.listen()
            with pytest.raises(ConfigError, match=f"port {address.port}: Address already in use"):
                make_server(DrawnDecoder(tiny_data), address, None, Limits()).run([second])


def test_a_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, " abc ")
    assert read_key(None) == "abc"
    file = tmp_path / "key"
    file.write_text("def\n")
    assert read_key(file) == "def"
    for text in ("", "a b", "é", "a\nb"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"api_key_file.*: a key has ASCII letters"):
            read_key(file)
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=message):
            read_key(path)
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        read_key(None)


def test_an_address_that_is_not_here_is_said():
    for host in ("203.0.113.7", "no.such.name.invalid"):
        with pytest.raises(ConfigError, match=rf"cannot listen at {host}, port 8000: .* choose another port"):
            bind(Address(host))


def test_a_name_that_no_request_can_have_is_refused():
    for name in ("http://x.org/", "", "a b", "x.org:8000", "x.org/", "a*", "2001:db8::1"):
        with pytest.raises(ConfigError, match=f"allow_host={re.escape(repr(name))} is not a host name"):
            bind(Address(port=0, others=[name]))


def test_names_that_requests_may_have():
    own = ["localhost", "127.0.0.1", "[::1]"]
    assert Address().names == [*own, "127.0.0.1"]
    assert Address("::1", others=["Proxy.example"]).names == [*own, "[::1]", "Proxy.example"]
    assert Address("0.0.0.0").names == ["*"]
    assert Address("0.0.0.0", others=["*.x.org"]).names == [*own, "0.0.0.0", "*.x.org"]
    bind(Address(port=0, others=["x.org", "*.x.org", "*", "[2001:db8::1]", "box"])).close()


def test_an_open_server_without_a_key_is_warned_of(tiny_data, caplog, monkeypatch):
    monkeypatch.setattr(Server, "run", lambda self, sockets: None)
    for host, key, warned in (
        ("0.0.0.0", None, True),
        ("10.0.0.1", None, True),
        ("0.0.0.0", "k", False),
        ("127.0.0.1", None, False),
        ("LocalHost", None, False),
        ("::1", None, False),
    ):
        caplog.clear()
        serve(DrawnDecoder(tiny_data), None, Address(host), key, Limits())
        assert ("everybody who reaches this machine" in caplog.text) is warned
