"""A server that is asked to stop while clients ask it, from the first millisecond on: no request that it has read is cut without a
word. A connection that only the kernel has accepted may be reset."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from experiments.chaos.cases import TRAIN, Case, assert_no_traceback, command, configuration, data, once

CLIENTS = 8
STOP_SECONDS = 1
_CASES_FULL, _CASES_SHORT = 50, 6
_LAST_MOMENT = 2.0
_FIRST_MOMENT = 0.001
_READ_BY = 0.5
"""Seconds after which the server has read every request; it may close connections that it has not read before."""
_REQUEST = {"model": "sigma-en", "prompt": "the cat sees", "ignore_eos": True, "stream": True, "n": 4}


def cases(work: Path, full: bool) -> Sequence[Case]:
    """Moments after the server is ready, in seconds: as many in each power of ten."""
    drawn, count = random.Random(1), _CASES_FULL if full else _CASES_SHORT
    moments = [_FIRST_MOMENT * (_LAST_MOMENT / _FIRST_MOMENT) ** drawn.random() for _ in range(count)]
    run = once(work, "served", partial(_train, work)) / "run"
    return [Case(f"stop_after_{moment * 1000:.1f}_ms", partial(_check, run, moment)) for moment in sorted(moments)]


def _train(work: Path, folder: Path) -> None:
    config = configuration(folder, data(work), model={"seq_length": 256}, train={"steps": 1})
    status, said = command([*TRAIN, str(config), "--output", str(folder / "run")])
    assert status == 0, said


def _check(run: Path, moment: float, folder: Path) -> str:
    options = ["--port", "0", "--set", f"stop_seconds={STOP_SECONDS}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pangu_sigma", "serve", str(run), *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("serving "):
                break
        counts = stop_while_asked(process, line.split(" at ")[1].strip(), moment, 200)
        assert_no_traceback(process.stderr.read())
    finally:
        process.kill()
    return ", ".join(f"{number} {end}" for end, number in sorted(counts.items()))


def stop_while_asked(process: subprocess.Popen, url: str, moment: float, tokens: int) -> Counter[str]:
    """Let clients ask a server for streams of `tokens` tokens, send it SIGTERM after `moment` seconds, and count how requests end.

    AssertionError names what a client saw whose request was cut, and an end of the server that comes late or with a failure.
    """
    ends: list[str] = []
    clients = [
        threading.Thread(target=lambda: ends.append(_end_of_request(url, _REQUEST | {"max_tokens": tokens})))
        for _ in range(CLIENTS)
    ]
    started = time.monotonic()
    for client in clients:
        client.start()
    time.sleep(max(0.0, moment - (time.monotonic() - started)))
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    for client in clients:
        client.join()
    status = process.wait(60)
    seconds = time.monotonic() - asked
    cut = [end for end in ends if end.startswith("CUT")]
    assert not cut, f"{len(cut)} of {CLIENTS} requests: {cut[0]}"
    assert moment < _READ_BY or ends.count("not read") == 0, f"{ends.count('not read')} requests were not told"
    assert status == 0, f"the server ended with {status}"
    assert seconds < STOP_SECONDS + 4, f"the server ended {seconds:.1f} s after SIGTERM"
    return Counter(ends)


def _end_of_request(url: str, body: dict[str, object]) -> str:
    """How a request ended: "finished", "told in the stream", "told by 503", "not accepted", "not read", or "CUT" and what came."""
    text, place, read = json.dumps(body), urlsplit(url), b""
    try:
        connection = socket.create_connection((place.hostname, place.port or 80), timeout=60)
    except ConnectionRefusedError:
        return "not accepted"
    try:
        with connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
            while part := connection.recv(1 << 16):
                read += part
    except OSError as error:
        return f"CUT {error}: {read[-300:]!r}" if read else "not read"
    if not read:
        return "not read"
    if read.startswith(b"HTTP/1.1 503 ") and b'"code":"server_stopping"' in read:
        return "told by 503"
    if read.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        return "told in the stream" if b'"code":"server_stopping"' in read else "finished"
    return f"CUT {read[-300:]!r}"
