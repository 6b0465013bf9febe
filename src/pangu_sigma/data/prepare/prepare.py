"""Preparation of training data (`prepare-data`): it reads text and writes the folder that `train` reads.

    documents → kept → English pieces → counts → rows of slots → ids → train | held out → files

Pieces and rows are chosen from documents that cannot be held out; the ids of the others decide which are (held_out/overlap.py).

The passes (passes.py) write into a stage beside `output`. Its folder `write/output`, whose files `prepared.py` names, gets the
name `output` when it is complete. Nothing that is there is ever replaced.
Lines that cannot be used are in the folder, and in the stage if the preparation fails.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.manifest import (
    DomainRecord,
    FileRecord,
    InputCounts,
    Manifest,
    OverlapRecord,
    Source,
    read_manifest,
    refuse_older,
)
from pangu_sigma.data.prepare.blocks import UNIT_BITS, Block, Work, block_size
from pangu_sigma.data.prepare.kept import KeptVocabulary
from pangu_sigma.data.prepare.overview import warnings_of
from pangu_sigma.data.prepare.passes import Passes, key_of
from pangu_sigma.data.prepare.quarantine import Quarantine, write_quarantine
from pangu_sigma.data.prepare.reading import (
    QUARANTINED,
    Stamp,
    hash_file,
    refuse_changes,
    sha256_of,
    stamps_of,
    unusable,
)
from pangu_sigma.data.prepare.selection import DomainSelection
from pangu_sigma.data.prepare.stages.executors import executor_of
from pangu_sigma.data.prepare.stages.stage import Stage, StageError, rows_of, staged, tables_of
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
from pangu_sigma.text.inputs import input_files, input_units
from pangu_sigma.text.layout import Layout
from pangu_sigma.text.tokenizer import MODELS, tag_language
from pangu_sigma.writable import refuse_link

logger = logging.getLogger(__name__)

_LOOK = "`prepare-data --check` prints what there is of every domain, and replaces nothing"
_FORMAT = 8
"""Version in the fingerprint: raise it when the same text would give a different folder."""
_STAGE_FORMAT = 11
"""Version of the stage: raise it when its files change."""


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
"""Everything in the calling process."""


def prepare(
    config: Config, inputs: list[Path], output: Path, options: Options = ONE_PROCESS, kept: KeptVocabulary | None = None
) -> Manifest:
    """Prepare the training data of a configuration, write it to the folder `output` and return its manifest.

    inputs: files, and folders of files. A folder that holds this very result is left alone, one with other contents is an error. A
    preparation that was killed or refused, or a preview, goes on where it was, as far as settings and text are the same. kept:
    vocabulary to keep in place of `vocabulary.keep`. Raises ConfigError or DataError for what the user can fix.
    """
    return _prepare(config, inputs, output, options, kept, writes=True)[0]


def preview(
    config: Config, inputs: list[Path], options: Options = ONE_PROCESS, kept: KeptVocabulary | None = None
) -> tuple[Manifest, list[str]]:
    """Examine text as `prepare` does and write nothing but a stage, with which `prepare` goes on.

    Return the manifest that `prepare` would write, without files, and why it would refuse the text, a problem a domain, after the
    problem of a data.path that holds other data. kept: as in `prepare`. Raises ConfigError or DataError for what leaves nothing to
    examine.
    """
    return _prepare(config, inputs, Path(config.data.path), options, kept, writes=False)


def refuse_own_output(inputs: list[Path], output: Path) -> None:
    """Raise DataError if a folder of input has the prepared data `output`, which would be read as text."""
    for path in inputs:
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise DataError(
                f"{argument('--input')} {path}: data.path={output} is below it, and prepare-data would read what it wrote; choose "
                "another data.path"
            )


def _checked_before_reading(config: Config, layout: Layout, inputs: list[Path], output: Path) -> list[Path]:
    """Return the files of `inputs`. Raises ConfigError or DataError for what can be known before anything is read."""
    for domain in domains_of(config):
        tag_language("", "", domain)  # refuses a code domain that has no tag
        if domain.name == TOKENIZER_NAME:
            raise ConfigError(
                f"domains: prepared data has a folder {TOKENIZER_NAME} of its own; give the domain another name"
            )
    refuse_own_output(inputs, output)
    files = input_files(inputs)
    for glob in layout.idle_rules(files):
        logger.warning("data.domain_of: %r matches no file of %s, so this rule does nothing", glob, argument("--input"))
    return files


def _prepare(
    config: Config, inputs: list[Path], output: Path, options: Options, kept: KeptVocabulary | None, writes: bool
) -> tuple[Manifest, list[str]]:
    """Return the manifest and the problems of domains, and log warnings. writes: False to leave the folder `output` as it is."""
    layout, kept = Layout.of(config, options.reader), kept or KeptVocabulary.of(config)
    inputs = _checked_before_reading(config, layout, inputs, output)
    existing, problem = _existing(config, output)
    if problem and writes:
        raise ConfigError(problem)
    stamps = stamps_of(inputs)
    size, mib = sum(stamp[1] for stamp in stamps), config.data.max_mib_per_domain
    with (
        closing(executor_of(options.workers, options.ray, config.data.memory_gib, size)) as executor,
        staged(output, writes) as stage,
        closing(executor),  # no process writes into the stage any more when it is removed
    ):
        stage.begin("hash", key_of([_STAGE_FORMAT, stamps]), [])
        hashes = [table["sha256"][0].as_py() for table in stage.map(executor, "hash", hash_file, inputs)]
        hashed_inputs = [[str(path), sha256] for path, sha256 in zip(inputs, hashes, strict=True)]
        decisive = _decisive(config, layout, hashed_inputs, kept)
        if writes and {manifest.fingerprint for manifest in existing} == {key_of(decisive)}:
            data = PreparedData(output, [domain.name for domain in config.domains])
            data.verify_all()
            logger.info("%s already holds this data; nothing to do", output)
            manifest, problems = data.manifest, list[str]()
        else:
            problem = problem or _otherwise(output, existing, decisive)
            if problem and writes:
                raise ConfigError(problem)
            stage = replace(stage, preparation=key_of(decisive))
            work = Work(config, stage, block_size(size), None if mib is None else int(mib * (1 << 20)), layout)
            passes = Passes(work, executor, kept, decisive)
            blocks, sources, quarantine = _read(passes, stamps, options.sources)
            try:
                manifest, problems = _do_all(passes, blocks, sources, quarantine, writes)
            except ConfigError:  # what is too little may be too little because of these lines
                for line in quarantine.report():
                    logger.warning("%s", line)
                raise
            problems = [problem, *problems] if problem else problems
            if writes:
                commit(_complete(stage), output)
    for remark in warnings_of(manifest):
        logger.warning("%s", remark)
    return manifest, problems


def _do_all(
    passes: Passes, blocks: list[Block], sources: list[list[Source]], quarantine: Quarantine, writes: bool
) -> tuple[Manifest, list[str]]:
    """Do all passes after `read`, and return the manifest and the problems of domains. sources: sources of each domain.

    writes: True to complete the folder `write/output` of the stage, and to raise DataError for problems; False for a preview.
    """
    domains = passes.work.domains
    selection = passes.select(blocks)
    counts = selection.domains
    few = {n: _too_few(passes.work, domain, counts[n]) for n, domain in enumerate(domains) if counts[n].kept < 2}
    if writes and len(few) == len(domains):
        raise DataError("\n".join([*quarantine.report(), *few.values(), _LOOK]))
    tokenizer = passes.build_tokenizer(blocks, selection)
    passes.encode(blocks)
    held_out = passes.hold_out(
        len(blocks), selection, [_more_text(passes.work, domain, counts[domain.index]) for domain in domains]
    )
    short = {n: f"domain {domains[n].name}: {row['shortage']}" for n, row in enumerate(held_out) if row["shortage"]}
    problems = [text for _, text in sorted((short | few).items())]
    if problems and writes:
        raise DataError("\n".join([*quarantine.report(), *problems, _LOOK]))
    written = passes.write(len(blocks), held_out)
    manifest = Manifest(
        fingerprint=key_of(passes.decisive),
        models={},
        vocabulary_size=tokenizer.size,
        domains={
            domain.name: DomainRecord(
                slot=domains.slot_names[domain.slot],
                rows=int((tokenizer.slot_rows[domain.slot] >= 0).sum()),
                **counts[n].model_dump(include={*InputCounts.model_fields}),
                **json.loads(written[n]["splits"]),
                unigram_entropy=written[n]["loss"],
                shift=written[n]["shift"],
                shift_deviation=written[n]["deviation"],
                sources=sources[n],
                overlap=OverlapRecord.model_validate_json(held_out[n]["overlap"]),
                files=json.loads(written[n]["files"]),
                hashes=written[n]["hashes"],
            )
            for n, domain in enumerate(domains)
        },
        quarantined=quarantine.counts,
        examples=quarantine.examples,
        config=passes.decisive,
        near_duplicates=selection.near,
    )
    if not writes:
        return manifest, problems
    folder = passes.work.stage.path("write/output")
    tokenizer.save_models(folder / TOKENIZER_NAME)
    models = {name: FileRecord(**fingerprint(folder / TOKENIZER_NAME / name)) for name in MODELS}
    manifest = manifest.model_copy(update={"models": models})
    manifest.save(folder)
    shutil.copyfile(quarantine.file, folder / QUARANTINE_NAME)
    return manifest, problems


def _complete(stage: Stage) -> Path:
    """Return the complete folder in the stage. Raises StageError if it is damaged: a machine may have lost power."""
    folder = stage.path("write/output")
    try:
        PreparedData(folder).verify_all()
    except DataError as error:
        raise StageError(f"{error}: damaged; remove {stage.folder} and call again") from error
    return folder


def _read(
    passes: Passes, stamps: list[Stamp], known_sources: Mapping[Path, list[Source]]
) -> tuple[list[Block], list[list[Source]], Quarantine]:
    """Read all text. Return the blocks, the sources of each domain, and the unusable lines. stamps: of the input files.
    known_sources: sources of files."""
    work, files = passes.work, [Path(path) for path, *_ in stamps]
    units = input_units(files, work.size)
    blocks = passes.read(units)
    refuse_changes(files, stamps)
    with work.stage.database(work.config.data.memory_gib / 2) as database:
        database.register("rows", work.stage.results("read"))
        columns = ", ".join(f'"{name}"' for name in QUARANTINED)
        rejected = f"SELECT {columns} FROM rows WHERE domain IS NULL ORDER BY document"
        rows = (row for table in tables_of(database, rejected) for row in rows_of(table))
        quarantine = write_quarantine(work.stage.path(QUARANTINE_NAME), unusable(rows, units))
        of_units = (
            f"SELECT DISTINCT document >> {UNIT_BITS} AS unit, domain FROM rows WHERE domain IS NOT NULL ORDER BY ALL"
        )
        pairs = {(units[unit].path, domain) for unit, domain in database.execute(of_units).fetchall()}
    sources = {
        path: known_sources.get(path) or [Source(name=path.name, version="", licence="the user's", sha256=sha256)]
        for path, (_, sha256) in zip(files, passes.decisive["inputs"], strict=True)
    }
    of_domains = [[s for f in files if (f, domain.index) in pairs for s in sources[f]] for domain in work.domains]
    return blocks, of_domains, quarantine


def _decisive(config: Config, layout: Layout, inputs: list[list[Any]], kept: KeptVocabulary | None) -> dict[str, Any]:
    """Return all that decides the content of the folder: settings, the text, and versions of the programs that cut it.

    inputs: path and hash of each input file.
    """
    english = config.vocabulary.english_model
    return {
        "format": _FORMAT,
        **preparation_settings(config),
        "slot_rows": config.model.slot_rows,
        "english_model": sha256_of(Path(english)) if english and Path(english).is_file() else english,
        "kept": None if kept is None else [kept.tokenizer.hash, kept.domains.slot_names],
        "reader": [layout.reader, layout.reader_sha256],
        "inputs": inputs,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("jieba", "sentencepiece")}},
    }


def _existing(config: Config, output: Path) -> tuple[list[Manifest], str]:
    """Return the manifests of a configuration's domains in `output`, or none and why prepared data there is not replaced.

    Raises DataError if a manifest is damaged, or if what is there is not prepared data, and NotWritable for a link to nothing.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        refuse_link(output)
        return [], ""
    refuse_older(output)
    if not any(output.glob("*/manifest.json")):
        raise DataError(f"{output} exists and is not prepared data (no manifest.json); choose another or remove it")
    names = [domain.name for domain in config.domains]
    problem = missing_domains(output, names)
    return [] if problem else [read_manifest(output / name) for name in names], problem


def _otherwise(output: Path, existing: list[Manifest], decisive: dict[str, Any]) -> str:
    """Return why the data in `output` are not replaced: the keys with which they were prepared otherwise; "" if there are none."""
    configs = [manifest.config for manifest in existing]
    keys = {key for config in configs for key in decisive | config if decisive.get(key) != config.get(key)}
    return (
        f"data.path={output} holds data that were prepared otherwise ({', '.join(sorted(keys))}), which prepare-data does not "
        "replace; choose another data.path, or remove the folder"
    ) * bool(keys)


def _too_few(work: Work, domain: Domain, counts: DomainSelection) -> str:
    return (
        f"domain {domain.name}: {counts.kept} usable documents; at least 2 are needed, one of them to hold out; "
        f"{_more_text(work, domain, counts)}"
    )


def _more_text(work: Work, domain: Domain, counts: DomainSelection) -> str:
    """Return advice on how to have more text of a domain."""
    if not counts.kept and not counts.left_out_bytes:
        lines = f'{{"domain": "{domain.name}", "text": …}}'
        return f"name text of it with {argument('--input')}, such as lines {lines}, or mend what makes lines unusable"
    if not counts.left_out_bytes:
        return f'pass --input your.jsonl with more lines {{"domain": "{domain.name}", "text": …}}'
    return (
        f"raise data.max_mib_per_domain={work.config.data.max_mib_per_domain:.3g}, which left "
        f"{counts.left_out_bytes / (1 << 20):.3g} MiB out"
    )
