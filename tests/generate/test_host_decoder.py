from __future__ import annotations

import numpy as np
import pytest
from helpers.slow_decoder import SlowDecoder

from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.open_decoder import open_decoder


def ids_of(run, domain, count, seed=0):
    used = run.tokenizer.slot_rows[domain.slot]
    return np.random.default_rng(seed).choice(used[(used >= 0) & (used != run.tokenizer.eot)], count).tolist()


def test_it_gives_the_logits_of_the_exact_path_in_every_domain(tiny_run):
    run = RunFolder.open(tiny_run)
    slow, fast = SlowDecoder(run), open_decoder(tiny_run)
    for domain in domains_of(run.config):
        ids = ids_of(run, domain, 12)
        for decoder in (slow, fast):
            decoder.begin(0, domain)
        for chunk in (ids[:5], ids[5:6], ids[6:]):
            (expected,), (found,) = (d.read([Chunk(0, chunk, len(chunk))]) for d in (slow, fast))
            assert (np.isinf(found) == np.isinf(expected)).all()
            assert np.abs(np.nan_to_num(found - expected)).max() < 1e-5
