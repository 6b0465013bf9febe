from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pangu_sigma import host_memory
from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.generate import decoder as host_decoder
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.text import open_decoder

CODE = """
import json, sys
from pathlib import Path
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.text import open_decoder
decoder = open_decoder(Path(sys.argv[1]), lanes=1)
decoder.begin(0, domains_of(decoder.config)[1])
(logits,) = decoder.read([Chunk(0, decoder.tokenizer.prompt("the cat", domains_of(decoder.config)[1]))])
print(json.dumps([list(logits.shape), [name for name in ("mindspore", "torch") if name in sys.modules]]))
"""


def test_a_run_answers_without_mindspore(tiny_run):
    """Which takes two seconds to import, and is needed for nothing here."""
    done = subprocess.run([sys.executable, "-c", CODE, tiny_run], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1, 640], []]


def test_weights_without_room_for_a_copy_are_read_from_their_files(tiny_run, caplog, monkeypatch):
    """And give the same bits."""
    logits = []
    for there in (1 << 40, 1 << 10, None):
        monkeypatch.setattr(host_decoder, "available_memory", lambda swap, there=there: there)
        decoder = open_decoder(tiny_run, lanes=1)
        decoder.begin(0, domains_of(decoder.config)[0])
        logits.append(decoder.read([Chunk(0, [20, 30, 40], 3)])[0])
        assert ("they are read from their files" in caplog.text) == (there == 1 << 10)
        caplog.clear()
    assert (logits[0] == logits[1]).all() and (logits[0] == logits[2]).all()


def test_a_cache_that_does_not_fit_is_refused(tiny_run, monkeypatch):
    there = open_decoder(tiny_run, lanes=3).cache_bytes
    monkeypatch.setattr(host_memory, "available_memory", lambda root: there)
    open_decoder(tiny_run, lanes=3)
    with pytest.raises(ConfigError, match="answering 4 texts at a time needs at least"):
        open_decoder(tiny_run, lanes=4)
