"""Series of passes of a preparation, each a map of a function over units, with the small sums between them.

    hash → read: input → blocks of documents → [select] → sample: → text → [English pieces] → count: → counts of pieces
    → [rows of slots] → encode: → ids → overlap, choose: → held-out documents → write: → files

What stands in brackets is done by the caller's process, and kept in the stage like the results. Memory is bounded: a process has a
block of text, its ids, the windows of one domain's candidates, or a database of bounded memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pangu_sigma.config import Config
from pangu_sigma.data.manifest import DomainRecord, FileRecord, Manifest, Source
from pangu_sigma.data.prepare.blocks import Work
from pangu_sigma.data.prepare.encoding import (
    SAMPLED,
    count_block,
    encode_block,
    final_tokenizer,
    full_tokenizer,
    sample_block,
    sample_steps,
    summed,
)
from pangu_sigma.data.prepare.held_out.holding_out import choose, count_overlap, overlap_items
from pangu_sigma.data.prepare.kept import KeptVocabulary
from pangu_sigma.data.prepare.quarantine import Quarantine, format_reasons, write_quarantine
from pangu_sigma.data.prepare.reading import UNITS, UNUSABLE, Stamp, read, refuse_changes, unusable
from pangu_sigma.data.prepare.selection import DomainSelection, Selection, select, selection_of
from pangu_sigma.data.prepare.stages.executors import Executor, run_pass
from pangu_sigma.data.prepare.stages.stage import tables_of
from pangu_sigma.data.prepare.writing import write_domain
from pangu_sigma.data.prepared import QUARANTINE_NAME, TOKENIZER_NAME
from pangu_sigma.domains import Domain
from pangu_sigma.errors import DataError, argument
from pangu_sigma.sealed import fingerprint
from pangu_sigma.text.inputs import input_units
from pangu_sigma.text.sentencepieces import read_english, train_english
from pangu_sigma.text.tokenizer import MODELS, Tokenizer
from pangu_sigma.text.vocabulary import choose_rows

logger = logging.getLogger(__name__)

_LOOK = "`prepare-data --check` prints what there is of every domain, and replaces nothing"


def key_of(settings: Any) -> str:
    """Return the hash of settings that JSON can hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class Passes:
    """Passes of one preparation. kept: vocabulary that it keeps. decisive: settings and text that decide its result."""

    def __init__(self, work: Work, executor: Executor, kept: KeptVocabulary | None, decisive: dict[str, Any]) -> None:
        self.work, self._executor, self._kept, self._decisive = work, executor, kept, decisive
        self._begun = ["hash"]  # by the caller, because what it hashes is decisive
        self._key = ""

    def complete(
        self, sources: Sequence[list[Source]], quarantine: Quarantine, writes: bool
    ) -> tuple[Manifest, list[str]]:
        """Do all passes after `read`, and return the manifest and the problems of domains. sources, quarantine: results of `read`.

        writes: True to complete the folder `write/output` of the stage, and to raise DataError for problems; False for a preview.
        """
        domains, selection = self.work.domains, self._select()
        tokenizer = self._tokenizer(selection)
        problems = [
            f"domain {domain.name}: {reason} {_more_text(self.work.config, domain, counts)}"
            for domain, counts, shortage in zip(domains, selection.domains, self._hold_out(selection), strict=True)
            if (reason := _too_few(counts) if counts.kept < 2 else shortage)
        ]
        if problems and writes:
            raise DataError("\n".join([*problems, _LOOK]))
        self._begin("write")
        records = [
            json.loads(table["record"][0].as_py()) for table in self._map("write", write_domain, range(len(domains)))
        ]
        folder, models = self.work.stage.path("write/output"), dict[str, FileRecord]()
        if writes:
            tokenizer.save_models(folder / TOKENIZER_NAME)
            models = {name: FileRecord(**fingerprint(folder / TOKENIZER_NAME / name)) for name in MODELS}
        manifest = Manifest(
            fingerprint=key_of(self._decisive),
            models=models,
            vocabulary_size=tokenizer.size,
            domains={
                domain.name: DomainRecord(**record, sources=of_domain)
                for domain, record, of_domain in zip(domains, records, sources, strict=True)
            },
            quarantined=quarantine.counts,
            examples=quarantine.examples,
            config=self._decisive,
            near_duplicates=selection.near,
        )
        if writes:
            manifest.save(folder)
            quarantine.file.replace(folder / QUARANTINE_NAME)  # the last file of a complete folder
        return manifest, problems

    def read(
        self, stamps: Sequence[Stamp], known_sources: Mapping[Path, list[Source]]
    ) -> tuple[list[list[Source]], Quarantine]:
        """Read all text. Return the sources of each domain, and the unusable lines. stamps: of the input files. known_sources:
        sources of files."""
        work, decisive, files = self.work, self._decisive, [Path(path) for path, *_ in stamps]
        units = input_units(files, work.size)
        domains = [[domain.name, domain.format, domain.language] for domain in work.domains]
        text = [decisive[key] for key in ("inputs", "text_key", "domain_of", "reader", "versions")]
        near = work.config.data.near_duplicates is not None and [version(n) for n in ("datasketch", "xxhash")]
        self._begin("read", work.size, domains, text, near)
        self._map("read", read, [*enumerate(units)])
        refuse_changes(files, stamps)
        with work.stage.database(work.config.data.memory_gib / 2) as database:
            database.register("rows", work.stage.results("read"))
            rows = (row for table in tables_of(database, UNUSABLE) for row in table.to_pylist())
            quarantine = write_quarantine(work.stage.path(QUARANTINE_NAME), unusable(rows, units))
            pairs = {(units[unit].path, domain) for unit, domain in database.execute(UNITS).fetchall()}
        if quarantine.counts:  # said at once: what is too little later may be too little because of these lines
            reasons = format_reasons(quarantine.counts, quarantine.examples)
            logger.warning("%s\nall of them are in %s, and in data.path when it is complete", reasons, quarantine.file)
        sources = {
            path: known_sources.get(path) or [Source(name=path.name, version="", licence="the user's", sha256=sha256)]
            for path, (_, sha256) in zip(files, decisive["inputs"], strict=True)
        }
        of_domains = [[s for f in files if (f, domain.index) in pairs for s in sources[f]] for domain in work.domains]
        return of_domains, quarantine

    def _begin(self, name: str, *settings: Any) -> None:
        """Begin a pass, whose results depend on the passes before it and on these settings."""
        self._key = key_of([self._key, name, settings])
        self.work.stage.begin(name, self._key, self._begun)
        self._begun.append(name)

    def _map(self, name: str, function: Callable[..., Iterator[pa.Table]], units: Sequence[Any]) -> Iterator[pa.Table]:
        """Do a pass that was begun, and return its results. function: takes the work and a unit."""
        return run_pass(self._executor, self.work.stage, name, partial(function, self.work), units)

    def _select(self) -> Selection:
        """Select the documents to keep, and the candidates for the held-out set."""
        work, data = self.work, self.work.config.data
        fractions = [work.config.data_of(domain.index).held_out for domain in work.domains]
        self._begin(
            "select", data.max_mib_per_domain, data.near_duplicates, data.max_held_out_tokens, data.held_out, fractions
        )

        def content() -> bytes:
            with work.stage.database(data.memory_gib / 2, self._executor.workers) as database:
                database.register("documents", work.stage.results("read"))
                return select(work, database).model_dump_json().encode()

        work.stage.once("select/counts", content)
        return selection_of(work.stage)

    def _tokenizer(self, selection: Selection) -> Tokenizer:
        """Build the tokenizer from documents that are no held-out candidates: English pieces, and the rows of every slot."""
        config, decisive = self.work.config, self._decisive
        model = config.vocabulary.english_model or (self._kept and self._kept.english_model)
        self._begin("sample", *(decisive[key] for key in ("english_pieces", "english_model", "kept")))
        self.work.stage.once("sample/english", lambda: read_english(Path(model)) if model else self._english(selection))
        names = [self.work.domains.slot_names[domain.slot] for domain in self.work.domains]
        self._begin("count", config.model.slot_rows, names)
        self.work.stage.once("count/rows", lambda: self._rows(selection.blocks).tobytes())
        return final_tokenizer(self.work)

    def _english(self, selection: Selection) -> bytes:
        """Learn the English pieces, and return their model."""
        pieces = self.work.config.vocabulary.english_pieces
        steps = sample_steps(selection.domains, pieces)
        samples = pa.concat_tables(
            [SAMPLED.empty_table(), *self._map("sample", partial(sample_block, steps=steps), selection.blocks)]
        )
        text: list[str] = samples.sort_by("domain")["text"].to_pylist()
        mib = sum(map(len, text)) / (1 << 20)
        logger.info("building the vocabulary: learning %s English pieces from %.1f MiB of text", f"{pieces:,}", mib)
        return train_english(text, pieces)

    def _rows(self, blocks: Sequence[int]) -> np.ndarray:
        """Choose the token id of each row of every slot, int32 [slots, R]."""
        domains, rows, tokenizer = self.work.domains, self.work.config.model.slot_rows, full_tokenizer(self.work)
        slots = range(len(domains.slot_names))
        kept_ids = [self._kept.ids(tokenizer.vocabulary, domains, slot) if self._kept else [] for slot in slots]
        if tokenizer.size <= rows:
            all_ids = [[*dict.fromkeys([*ids, *range(tokenizer.size)])] for ids in kept_ids]
            return np.pad(np.array(all_ids, np.int32), ((0, 0), (0, rows - tokenizer.size)), constant_values=-1)
        counts = summed(self._map("count", count_block, blocks), len(slots), tokenizer.size)
        chosen = [
            choose_rows(tokenizer.vocabulary, domains.in_slot(slot), counts[slot], rows, kept_ids[slot])
            for slot in slots
        ]
        return np.stack(chosen)

    def _hold_out(self, selection: Selection) -> list[str]:
        """Encode the kept documents, and choose those to hold out of each domain. Return for each why there are too few, or ""."""
        self._begin("encode")
        self._map("encode", encode_block, selection.blocks)
        self._begin("overlap")
        self._map("overlap", count_overlap, overlap_items(selection))
        self._begin("choose", self._decisive, self.work.config.model.seq_length)
        return [table["shortage"][0].as_py() for table in self._map("choose", choose, range(len(self.work.domains)))]


def _too_few(counts: DomainSelection) -> str:
    return f"{counts.kept} usable documents; at least 2 are needed, one of them to hold out;"


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
