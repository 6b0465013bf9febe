"""Preparation of training data (`prepare-data`): it reads text and writes the folder that `train` reads.

    reading.py     hash → read: input → blocks of documents
    selection.py   [select] the documents to keep, and the candidates for the held-out set
    encoding.py    sample: → text → [English pieces] → count: → counts of pieces → [rows of slots] → encode: → ids
    held_out.py    overlap, choose: → held-out documents
    writing.py     write: → files

The caller's process does what stands in brackets, the others are passes (stage.py). Pieces and rows are chosen from documents that
cannot be held out; the ids of the others decide which are.

The passes write into a stage beside `output`. Its folder `write/output`, whose files `prepared.py` names, gets the name `output`
when it is complete. Nothing that is there is ever replaced. Lines that cannot be used are in the folder, and in the stage if the
preparation fails.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.manifest import DomainRecord, FileRecord, Manifest, Source, read_manifest, refuse_older
from pangu_sigma.data.prepare.encoding import encode, make_vocabulary
from pangu_sigma.data.prepare.executors import executor_of
from pangu_sigma.data.prepare.extension import KeptVocabulary, add_domains, moves_domains
from pangu_sigma.data.prepare.held_out import hold_out
from pangu_sigma.data.prepare.overview import format_reasons, warnings_of
from pangu_sigma.data.prepare.reading import Stamp, hash_files, read_text, sha256_of, stamps_of
from pangu_sigma.data.prepare.selection import DomainSelection, select_documents
from pangu_sigma.data.prepare.stage import Passes, Work, key_of, stage_folder, staged
from pangu_sigma.data.prepare.writing import write_domains
from pangu_sigma.data.prepared import (
    QUARANTINE_NAME,
    TOKENIZER_NAME,
    PreparedData,
    missing_domains,
    preparation_settings,
)
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.sealed import commit, fingerprint
from pangu_sigma.text.inputs import input_files
from pangu_sigma.text.layout import Layout
from pangu_sigma.text.tokenizer import MODELS, tag_language
from pangu_sigma.writable import refuse_link

logger = logging.getLogger(__name__)

_FORMAT = 8
"""Version in the fingerprint: raise it when the same text would give a different folder."""


@dataclass(frozen=True)
class Options:
    """How a preparation is done; tokens depend on `reader` alone. workers: number of processes; None: as many as there are cores,
    fewer for little text. ray: address of a Ray cluster that does the work. reader: as in `Layout`. sources: sources of input
    files, for the manifest; a file that has none here is the user's."""

    workers: int | None = None
    ray: str | None = None
    reader: str | None = None
    sources: Mapping[Path, list[Source]] = field(default_factory=dict)


ONE_PROCESS = Options(workers=1)


def prepare(
    config: Config, inputs: list[Path], output: Path, options: Options = ONE_PROCESS, old: KeptVocabulary | None = None
) -> Manifest:
    """Prepare the training data of a configuration, write it to the folder `output` and return its manifest.

    inputs: files, and folders of files. A folder that holds this very result is left alone, one with other contents is an error. A
    preparation that was killed or refused, or a preview, goes on where it was, as far as settings and text are the same. old:
    vocabulary of prepared data in `output`, to which the domains of the configuration are added. Raises ConfigError or DataError
    for what the user can fix."""
    return run_preparation(config, inputs, output, options, old, writes=True)[0]


def run_preparation(
    config: Config, inputs: list[Path], output: Path, options: Options, old: KeptVocabulary | None, writes: bool
) -> tuple[Manifest, list[str]]:
    """Do what `prepare` does, or examine the text without writing `output`. Return the manifest, and the problems for which
    `prepare` refuses the text: that `output` holds other data, and then at most one problem for each domain.

    writes: True to write. False to examine, which leaves only a stage, from which `prepare` goes on; the manifest has no files
    then. Other arguments and errors: as in `prepare`."""
    layout, vocabulary = Layout.of(config, options.reader), old or KeptVocabulary.of(config)
    files = _files_to_read(config, layout, inputs, output)
    conflict = "" if old else _conflict(config, output, {})  # already here, because hashing the files may take long
    if conflict and writes:
        raise ConfigError(conflict)
    if not old and moves_domains(output):
        raise ConfigError(
            f"data.path={output}: domains that are being added are in {stage_folder(output)}; call prepare-data with "
            f"{argument('--extend')} first, which moves them"
        )
    stamps = stamps_of(files)
    input_bytes = sum(size for _, size, _ in stamps)
    with (
        closing(executor_of(options.workers, options.ray, config.data.memory_gib, input_bytes)) as executor,
        staged(output, removed=writes) as stage,
        closing(executor),  # first, so that no process writes into the stage while it is removed
    ):
        passes = Passes(Work(config, stage), executor)
        manifest_config = _manifest_config(config, layout, hash_files(passes, stamps), vocabulary)
        conflict = "" if old else _conflict(config, output, manifest_config)
        if conflict and writes:
            raise ConfigError(conflict)
        if writes and not old and _has_content(output):  # without a conflict, the content is this result
            data = PreparedData(output, [domain.name for domain in config.domains])
            data.verify_all()
            logger.info("%s already holds this data; nothing to do", output)
            manifest, problems = data.manifest, list[str]()
        else:
            manifest, problems = _run_passes(passes, stamps, layout, manifest_config, vocabulary, options, writes)
            problems = [conflict, *problems] if conflict else problems
            if writes:
                (add_domains if old else commit)(stage.path("write/output"), output)
    for remark in warnings_of(manifest):
        logger.warning("%s", remark)
    return manifest, problems


def _files_to_read(config: Config, layout: Layout, inputs: list[Path], output: Path) -> list[Path]:
    """Return the files of `inputs`, and warn of rules of `data.domain_of` that match none. Raises ConfigError or DataError if names
    of domains, paths or the configuration show that the preparation cannot succeed."""
    for domain in domains_of(config):
        tag_language("", "", domain)  # refuses a code domain that has no tag
        if domain.name == TOKENIZER_NAME:
            raise ConfigError(
                f"domains: prepared data has a folder {TOKENIZER_NAME} of its own; give the domain another name"
            )
    for path in inputs:
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise DataError(
                f"{argument('--input')} {path}: data.path={output} is below it, and prepare-data would read what it wrote; choose "
                "another data.path"
            )
    files = input_files(inputs)
    for glob in layout.idle_rules(files):
        logger.warning("data.domain_of: %r matches no file of %s, so this rule does nothing", glob, argument("--input"))
    return files


def _run_passes(
    passes: Passes,
    stamps: Sequence[Stamp],
    layout: Layout,
    manifest_config: dict[str, Any],
    vocabulary: KeptVocabulary | None,
    options: Options,
    writes: bool,
) -> tuple[Manifest, list[str]]:
    """Do all passes after `hash`. Return the manifest, and for each domain that has too little text a problem.

    stamps: path, size and time of each input file. layout: reader of records. options: as in `prepare`. writes: True to complete
    the folder `write/output` of the stage, and to raise DataError for problems; False for a preview."""
    stage, domains = passes.work.stage, passes.work.domains
    files, counts, examples = read_text(passes, stamps, layout, manifest_config)
    if counts:  # warned of at once: if a domain has too little text later, these lines may be the reason
        reasons = format_reasons(counts, examples) if writes else f"{sum(counts.values()):,} lines are not used"
        remark = "%s\nall of them are in %s, and in data.path when it is complete"
        logger.warning(remark, reasons, stage.path(QUARANTINE_NAME))
    selection = select_documents(passes)
    tokenizer = make_vocabulary(passes, selection, vocabulary, manifest_config)
    encode(passes, selection)
    shortages = zip(domains, selection.domains, hold_out(passes, selection, manifest_config), strict=True)
    problems = [problem for triple in shortages if (problem := _problem(passes.work.config, *triple))]
    if problems and writes:
        check = "`prepare-data --check` prints what there is of every domain, and replaces nothing"
        raise DataError("\n".join([*problems, check]))
    records, folder = write_domains(passes), stage.path("write/output")
    if writes:
        tokenizer.save_models(folder / TOKENIZER_NAME)
    models = {name: FileRecord(**fingerprint(folder / TOKENIZER_NAME / name)) for name in MODELS} if writes else {}
    sources_of = {
        Path(path): options.sources.get(Path(path))
        or [Source(name=Path(path).name, version="", licence="the user's", sha256=sha256)]
        for path, sha256 in manifest_config["inputs"]
    }
    manifest = Manifest(
        fingerprint=key_of(manifest_config),
        models=models,
        vocabulary_size=tokenizer.size,
        domains={
            domain.name: DomainRecord(**record, sources=[source for path in paths for source in sources_of[path]])
            for domain, record, paths in zip(domains, records, files, strict=True)
        },
        quarantined=counts,
        examples=examples,
        config=manifest_config,
        near_duplicates=selection.near,
    )
    if writes:
        manifest.save(folder)
        stage.path(QUARANTINE_NAME).replace(folder / QUARANTINE_NAME)  # the last file of a complete folder
    return manifest, problems


def _problem(config: Config, domain: Domain, counts: DomainSelection, shortage: str) -> str:
    """Return why there is too little text of a domain, and how to have more; "" if there is enough. shortage: why too little text
    can be held out, or ""."""
    too_few = f"{counts.kept} usable documents; at least 2 are needed, one of them to hold out;"
    reason = too_few if counts.kept < 2 else shortage
    return f"domain {domain.name}: {reason} {_more_text(config, domain, counts)}" if reason else ""


def _more_text(config: Config, domain: Domain, counts: DomainSelection) -> str:
    """Return advice on how to have more text of a domain."""
    if counts.left_out_bytes:
        return (
            f"raise data.max_mib_per_domain={config.data.max_mib_per_domain:.3g}, which left "
            f"{counts.left_out_bytes / (1 << 20):.3g} MiB out"
        )
    line = f'{{"domain": "{domain.name}", "text": …}}'
    if counts.kept:
        return f"pass {argument('--input')} your.jsonl with more lines {line}"
    return f"name text of it with {argument('--input')}, such as lines {line}, or mend what makes lines unusable"


def _manifest_config(
    config: Config, layout: Layout, inputs: list[list[str]], vocabulary: KeptVocabulary | None
) -> dict[str, Any]:
    """Return `config` of the manifest, which has all that decides the content of the folder: settings, the text, and versions of
    the programs that cut the text. inputs: path and sha256 of each input file."""
    english = config.vocabulary.english_model
    return {
        "format": _FORMAT,
        **preparation_settings(config),
        "slot_rows": config.model.slot_rows,
        "english_model": sha256_of(Path(english)) if english and Path(english).is_file() else english,
        "kept": vocabulary and [vocabulary.tokenizer.hash, vocabulary.domains.slot_names],
        "reader": [layout.reader, layout.source_hash],
        "inputs": inputs,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("jieba", "sentencepiece")}},
    }


def _conflict(config: Config, output: Path, manifest_config: dict[str, Any]) -> str:
    """Return a message if `output` has other data than would be prepared; "" if it has no data, or the same.

    manifest_config: `config` of the new manifest; {} to compare only the names of domains. Raises ConfigError if `output` is the
    working folder, DataError if its content is not prepared data or a manifest is damaged, NotWritable for a link to nothing."""
    if not _has_content(output):
        refuse_link(output)
        if output.exists() and output.samefile("."):
            raise ConfigError(f"data.path={output} is the working folder, which is not replaced; name a folder in it")
        return ""
    refuse_older(output)
    if not any(output.glob("*/manifest.json")):
        raise DataError(f"{output} exists and is not prepared data (no manifest.json); choose another or remove it")
    names = [domain.name for domain in config.domains]
    if problem := missing_domains(output, names):
        return problem
    old_configs = [read_manifest(output / name).config for name in names]
    keys = {key for old in old_configs for key in manifest_config | old if manifest_config.get(key) != old.get(key)}
    message = (
        f"data.path={output} holds data that were prepared otherwise ({', '.join(sorted(keys))}), which prepare-data does not "
        "replace; choose another data.path, or remove the folder"
    )
    return message if keys and manifest_config else ""


def _has_content(output: Path) -> bool:
    """Return False for a path without anything, and for an empty folder."""
    return output.exists() and not (output.is_dir() and not any(output.iterdir()))
