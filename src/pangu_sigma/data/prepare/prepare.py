"""Preparation of training data (`prepare-data`): it reads text and writes the folder that `train` reads.

    documents → kept → runs (words, once) → English pieces → counts → rows of slots → ids → train | held out → files

Pieces and rows are chosen from documents that cannot be held out; the ids of the others decide which are held out (overlap.py).

The folder is written beside `output` and renamed when it is complete:

    <domain>.train.{bin,idx}  <domain>.held_out.{bin,idx}  frequencies.npy (int64 [D, V], training tokens)
    tokenizer/  quarantine.jsonl  manifest.json (with the hashes of all of them)

Lines that cannot be used are written to `<output>.quarantine.jsonl` at once; the file stays there if the preparation fails.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.indexed import write_tokens
from pangu_sigma.data.manifest import DomainRecord, Manifest, Source, SplitCounts, load_manifest
from pangu_sigma.data.prepare.kept import KeptVocabulary
from pangu_sigma.data.prepare.overlap import HeldOutSize, choose_held_out
from pangu_sigma.data.prepare.overview import warnings_of
from pangu_sigma.data.prepare.packages import (
    PACKAGED_MIB,
    archives_of,
    download,
    packaged_documents,
    packaged_sources,
    sha256_of,
)
from pangu_sigma.data.prepare.quarantine import Quarantine
from pangu_sigma.data.prepare.room import check_room
from pangu_sigma.data.prepare.selection import Candidates, Selection, held_out_candidates
from pangu_sigma.data.prepare.shift import held_out_shift
from pangu_sigma.data.prepared import (
    FREQUENCIES_NAME,
    QUARANTINE_NAME,
    TOKENIZER_NAME,
    PreparedData,
    file_records,
    preparation_settings,
)
from pangu_sigma.domains import Domain, Domains, domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.sealed import sync
from pangu_sigma.text.documents import Document, Rejected
from pangu_sigma.text.inputs import input_files, input_units, read_unit
from pangu_sigma.text.layout import Layout
from pangu_sigma.text.sentencepieces import alpha_model, read_english, train_english
from pangu_sigma.text.tokenizer import SegmentedText, Tokenizer, segment, tag_language
from pangu_sigma.text.vocabulary import UNK, choose_rows

logger = logging.getLogger(__name__)

_LEARNING_BYTES = 4 << 20
"""Amount of English text and code that pieces are trained on; more changes few pieces and takes longer."""

_WRITTEN = re.compile(
    r"manifest\.json|frequencies\.npy|quarantine\.jsonl|tokenizer(/(pangu_alpha\.model|english\.model|vocabulary\.json))?|"
    r"[a-z0-9_]+\.(train|held_out)(\.\d{5,})?\.(bin|idx|hashes)"
)
"""Names of all that a preparation writes into its folder; a folder with anything else is not replaced."""
_LOOK = "--check prints what there is of every domain, and writes nothing"
_FORMAT = 4
"""Version in the fingerprint: raise it when the same text would give a different folder."""


@dataclass(frozen=True)
class _Corpus:
    """Documents of a domain, as they are and segmented into words, and which of them may be held out."""

    selection: Selection
    documents: list[Document]
    segmented: list[SegmentedText]
    candidates: Candidates

    @property
    def certain(self) -> list[SegmentedText]:
        """Documents that are no candidates for the held-out set, and so are trained on."""
        uncertain = set(self.candidates.numbers)
        return [segments for number, segments in enumerate(self.segmented) if number not in uncertain]


@dataclass(frozen=True)
class _InputFile:
    """Input file of the user, with its hash, size and modification time."""

    path: Path
    sha256: str
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> _InputFile:
        status = path.stat()
        logger.info("hashing %s (%.1f MiB)", path, status.st_size / (1 << 20))
        try:
            return cls(path, sha256_of(path), status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise DataError(f"{argument('--input')} {path}: {error.strerror}; check the path") from error

    def check_unchanged(self) -> None:
        """Raise DataError if the file has changed since it was hashed."""
        status = self.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
            raise DataError(
                f"{argument('--input')} {self.path}: was changed while it was read; call prepare-data when it is complete"
            )


def prepare(config: Config, inputs: list[Path], output: Path, kept: KeptVocabulary | None = None) -> Manifest:
    """Prepare the training data of a configuration, write it to the folder `output` and return its manifest.

    inputs: the user's files and folders; none: the packaged text. A folder that holds this very result already is left alone, an
    older result of the same domains is replaced. kept: vocabulary to keep in place of that of `vocabulary.keep`. Raises ConfigError or DataError for what the user can fix.
    """
    inputs = _checked_before_reading(config, inputs, output)
    kept = kept or KeptVocabulary.of(config)
    existing = _existing(output)
    if refused := _other_domains(config, output, existing):
        raise ConfigError(refused)
    files = [_InputFile.of(path) for path in inputs]
    decisive = _decisive(config, files, kept)
    if existing and existing.fingerprint == _fingerprint(decisive) and _intact(output):
        logger.info("%s already holds this data; nothing to do", output)
        manifest = existing
    else:
        _say_replaced(output, existing, decisive)
        with Quarantine(output.with_name(f"{output.name}.quarantine.jsonl")) as quarantine:
            manifest, _ = _prepare(config, files, output, quarantine, decisive, kept)
    for remark in warnings_of(manifest):
        logger.warning("%s", remark)
    return manifest


def preview(config: Config, inputs: list[Path], kept: KeptVocabulary | None = None) -> tuple[Manifest, list[str]]:
    """Examine text as `prepare` does and write nothing, except packaged text that has to be downloaded.

    Return the manifest that `prepare` would write, without files, and why it would refuse the text, a problem a domain, after the
    one of data.path if that holds other domains. kept: as in `prepare`. Raises ConfigError or DataError for what leaves nothing to
    examine.
    """
    output = Path(config.data.path)
    inputs = _checked_before_reading(config, inputs, output)
    existing = _existing(output)
    kept, files = kept or KeptVocabulary.of(config), [_InputFile.of(path) for path in inputs]
    decisive, refused = _decisive(config, files, kept), _other_domains(config, output, existing)
    if not refused:
        _say_replaced(output, existing, decisive)
    with Quarantine(None) as quarantine:
        manifest, problems = _prepare(config, files, None, quarantine, decisive, kept)
    for remark in warnings_of(manifest):
        logger.warning("%s", remark)
    return manifest, [refused, *problems] if refused else problems


def _checked_before_reading(config: Config, inputs: list[Path], output: Path) -> list[Path]:
    """Return the files of `inputs`. Raises ConfigError or DataError for what can be known before anything is downloaded or read."""
    for domain in domains_of(config):
        tag_language("", "", domain)  # refuses a code domain that has no tag
    Layout.of(config)
    for path in inputs:
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise DataError(
                f"{argument('--input')} {path}: data.path={output} is below it, and prepare-data would read what it wrote; choose "
                "another data.path"
            )
    files = input_files(inputs)
    for path in files:
        if f".{path.name}".endswith(f".{QUARANTINE_NAME}"):
            raise DataError(f"{argument('--input')} {path}: prepare-data replaces files of this name; rename it")
    return files


def _prepare(
    config: Config,
    files: list[_InputFile],
    output: Path | None,
    quarantine: Quarantine,
    decisive: dict[str, Any],
    kept: KeptVocabulary | None,
) -> tuple[Manifest, list[str]]:
    """Return the manifest and the problems of domains. output: folder to write unless there are problems; None: write nothing."""
    domains = domains_of(config)
    if files:
        check_room([file.path for file in files], _limit(config, files), len(domains))
        selections = _from_inputs(config, domains, files, quarantine)
    else:
        selections = _from_packages(config, domains)
    few = [_too_few(domain, each) for domain in domains if len((each := selections[domain.name]).documents()) < 2]
    if output is not None and len(few) == len(domains):
        raise DataError("\n".join([*few, _LOOK]))
    corpora = _cut(config, domains, selections)
    tokenizer = _build_tokenizer(config, domains, corpora, kept)
    with nullcontext() if output is None else _replacing(output) as folder:
        records, frequencies, problems = _write_domains(config, folder, domains, tokenizer, corpora)
        manifest = Manifest(
            fingerprint=_fingerprint(decisive),
            vocabulary_hash=tokenizer.hash,
            vocabulary_size=tokenizer.size,
            domains=records,
            quarantined=dict(quarantine.counts),
            examples=quarantine.examples,
            config=decisive,
        )
        if folder is None:
            return manifest, problems
        if problems:
            raise DataError("\n".join([*problems, _LOOK]))
        tokenizer.save(folder / TOKENIZER_NAME)
        np.save(folder / FREQUENCIES_NAME, frequencies)
        quarantine.copy_to(folder / QUARANTINE_NAME)
        manifest = manifest.model_copy(update={"files": file_records(folder)})
        manifest.save(folder)
    return manifest, []


def _fingerprint(decisive: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _decisive(config: Config, files: list[_InputFile], kept: KeptVocabulary | None) -> dict[str, Any]:
    """Return all that decides the content of the folder: settings, hashes of the text, and versions of the programs that cut it."""
    english = config.vocabulary.english_model
    return {
        "format": _FORMAT,
        **preparation_settings(config),
        "slot_rows": config.model.slot_rows,
        "english_model": sha256_of(Path(english)) if english and Path(english).is_file() else english,
        "kept": None if kept is None else [kept.tokenizer.hash, kept.domains.slot_names],
        "reader_sha256": Layout.of(config).reader_sha256,
        "inputs": [[str(file.path), file.sha256] for file in files],
        "packages": [] if files else [archive.file for archive in archives_of(domains_of(config))],
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("jieba", "sentencepiece")}},
    }


def _existing(output: Path) -> Manifest | None:
    """Return the manifest in `output`, or None if it is absent or damaged. Raises DataError if anything else is in there."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / "manifest.json").is_file():
        raise DataError(f"{output} exists and is not prepared data (no manifest.json); choose another or remove it")
    found = sorted(path.relative_to(output).as_posix() for path in output.rglob("*"))
    if foreign := [name for name in found if not _WRITTEN.fullmatch(name)]:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise DataError(
            f"data.path={output} also has {foreign[0]}{more}, which prepare-data did not write; move it, or choose another "
            "data.path"
        )
    try:
        return load_manifest(output)
    except DataError as error:
        logger.warning("%s; it will be replaced", error)
        return None


def _other_domains(config: Config, output: Path, existing: Manifest | None) -> str:
    """Return why the data in `output` is not replaced: it has other domains, so it is another collection; "" if it has not."""
    names = [domain.name for domain in config.domains]
    if existing is None or existing.domains.keys() == set(names):
        return ""
    return (
        f"data.path={output} holds domains {', '.join(existing.domains)}, this configuration has {', '.join(names)}; choose "
        "another data.path, or remove the folder"
    )


def _say_replaced(output: Path, existing: Manifest | None, decisive: dict[str, Any]) -> None:
    """Log a warning with what differs, if the data in `output` were prepared otherwise."""
    if existing is None or existing.fingerprint == _fingerprint(decisive):
        return
    keys = sorted(key for key in decisive | existing.config if decisive.get(key) != existing.config.get(key))
    logger.warning(
        "%s holds data that were prepared otherwise (%s); prepare-data replaces them", output, ", ".join(keys)
    )


def _intact(output: Path) -> bool:
    """Return True if every file agrees with the manifest."""
    try:
        PreparedData(output).verify_all()
    except DataError as error:
        logger.warning("%s; it will be replaced", error)
        return False
    return True


def _from_inputs(
    config: Config, domains: Domains, files: list[_InputFile], quarantine: Quarantine
) -> dict[str, Selection]:
    limit, layout = _limit(config, files), Layout.of(config)
    selections = {domain.name: Selection(limit) for domain in domains}
    for file in files:
        source = Source(name=file.path.name, version="", licence="the user's", sha256=file.sha256)
        (unit,) = input_units([file.path], 1 << 62)
        for item in Bar(read_unit(unit, layout, domains), desc=f"reading {file.path.name}", unit="document"):
            if isinstance(item, Rejected):
                quarantine.add(item)
                continue
            selection = selections[item.domain]
            selection.add(item)
            if source not in selection.sources:
                selection.sources.append(source)
        file.check_unchanged()
    return selections


def _from_packages(config: Config, domains: Domains) -> dict[str, Selection]:
    files = download(archives_of(domains), Path(config.data.path).parent / "packages")
    selections = {}
    for domain in Bar(domains, desc="reading", unit="domain"):
        selections[domain.name] = Selection(_limit(config, []), packaged_sources(domain))
        for document in packaged_documents(domain, files):
            selections[domain.name].add(document)
    return selections


def _limit(config: Config, files: list[_InputFile]) -> int | None:
    """Return the maximum number of bytes of text kept of a domain; None: no limit."""
    asked = config.data.max_mib_per_domain
    mib = asked if asked is not None or files else PACKAGED_MIB
    return None if mib is None else int(mib * (1 << 20))


def _cut(config: Config, domains: Domains, selections: dict[str, Selection]) -> list[_Corpus]:
    """Segment all text into words, and choose the candidates for the held-out set."""
    corpora = []
    for domain in domains:
        documents = selections[domain.name].documents()
        segmented = [segment(each.segments, domain) for each in _progress(documents, "segmenting", domain)]
        candidates = held_out_candidates(documents, config.data, config.data_of(domain.index).held_out)
        corpora.append(_Corpus(selections[domain.name], documents, segmented, candidates))
    return corpora


def _too_few(domain: Domain, selection: Selection) -> str:
    return (
        f"domain {domain.name}: {len(selection.documents())} usable documents; at least 2 are needed, one of them to hold out; "
        f"{_more_text(domain, selection)}"
    )


def _more_text(domain: Domain, selection: Selection) -> str:
    """Return advice on how to have more text of a domain."""
    if selection.limit is None or not selection.left_out_bytes:
        return f'pass --input your.jsonl with more lines {{"domain": "{domain.name}", "text": …}}'
    limit, left_out = (size / (1 << 20) for size in (selection.limit, selection.left_out_bytes))
    return f"raise data.max_mib_per_domain={limit:.3g}, which left {left_out:.3g} MiB out"


def _build_tokenizer(
    config: Config, domains: Domains, corpora: list[_Corpus], kept: KeptVocabulary | None
) -> Tokenizer:
    """Build the tokenizer from documents that are no held-out candidates: English pieces, and the rows of every slot."""
    english_model = config.vocabulary.english_model or (kept and kept.english_model)
    if english_model:
        english = read_english(Path(english_model))
    else:
        text = list(_learning_text(corpora))
        pieces, mib = config.vocabulary.english_pieces, sum(map(len, text)) / (1 << 20)
        logger.info("building the vocabulary: learning %s English pieces from %.1f MiB of text", f"{pieces:,}", mib)
        english = train_english(text, pieces)
    whole = Tokenizer.whole(alpha_model(), english, len(domains.slot_names))
    rows = config.model.slot_rows
    if whole.size <= rows:
        padded = np.pad(whole.slot_rows, ((0, 0), (0, rows - whole.size)), constant_values=-1)
        return Tokenizer(alpha_model(), english, padded)
    counts = np.zeros((len(domains.slot_names), whole.size), dtype=np.int64)
    for domain, corpus in zip(domains, corpora, strict=True):
        for ids in _encoded(whole, domain, corpus.certain, "counting"):
            counts[domain.slot] += np.bincount(ids, minlength=whole.size)
    chosen = []
    for slot in range(len(counts)):
        ids = kept.ids(whole.vocabulary, domains, slot) if kept else []
        chosen.append(choose_rows(whole.vocabulary, domains.in_slot(slot), counts[slot], rows, ids))
    return Tokenizer(alpha_model(), english, np.stack(chosen))


def _learning_text(corpora: list[_Corpus]) -> Iterator[str]:
    """Yield training text for the English pieces: equal amounts of every domain that has any, spread over its documents."""
    english = (
        [run.text for segments in corpus.certain for _, runs in segments for run in runs if not run.alpha]
        for corpus in corpora
    )
    texts = [runs for runs in english if runs]
    for runs in texts:
        step = -(-sum(map(len, runs)) // (_LEARNING_BYTES // len(texts)))
        yield from runs[:: max(1, step)]


def _encoded(tokenizer: Tokenizer, domain: Domain, texts: list[SegmentedText], what: str) -> Iterator[list[int]]:
    for segments in _progress(texts, what, domain):
        yield tokenizer.sample_runs(segments, domain)


def _progress(documents: list[Any], what: str, domain: Domain) -> Iterable[Any]:
    return Bar(documents, desc=f"{what} {domain.name}", unit="document", leave=False)


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Make a folder to be filled in the block; it replaces `output` if the block succeeds, and is removed if it fails.

    Raises DataError for errors of the file system.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as unfinished:
            fresh, old = Path(unfinished) / output.name, Path(unfinished) / "replaced"
            fresh.mkdir()
            yield fresh
            for path in (*fresh.rglob("*"), fresh):
                sync(path)
            if output.exists():
                output.rename(old)
            try:
                fresh.rename(output)
            except OSError:
                if old.exists():
                    old.rename(output)
                raise
            sync(output.parent)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror or error}; nothing was changed there") from error


def _write_domains(
    config: Config, folder: Path | None, domains: Domains, tokenizer: Tokenizer, corpora: list[_Corpus]
) -> tuple[dict[str, DomainRecord], np.ndarray, list[str]]:
    """Write the token files. Return the record of each domain, the training frequencies [D, V], and why domains are refused.

    folder: None to write nothing.
    """
    frequencies = np.zeros((len(domains), tokenizer.size), dtype=np.int64)
    records, problems = {}, []
    for domain, corpus in zip(domains, corpora, strict=True):
        documents = [np.array(ids, np.int32) for ids in _encoded(tokenizer, domain, corpus.segmented, "encoding")]
        data, candidates = config.data_of(domain.index), corpus.candidates
        demand = HeldOutSize(
            documents=candidates.wanted,
            tokens=data.min_held_out_tokens,
            most=data.max_held_out_tokens,
            sample=config.model.seq_length + 1,
            limit=data.max_overlap,
            boilerplate=data.boilerplate_documents,
            more=_more_text(domain, corpus.selection),
        )
        choice = choose_held_out(documents, candidates.numbers, demand, tokenizer.decode, f"domains.{domain.index}")
        if len(documents) < 2:
            problems.append(_too_few(domain, corpus.selection))
        elif choice.shortage:
            problems.append(f"domain {domain.name}: {choice.shortage}")
        seen = sorted(set(range(len(documents))) - set(choice.numbers))
        train, counts = _write_split(folder, "train", domain, tokenizer, corpus, documents, seen)
        held_out, unseen = _write_split(folder, "held_out", domain, tokenizer, corpus, documents, choice.numbers)
        frequencies[domain.index] = counts
        rows = tokenizer.slot_rows[domain.slot]
        loss, shift, deviation = held_out_shift(counts, unseen, [documents[n] for n in candidates.order], rows)
        records[domain.name] = DomainRecord(
            slot=domains.slot_names[domain.slot],
            rows=int((rows >= 0).sum()),
            offered=corpus.selection.offered,
            duplicates=corpus.selection.duplicates,
            too_long=corpus.selection.too_long,
            over_limit=corpus.selection.over_limit,
            offered_bytes=corpus.selection.offered_bytes,
            left_out_bytes=corpus.selection.left_out_bytes,
            train=train,
            held_out=held_out,
            unigram_entropy=loss,
            shift=shift,
            shift_deviation=deviation,
            sources=corpus.selection.sources,
            overlap=choice.overlap,
        )
    return records, frequencies, problems


def _write_split(
    folder: Path | None,
    name: str,
    domain: Domain,
    tokenizer: Tokenizer,
    corpus: _Corpus,
    ids: list[np.ndarray],
    numbers: list[int],
) -> tuple[SplitCounts, np.ndarray]:
    """Write the documents `numbers` to one token file. Return their statistics and frequencies [V] int64. ids: of all documents."""
    documents = [ids[number] for number in numbers]
    if folder is not None:
        write_tokens(folder / f"{domain.name}.{name}", documents)
    frequencies = np.bincount(np.concatenate([np.empty(0, np.int32), *documents]), minlength=tokenizer.size)
    counts = SplitCounts(
        documents=len(documents),
        tokens=int(frequencies.sum()),
        bytes=sum(corpus.documents[number].bytes for number in numbers),
        unknown=int(frequencies[UNK]),
        folded=sum(tokenizer.changed_by_normalisation(corpus.segmented[number]) for number in numbers),
    )
    return counts, frequencies
