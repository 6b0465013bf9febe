"""The command `prepare-data`: it reads text and writes the folder that `train` reads.

    documents → kept → train | held out → runs (words, once) → English pieces → counts → rows of slots → ids → files

The folder is written beside `output` and renamed when it is complete:

    <domain>.train.{bin,idx}  <domain>.held_out.{bin,idx}  frequencies.npy (int64 [D, V], training tokens)
    tokenizer/  quarantine.jsonl  manifest.json
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pangu_sigma.config import Config
from pangu_sigma.data.documents import Document, Rejected, read_jsonl
from pangu_sigma.data.indexed import TokenFile, write_tokens
from pangu_sigma.data.manifest import DomainRecord, Manifest, Source, SplitCounts, load_manifest
from pangu_sigma.data.packages import archives_of, download, packaged_documents, packaged_sources, sha256_of
from pangu_sigma.data.selection import Selection, split
from pangu_sigma.data.sentencepieces import alpha_model, learn_english, read_english
from pangu_sigma.data.tokenizer import SegmentedText, Tokenizer, segmented, tag_language
from pangu_sigma.data.vocabulary import UNK, choose_rows
from pangu_sigma.domains import Domain, Domains, domains_of
from pangu_sigma.errors import DataError

logger = logging.getLogger(__name__)

_LEARNING_BYTES = 4 << 20
"""English and code text that pieces are learned from; more changes few pieces and takes longer."""

_FORMAT = 1
"""A number in the fingerprint: raise it when the same text would give a different folder."""


@dataclass(frozen=True)
class _Cut:
    """A document and its words."""

    document: Document
    segments: SegmentedText


@dataclass(frozen=True)
class _Corpus:
    """The documents of a domain and their sources."""

    selection: Selection
    sources: list[Source]
    train: list[_Cut]
    held_out: list[_Cut]


def prepare(config: Config, inputs: list[Path], output: Path) -> Manifest:
    """Write the prepared data of `config` to `output` and return its manifest.

    inputs: the user's *.jsonl and *.jsonl.gz; none: the packaged text. A folder that holds this very result already
    is left as it is, an older result is replaced. Raises ConfigError or DataError for what the user can fix.
    """
    domains = domains_of(config)
    for domain in domains:
        tag_language("", "", domain)  # refuses a code domain that has no tag, before anything is downloaded
    decisive = _decisive(config, inputs)
    fingerprint = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    existing = _existing(output)
    if existing and existing.fingerprint == fingerprint and _intact(output, existing):
        logger.info("%s already holds this data; nothing to do", output)
        return existing
    selections, sources, rejected = _from_inputs(config, domains, inputs) if inputs else _from_packages(config, domains)
    corpora = _cut(config, domains, selections, sources)
    tokenizer = _build_tokenizer(config, domains, corpora)
    with _replacing(output) as folder:
        records, frequencies = _write_domains(folder, domains, tokenizer, corpora)
        tokenizer.save(folder / "tokenizer")
        np.save(folder / "frequencies.npy", frequencies)
        _write_quarantine(folder / "quarantine.jsonl", rejected)
        manifest = Manifest(
            fingerprint=fingerprint,
            vocabulary_hash=tokenizer.hash,
            vocabulary_size=tokenizer.size,
            domains=records,
            quarantined=dict(Counter(line.reason for line in rejected)),
            config=decisive,
        )
        manifest.save(folder)
    return manifest


def _decisive(config: Config, inputs: list[Path]) -> dict[str, Any]:
    """Everything that decides what is written: parts of the configuration, text, and the programs that cut it."""
    english = config.vocabulary.english_model
    return {
        "format": _FORMAT,
        "domains": [[d.name, d.format, d.language, d.slot] for d in config.domains],
        "slot_rows": config.model.slot_rows,
        "byte_fallback": config.vocabulary.byte_fallback,
        "english_pieces": config.vocabulary.english_pieces,
        "english_model": sha256_of(Path(english)) if english and Path(english).is_file() else english,
        "max_mib_per_domain": config.data.max_mib_per_domain,
        "held_out": config.data.held_out,
        "inputs": [[str(path), _input_sha256(path)] for path in inputs],
        "packages": [] if inputs else [archive.file for archive in archives_of(list(domains_of(config)))],
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("jieba", "sentencepiece")}},
    }


def _existing(output: Path) -> Manifest | None:
    """The manifest at `output`, None for nothing or a damaged result; DataError when the folder is not ours."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / "manifest.json").is_file():
        raise DataError(
            f"{output} exists and is not prepared data (no manifest.json); choose another folder or remove it"
        )
    try:
        return load_manifest(output)
    except DataError as error:
        logger.warning("%s; it will be replaced", error)
        return None


def _intact(output: Path, manifest: Manifest) -> bool:
    """True if the tokenizer and every token file are there and sound, as far as they check themselves."""
    try:
        tokenizer = Tokenizer.load(output / "tokenizer")
        for name, record in manifest.domains.items():
            for split_name, counts in (("train", record.train), ("held_out", record.held_out)):
                if TokenFile(output / f"{name}.{split_name}", tokenizer.size).tokens != counts.tokens:
                    return False
    except DataError as error:
        logger.warning("%s", error)
        return False
    return tokenizer.hash == manifest.vocabulary_hash and (output / "frequencies.npy").is_file()


def _input_sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"--input {path}: cannot be read: {error.strerror}; check the path") from error


def _from_inputs(
    config: Config, domains: Domains, inputs: list[Path]
) -> tuple[dict[str, Selection], dict[str, list[Source]], list[Rejected]]:
    selections = {domain.name: _empty_selection(config) for domain in domains}
    sources: dict[str, list[Source]] = {domain.name: [] for domain in domains}
    rejected = []
    for path in inputs:
        source = Source(name=path.name, version="", licence="the user's", sha256=_input_sha256(path))
        for item in read_jsonl(path, domains):
            if isinstance(item, Rejected):
                rejected.append(item)
                continue
            selections[item.domain].add(item)
            if source not in sources[item.domain]:
                sources[item.domain].append(source)
    if rejected:
        logger.warning("%d lines are unusable and quarantined", len(rejected))
    return selections, sources, rejected


def _from_packages(
    config: Config, domains: Domains
) -> tuple[dict[str, Selection], dict[str, list[Source]], list[Rejected]]:
    files = download(archives_of(list(domains)), Path(config.data.path).parent / "packages")
    selections = {}
    for domain in tqdm(domains.all, desc="reading", unit="domain", disable=None):
        selections[domain.name] = _empty_selection(config)
        for document in packaged_documents(domain, files):
            selections[domain.name].add(document)
    return selections, {domain.name: packaged_sources(domain) for domain in domains}, []


def _empty_selection(config: Config) -> Selection:
    return Selection(int(config.data.max_mib_per_domain * (1 << 20)))


def _cut(
    config: Config, domains: Domains, selections: dict[str, Selection], sources: dict[str, list[Source]]
) -> list[_Corpus]:
    """Split every domain and cut all of it into words, once."""
    corpora = []
    for domain in domains:
        documents = selections[domain.name].documents()
        if len(documents) < 2:
            raise DataError(
                f"domain {domain.name}: {len(documents)} usable documents; at least 2 are needed, one of them to hold "
                f'out; pass --input your.jsonl with more lines {{"domain": "{domain.name}", "text": …}}'
            )
        train, held_out = (
            [
                _Cut(document, segmented(document.segments, domain))
                for document in _progress(documents_of_split, "segmenting", domain)
            ]
            for documents_of_split in split(documents, config.data.held_out)
        )
        corpora.append(_Corpus(selections[domain.name], sources[domain.name], train, held_out))
    return corpora


def _build_tokenizer(config: Config, domains: Domains, corpora: list[_Corpus]) -> Tokenizer:
    """The vocabulary from the training text, and the rows of every slot."""
    logger.info("building the vocabulary")
    if config.vocabulary.english_model:
        english = read_english(Path(config.vocabulary.english_model))
    else:
        english = learn_english(_learning_text(corpora), config.vocabulary.english_pieces)
    byte_fallback = config.vocabulary.byte_fallback
    whole = Tokenizer.whole(alpha_model(), english, len(domains.slot_names), byte_fallback)
    rows = config.model.slot_rows
    if whole.size <= rows:
        return Tokenizer(alpha_model(), english, _padded(whole.slot_rows, rows), byte_fallback)
    counts = np.zeros((len(domains.slot_names), whole.size), dtype=np.int64)
    for domain, corpus in zip(domains, corpora, strict=True):
        for ids in _encoded(whole, domain, corpus.train, "counting"):
            counts[domain.slot] += np.bincount(ids, minlength=whole.size)
    chosen = [
        choose_rows(whole.vocabulary, domains.in_slot(slot), counts[slot], rows, byte_fallback)
        for slot in range(len(counts))
    ]
    return Tokenizer(alpha_model(), english, np.stack(chosen), byte_fallback)


def _padded(slot_rows: np.ndarray, rows: int) -> np.ndarray:
    """[slots, V] → [slots, rows], -1 in the rows that no id uses."""
    return np.pad(slot_rows, ((0, 0), (0, rows - slot_rows.shape[1])), constant_values=-1)


def _learning_text(corpora: list[_Corpus]) -> Iterator[str]:
    """Runs for the English pieces, as much from every domain that has any, spread over its training documents."""
    texts = [
        [run.text for cut in corpus.train for _, runs in cut.segments for run in runs if not run.alpha]
        for corpus in corpora
    ]
    texts = [runs for runs in texts if runs]
    for runs in texts:
        step = -(-sum(map(len, runs)) // (_LEARNING_BYTES // len(texts)))
        yield from runs[:: max(1, step)]


def _encoded(tokenizer: Tokenizer, domain: Domain, cuts: list[_Cut], what: str) -> Iterator[list[int]]:
    for cut in _progress(cuts, what, domain):
        yield tokenizer.sample_runs(cut.segments, domain)


def _progress(documents: list[Any], what: str, domain: Domain) -> Iterable[Any]:
    return tqdm(documents, desc=f"{what} {domain.name}", unit="document", disable=None, leave=False)


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A new folder beside `output`: renamed to it when the block ends well, and removed when it does not."""
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had this number
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    old = output.with_name(f"{output.name}.old-{os.getpid()}")
    if output.exists():
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _write_domains(
    folder: Path, domains: Domains, tokenizer: Tokenizer, corpora: list[_Corpus]
) -> tuple[dict[str, DomainRecord], np.ndarray]:
    """Write the token files; per domain its record, and training frequencies [D, V]."""
    frequencies = np.zeros((len(domains), tokenizer.size), dtype=np.int64)
    records = {}
    for domain, corpus in zip(domains, corpora, strict=True):
        train, frequencies[domain.index] = _write_split(folder, "train", domain, tokenizer, corpus.train)
        held_out, unseen = _write_split(folder, "held_out", domain, tokenizer, corpus.held_out)
        rows = tokenizer.slot_rows[domain.slot]
        ids = rows[rows >= 0]
        records[domain.name] = DomainRecord(
            slot=domains.slot_names[domain.slot],
            rows=len(ids),
            offered=corpus.selection.offered,
            duplicates=corpus.selection.duplicates,
            too_long=corpus.selection.too_long,
            train=train,
            held_out=held_out,
            unigram_entropy=_unigram_entropy(frequencies[domain.index][ids], unseen[ids]),
            sources=corpus.sources,
        )
    return records, frequencies


def _write_split(
    folder: Path, name: str, domain: Domain, tokenizer: Tokenizer, cuts: list[_Cut]
) -> tuple[SplitCounts, np.ndarray]:
    """Write one token file; its counts, and frequencies [V] int64."""
    documents = list(_encoded(tokenizer, domain, cuts, f"encoding {name}"))
    write_tokens(folder / f"{domain.name}.{name}", documents)
    frequencies = np.bincount(np.concatenate(documents), minlength=tokenizer.size)
    counts = SplitCounts(
        documents=len(documents),
        tokens=int(frequencies.sum()),
        bytes=sum(cut.document.bytes for cut in cuts),
        unknown=int(frequencies[UNK]),
    )
    return counts, frequencies


def _unigram_entropy(train: np.ndarray, held_out: np.ndarray) -> float:
    """Nats per held-out token under the training frequencies plus ½ for every row; both [rows in use] counts."""
    smoothed = train + 0.5
    return float(-(held_out * np.log(smoothed / smoothed.sum())).sum() / held_out.sum())


def _write_quarantine(path: Path, rejected: Iterable[Rejected]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in rejected:
            file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
