"""The reader at the size of the mission: 300 billion tokens of 40 domains in 320 shards, sparse files whose chunks are verified."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from helpers.manifests import manifest

from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.data.token_files import CHUNK_BYTES

DOMAINS, SHARDS = 40, 8
SHARD_TOKENS = 300_000_000_000 // (DOMAINS * SHARDS) + 777
"""Tokens of a shard, no multiple of a sample's or of a chunk's."""
MARKED = 4
"""Shard of domain d0 that ends, and whose successor begins, with other ids than 0."""


def _shard(prefix: Path, tokens: int, first: list[int], last: list[int]) -> bytes:
    """Write a shard of zeros, but for its first and last ids, and an empty index; return the hashes of its chunks."""
    size = 4 * tokens
    prefix.with_name(f"{prefix.name}.idx").touch()
    with prefix.with_name(f"{prefix.name}.bin").open("wb") as file:
        file.truncate(size)
        file.write(np.array(first, "<i4").tobytes())
        file.seek(size - 4 * len(last))
        file.write(np.array(last, "<i4").tobytes())
    chunks, rest = divmod(size, CHUNK_BYTES)
    begin = np.array(first, "<i4").tobytes().ljust(CHUNK_BYTES, b"\0")
    end = np.array(last, "<i4").tobytes().rjust(rest, b"\0")
    middle = xxhash.xxh3_64_digest(bytes(CHUNK_BYTES))
    return xxhash.xxh3_64_digest(begin) + middle * (chunks - 1) + xxhash.xxh3_64_digest(end)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for domain in range(DOMAINS):
        name, hashes = f"d{domain}", b""
        (folder / name).mkdir()
        for shard in range(SHARDS):
            first, last = ([4, 5, 6], [1, 2, 3]) if domain == 0 else ([], [])
            hashes += _shard(folder / name / f"train.{shard:05d}", SHARD_TOKENS, first, last)
        (folder / name / "hashes").write_bytes(hashes)
        files = {path.name: path.stat().st_size for path in (folder / name).glob("train.*")}
        changes = {"files": files, "hashes": xxhash.xxh3_128_hexdigest(hashes)}
        record, config = manifest().domains["zh"].model_copy(update=changes), {"domains": [[name]], "slot_rows": 1}
        manifest().model_copy(update={"domains": {name: record}, "config": config}).save(folder)
    return folder


_START = """
import json, re, sys, time
from pathlib import Path
from pangu_sigma.config_file import load_config
from pangu_sigma.data.order import Cursor, SampleOrder
from pangu_sigma.data.batches import open_samples

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

folder, taken, updates = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
domains = [{"name": f"d{number}", "slot": "zh"} for number in range(40)]
config = load_config("model_configs/sigma_1t.yaml", [("domains", domains), ("data.shuffle", "keyed")])
before, begun = memory("VmRSS"), time.perf_counter()
samples = open_samples(config, folder, "train", 40_000)
order = SampleOrder(config, samples.counts, samples.weights)
cursor, found = Cursor(taken), []
for update in range(updates):
    found.append(order.take(cursor))
    for domain, numbers in found[-1]:
        for number in numbers[:1 if update else None]:
            assert samples.read(domain, number).shape == (1_025,)
    if not update:
        seconds, mib = time.perf_counter() - begun, memory("VmHWM") - before
print(json.dumps({"seconds": seconds, "mib": mib, "counts": samples.counts, "found": found, "taken": cursor.taken}))
"""


def start(corpus: Path, taken: list[int], updates: int) -> dict[str, Any]:
    """What a process says that opens the text and takes updates of 512 samples from a cursor on; it reads all of the first."""
    command = [sys.executable, "-c", _START, str(corpus), json.dumps(taken), str(updates)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_starts_in_seconds_and_resumes_in_the_middle(corpus):
    """A start that opens 320 shards and reads 512 samples, whose chunks it verifies; the same samples after a stop."""
    middle = [3_000_000 + 512 * domain for domain in range(DOMAINS)]
    whole = start(corpus, middle, 12)
    assert whole["counts"] == [(SHARDS * SHARD_TOKENS - 1) // 1_024] * DOMAINS
    assert sum(whole["counts"]) * 1_024 > 299_900_000_000
    print(f"start and first update: {whole['seconds']:.2f} s, {whole['mib']:.0f} MiB")
    assert whole["mib"] < 100, "500 are allowed; a permutation of these samples would have 2,300"
    assert whole["seconds"] < 30, "2 alone on 2 cores: here, other tests run beside it"
    stopped = start(corpus, middle, 5)
    resumed = start(corpus, stopped["taken"], 7)
    assert stopped["found"] + resumed["found"] == whole["found"]
    assert resumed["taken"] == whole["taken"]
    places = [(domain, number) for update in whole["found"] for domain, numbers in update for number in numbers]
    assert len({*places}) == len(places) == 12 * 512


def test_a_sample_over_the_end_of_a_shard_is_read_at_its_place(corpus):
    tokens = PreparedData(corpus).tokens("d0", "train", 40_000)
    at = MARKED * SHARD_TOKENS
    assert at > 2**31
    assert tokens.read(at - 5, 10).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 0, 0]
    assert tokens.read(tokens.tokens - 4, 4).tolist() == [0, 1, 2, 3]
