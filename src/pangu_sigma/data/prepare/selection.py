"""Pass `select`: documents → documents to keep, and candidates for the held-out set, by the hash of each document's content.

Exact copies are dropped, and near-duplicates if the configuration says so. If there is a limit, the documents with the lowest
hashes are kept, as many as fit. This spreads them over the whole source, and does not depend on the order of the input. The SQL
statements add integers and order by unique keys, so that their results depend on the documents alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from duckdb import DuckDBPyConnection
from pydantic import BaseModel

from pangu_sigma.data.manifest import InputCounts, NearDuplicatesRecord
from pangu_sigma.data.prepare.near_duplicates import bands_of, near_duplicates
from pangu_sigma.data.prepare.reading import GROUP_BITS, ROW_BITS, in_block
from pangu_sigma.data.prepare.stage import Passes, Stage, Work, numbered, tables_of
from pangu_sigma.domains import Domain
from pangu_sigma.text.documents import Segments

CANDIDATES_PER_DOCUMENT = 5
"""Number of candidates for each held-out document: of the packaged code only a quarter repeat nothing. Candidates do not contribute
to the vocabulary, so that no vocabulary is made from text that it is measured on."""

_BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 of a token, about: in packaged text 2.6 to 4.5."""

_BATCH = 256
"""Documents that are Python objects at a time."""
_EXCERPT = 200
"""Characters that are shown of a near-duplicate."""
_NO_LIMIT = 1 << 62

_CREATE_UNIQUES = """
    CREATE TEMP TABLE uniques AS
    SELECT domain, keep, min(document) AS document, min(bytes) AS bytes, min(hold) AS hold, min(runs) AS runs,
        min(characters) AS characters, count(*) AS copies
    FROM documents WHERE domain IS NOT NULL AND bytes <= $limit GROUP BY domain, keep ORDER BY domain, keep
"""
"""The first of equal documents of a domain. What is a function of the content is equal in all of them."""
_CREATE_RETAINED = """
    CREATE TEMP TABLE retained AS SELECT * EXCLUDE upto FROM (
        SELECT *, sum(bytes) OVER (PARTITION BY domain ORDER BY keep ROWS UNBOUNDED PRECEDING) AS upto
        FROM uniques WHERE document NOT IN (SELECT document FROM near)
    ) WHERE upto <= $limit ORDER BY domain, keep
"""
_RETAINED_COUNTS = "SELECT domain, count(*) FROM retained GROUP BY domain ORDER BY domain"
_CREATE_SELECTED = """
    CREATE TEMP TABLE selected AS
    SELECT document, domain, bytes, rank, certain_runs,
        sum(certain_runs) OVER (PARTITION BY domain ORDER BY document) - certain_runs AS runs_before,
        if(rank IS NULL, characters, 0) AS certain_characters
    FROM (
        SELECT *, if(place <= candidates AND (upto <= $bytes OR place <= $least), place, NULL) AS rank,
            if(rank IS NULL, runs, 0) AS certain_runs
        FROM (
            SELECT *, row_number() OVER by_hash AS place, sum(bytes) OVER by_hash AS upto FROM retained
            WINDOW by_hash AS (PARTITION BY domain ORDER BY hold, document ROWS UNBOUNDED PRECEDING)
        ) JOIN candidate_limits USING (domain)
    ) ORDER BY document
"""
"""The candidates, which have ranks, are the documents of the lowest hashes, and of no more text than they need. Other documents are
certain to be trained on."""
_SELECTED_ROWS = "SELECT document, rank, runs_before::BIGINT AS runs_before FROM selected ORDER BY document"
_DOMAIN_COUNTS = f"""
    WITH offers AS (
        SELECT domain, count(*) AS offered, sum(bytes) AS offered_bytes, count(*) FILTER (bytes > $limit) AS too_long,
            sum(bytes) FILTER (bytes > $limit) AS long_bytes
        FROM documents WHERE domain IS NOT NULL GROUP BY domain
    ), unique_counts AS (
        SELECT domain, sum(copies - 1) AS duplicates, count(near.document) AS near_duplicates,
            count(*) - count(near.document) AS fit, sum(bytes) FILTER (near.document IS NULL) AS fit_bytes
        FROM uniques LEFT JOIN near USING (document) GROUP BY domain
    ), selected_counts AS (
        SELECT domain, count(*) AS kept, sum(bytes) AS kept_bytes, sum(certain_runs) AS runs,
            sum(certain_characters) AS characters, list(DISTINCT document >> {ROW_BITS}) AS blocks
        FROM selected GROUP BY domain
    )
    SELECT coalesce(offered, 0)::BIGINT AS offered, coalesce(duplicates, 0)::BIGINT AS duplicates,
        coalesce(near_duplicates, 0)::BIGINT AS near_duplicates, coalesce(too_long, 0)::BIGINT AS too_long,
        (coalesce(fit, 0) - coalesce(kept, 0))::BIGINT AS over_limit, coalesce(offered_bytes, 0)::BIGINT AS offered_bytes,
        (coalesce(long_bytes, 0) + coalesce(fit_bytes, 0) - coalesce(kept_bytes, 0))::BIGINT AS left_out_bytes,
        coalesce(kept, 0)::BIGINT AS kept, coalesce(runs, 0)::BIGINT AS runs, coalesce(characters, 0)::BIGINT AS characters,
        coalesce(list_sort(blocks), []) AS blocks
    FROM range($domains) domains(domain) LEFT JOIN offers USING (domain) LEFT JOIN unique_counts USING (domain)
    LEFT JOIN selected_counts USING (domain) ORDER BY domain
"""
_LOST_COUNTS = """
    SELECT lost.domain, first.domain, count(*) FROM duplicates JOIN documents lost USING (document)
    JOIN documents first ON first.document = duplicates.first GROUP BY lost.domain, first.domain ORDER BY lost.domain, first.domain
"""
_EXAMPLE_PAIRS = "SELECT first, min(document) AS other FROM duplicates GROUP BY first ORDER BY other LIMIT 3"


class DomainSelection(InputCounts):
    """Counts of a domain. kept: number of documents that are kept. runs, characters: number of the English runs in documents that
    are no candidates, and of their characters. blocks: indices in `Selection.blocks` of blocks that have documents of it."""

    kept: int
    runs: int
    characters: int
    blocks: list[int]


class Selection(BaseModel):
    """Result of `select`. blocks: numbers of the blocks that have kept documents. domains: counts of each domain. near: record of
    near-duplicates; None: they were not searched."""

    blocks: list[int]
    domains: list[DomainSelection]
    near: NearDuplicatesRecord | None


def select_documents(passes: Passes) -> Selection:
    """Select the documents to keep, and the candidates for the held-out set. The selection in the stage is used if it is of the
    same text and settings."""
    work, data = passes.work, passes.work.config.data
    fractions = [work.config.data_of(domain.index).held_out for domain in work.domains]
    passes.begin(
        "select", data.max_mib_per_domain, data.near_duplicates, data.max_held_out_tokens, data.held_out, fractions
    )
    if not work.stage.path("select/counts").exists():
        with work.stage.database(data.memory_gib / 2, passes.executor.workers) as database:
            database.register("documents", work.stage.results("read"))
            work.stage.put("select/counts", select(work, database).model_dump_json().encode())
    return selection_of(work.stage)


def select(work: Work, database: DuckDBPyConnection) -> Selection:
    """Select the documents to keep and the candidates of each domain, and write them to the file `documents` of the pass `select`.

    The file has for each document to keep, in order: `document`, its number; `rank`, its place among the candidates of its domain
    (null: no candidate); and `runs_before`, the number of English runs in earlier documents of its domain that are no candidates.
    database: has the table `documents`, with rows of `reading.ROWS`. The tables that are made from it, one from the other, are
    `near` (near-duplicates to drop), `uniques`, `retained` (within the limit of the domain) and `selected` (with ranks)."""
    near = _near_duplicates(work, database)
    mib = work.config.data.max_mib_per_domain
    byte_limit = {"limit": _NO_LIMIT if mib is None else int(mib * (1 << 20))}
    database.execute(_CREATE_UNIQUES, byte_limit)
    database.execute(_CREATE_RETAINED, byte_limit)
    sizes = dict(database.execute(_RETAINED_COUNTS).fetchall())  # domain → number of its documents
    limits = pa.array([_candidate_limit(work, domain, size) for domain, size in sizes.items()], pa.int64())
    database.register("candidate_limits", pa.table({"domain": pa.array([*sizes], pa.int32()), "candidates": limits}))
    candidate_bytes = CANDIDATES_PER_DOCUMENT * _BYTES_PER_TOKEN * work.config.data.max_held_out_tokens
    database.execute(_CREATE_SELECTED, {"bytes": candidate_bytes, "least": CANDIDATES_PER_DOCUMENT})
    work.stage.write("select/documents", tables_of(database, _SELECTED_ROWS))
    parameters = byte_limit | {"domains": len(work.domains)}
    counts = database.sql(_DOMAIN_COUNTS, params=parameters).to_arrow_table().to_pylist()
    blocks = sorted({block for row in counts for block in row["blocks"]})
    index_of = {block: index for index, block in enumerate(blocks)}
    domains = [DomainSelection(**row | {"blocks": [index_of[block] for block in row["blocks"]]}) for row in counts]
    return Selection(blocks=blocks, domains=domains, near=near)


def selection_of(stage: Stage) -> Selection:
    """Read the selection in a stage."""
    return Selection.model_validate_json(stage.value("select/counts"))


def _near_duplicates(work: Work, database: DuckDBPyConnection) -> NearDuplicatesRecord | None:
    """Make the table `near` of the near-duplicates to drop, and return the manifest's record of the search; None: none was asked
    for, and the table is empty."""
    database.execute("CREATE TEMP TABLE near (document BIGINT)")
    if (threshold := work.config.data.near_duplicates) is None:
        return None
    duplicates = near_duplicates(database, bands_of(threshold))
    database.register("duplicates", pa.table({"document": duplicates.dropped, "first": duplicates.first}))
    database.execute("INSERT INTO near SELECT document FROM duplicates ORDER BY document")
    names = [domain.name for domain in work.domains]
    return NearDuplicatesRecord(
        pairs=duplicates.pairs,
        groups=duplicates.groups,
        lost={f"{names[a]} to {names[b]}": count for a, b, count in database.execute(_LOST_COUNTS).fetchall()},
        examples=[
            (_excerpt(database, a), _excerpt(database, b)) for a, b in database.execute(_EXAMPLE_PAIRS).fetchall()
        ],
    )


def _excerpt(database: DuckDBPyConnection, document: int) -> str:
    """Return the beginning of the text of a document."""
    ((texts,),) = database.execute("SELECT texts FROM documents WHERE document = ?", [document]).fetchall()
    text = "\n".join(texts)
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"


def held_out_count(documents: int, held_out: float) -> int:
    """Return how many of `documents` documents to hold out: the fraction held_out of them, but at least one, and not all."""
    return max(0, min(max(1, round(held_out * documents)), documents - 1))


def _candidate_limit(work: Work, domain: int, documents: int) -> int:
    """Return the greatest number of candidates of a domain. documents: number of its documents.

    It is `CANDIDATES_PER_DOCUMENT` times the number that the common key `data.held_out` asks for, but at most half of the
    documents. The domain's own `held_out` only raises it where it asks for more: the vocabulary is made from all documents but
    candidates, and should seldom change with this key."""
    common_count = held_out_count(documents, work.config.data.held_out)
    domain_count = held_out_count(documents, work.config.data_of(domain).held_out)
    return max(domain_count, min(CANDIDATES_PER_DOCUMENT * common_count, documents // 2))


def selected_documents(
    work: Work, block: int, *columns: str, rows: pc.Expression | None = None
) -> Iterator[tuple[Domain, Segments, dict[str, Any]]]:
    """Yield the selected documents of a block, in order: domain, text, and a row that has `document`, `domain`, `rank`,
    `runs_before` (see `select`) and these columns of `reading.ROWS`. block: number of the block. rows: condition of the documents;
    None for all."""
    selection = work.stage.read("select/documents", rows=in_block(block))
    names = ["document", "domain", "languages", "texts", *columns]
    table = work.stage.read(f"read/{numbered(block >> GROUP_BITS)}", names, in_block(block))
    table = table.filter(pc.is_in(table["document"], selection["document"]))
    # both tables are in the order of documents
    table = table.append_column("rank", selection["rank"]).append_column("runs_before", selection["runs_before"])
    for batch in (table if rows is None else table.filter(rows)).to_batches(_BATCH):
        for row in batch.to_pylist():
            yield work.domains[row["domain"]], tuple(zip(row.pop("languages"), row.pop("texts"), strict=True)), row
