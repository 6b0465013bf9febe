"""Subset of a prepared data folder: some of its domains, for a model that has only these.

Token files hold ids and not rows, so they do not change: they are hard links to the same files, or copies on another file system.
The tokenizer is that of the smaller model. The folder has a manifest and hashes of its own, which record its origin.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.data.manifest import FileRecord, Manifest
from pangu_sigma.data.prepared import FREQUENCIES_NAME, SPLITS, TOKENIZER_NAME, PreparedData, file_records
from pangu_sigma.errors import DataError
from pangu_sigma.text.tokenizer import Tokenizer


def write_subset(
    source: Path, output: Path, domains: Sequence[str], kept: Sequence[str], tokenizer: Tokenizer
) -> Manifest:
    """Write the domains `kept` of the prepared data folder `source` to the folder `output`, and return its manifest.

    domains: all domains of `source`, in the order of the configuration that it was prepared with. tokenizer: with the same ids, and
    rows for the tokens of the kept domains. Quarantined lines stay with `source`.
    Raises DataError if a file of `source` is missing or damaged, or `output` exists or cannot be written; ConfigError for a domain
    that `source` does not have.
    """
    prepared = PreparedData(source)
    for name in kept:
        if name not in prepared.manifest.domains or name not in domains:
            raise ConfigError(f"domain {name!r} is not in {source}; it has {', '.join(prepared.manifest.domains)}")
    try:
        output.mkdir(parents=True)
        for name in kept:
            for split in SPLITS:
                for shard in prepared.tokens(name, split, tokenizer.size).shards:
                    prepared.verify(shard.path.with_suffix(".idx").name)
                    for file in (shard.path, shard.path.with_suffix(".idx")):
                        link(file, output / file.name)
        rows = [list(domains).index(name) for name in kept]
        np.save(output / FREQUENCIES_NAME, prepared.frequencies()[rows])
        tokenizer.save(output / TOKENIZER_NAME)
        manifest = _manifest(prepared.manifest, kept, tokenizer, file_records(output))
        _compare(source, prepared.manifest, manifest)
        manifest.save(output)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror or error}; choose another folder") from error
    return manifest


def _manifest(whole: Manifest, kept: Sequence[str], tokenizer: Tokenizer, files: dict[str, FileRecord]) -> Manifest:
    origin = {"subset_of": whole.fingerprint, "kept": list(kept), "vocabulary": tokenizer.hash}
    return Manifest(
        fingerprint=hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest(),
        vocabulary_hash=tokenizer.hash,
        vocabulary_size=tokenizer.size,
        domains={name: whole.domains[name] for name in kept},
        quarantined={},
        config={
            **whole.config,
            "subset_of": whole.fingerprint,
            "domains": [each for each in whole.config["domains"] if each[0] in kept],
        },
        files=files,
    )


def _compare(source: Path, whole: Manifest, subset: Manifest) -> None:
    """Raise DataError for a token file whose hash differs from that in the manifest of `source`."""
    for name, record in subset.files.items():
        if name.endswith((".bin", ".idx")) and whole.files[name].xxh3_128 != record.xxh3_128:
            raise DataError(
                f"{source / name}: xxh3_128 is {record.xxh3_128}, {whole.files[name].xxh3_128} was written; the file is damaged, "
                "run prepare-data again"
            )


def link(file: Path, target: Path) -> None:
    """Make `target` a hard link to a file, or a copy where there are no links between them. Raises OSError."""
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
