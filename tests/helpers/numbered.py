"""Text whose ids are numbered, so that an id says where it was read."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.prepared import seal

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.batches import Batch, BatchLoader, open_samples
from pangu_sigma.data.token_files import write_tokens
from pangu_sigma.rre.table import draw_tables

VOCABULARY, PAD, EOT = 700, 6, 9
LENGTH = 8
SAMPLES = (20, 11, 30)
"""Whole samples in the text of each domain."""
FIRST = (10, 210, 400)
"""Token i of a domain is FIRST + i: an id says where it was read."""


def config_of(
    accumulation: int = 1,
    blocks: int = 1,
    batch: int = 4,
    seed: int = 0,
    layers: int = 2,
    shuffle: str = "keyed",
) -> Config:
    model = {"hidden": 8, "ffn": 8, "heads": 1, "dense_layers": 1, "rre_layers": layers, "experts_per_domain": 2}
    return parse_config(
        {
            "name": "test",
            "seed": seed,
            "model": model | {"seq_length": LENGTH, "slot_rows": VOCABULARY},
            "domains": [
                {"name": "a", "slot": "one", "weight": 1.0},
                {"name": "b", "slot": "two", "weight": 2.0},
                {"name": "c", "slot": "one", "weight": 5.0},
            ],
            "data": {"domains_per_step": blocks, "shuffle": shuffle},
            "train": {"batch_size": batch, "accumulation": accumulation},
        }
    )


def open_batches(config: Config, folder: Path, tokenizer: SimpleNamespace, split: str = "train") -> BatchLoader:
    domains, layers = len(config.domains), config.model.rre_layers
    table = draw_tables(config.routing, layers, domains, VOCABULARY, config.model.experts_per_domain, None)
    return BatchLoader(config, open_samples(config, folder, split, VOCABULARY), tokenizer, table)  # type: ignore[arg-type]


def samples_of(ids_GBS: np.ndarray, domains_M: np.ndarray) -> list[tuple[int, int]]:
    """(domain, sample number) of every sequence of a batch; checks that each is a whole sample of its block's domain."""
    found = []
    for ids_BS in ids_GBS:
        for ids, domain in zip(ids_BS, np.repeat(domains_M, len(ids_BS) // len(domains_M)), strict=True):
            number, rest = divmod(int(ids[0]) - FIRST[domain], LENGTH)
            assert rest == 0
            assert 0 <= number < SAMPLES[domain]
            assert (ids == ids[0] + np.arange(LENGTH)).all()
            found.append((int(domain), number))
    return found


def sets_config(parallel: dict[str, int], accumulation: int = 1) -> Config:
    """Four domains in two sets of unequal weights, four blocks."""
    tree = config_of(accumulation, 2, 16).model_dump(mode="json")
    tree["domains"] = [{"name": n, "weight": w} for n, w in (("a", 1.0), ("b", 2.0), ("c", 5.0), ("d", 3.0))]
    tree["data"] |= {"domains_per_step": 4, "domain_sets": 2}
    return parse_config(tree | {"parallel": parallel | {"overflow": "drop"}})


def counted_rows(batch: Batch) -> np.ndarray:
    return batch.rows_GBS[0][batch.weights_GBS[0].sum(axis=1) > 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokens")
    for name, samples, first in zip("abc", SAMPLES, FIRST, strict=True):
        text = list(range(first, first + samples * LENGTH + 3))
        (path / name).mkdir()
        for split in ("train", "held_out"):
            write_tokens(path / name / split, [text[:50], text[50:]])
    return seal(path)


@pytest.fixture(scope="module")
def tokenizer() -> SimpleNamespace:
    """Two slots that hold all ids, the second one in reverse."""
    rows = np.arange(VOCABULARY, dtype=np.int32)
    both = np.stack([rows, rows[::-1]])  # its own inverse
    surfaces = [b"x" * (token % 5) for token in range(VOCABULARY)]
    return SimpleNamespace(
        size=VOCABULARY,
        eot=EOT,
        pad=PAD,
        row_of=both,
        slot_rows=both,
        hash="numbered",
        vocabulary=SimpleNamespace(surfaces=surfaces, pieces=[str(number) for number in range(len(surfaces))]),
    )


@pytest.fixture(scope="module")
def four(folder, tmp_path_factory) -> Path:
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("four") / "tokens")
    (copy / "d").mkdir()
    for split in ("train", "held_out"):
        write_tokens(copy / "d" / split, [list(range(10, 10 + 25 * LENGTH))])
    return seal(copy)
