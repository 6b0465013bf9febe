"""A manifest of prepared data, written down by hand."""

from __future__ import annotations

from pangu_sigma.data.manifest import DomainRecord, Manifest, OverlapRecord, SplitCounts

MIB = 1 << 20


def overlap(wanted: int = 10, share: float = 0.002) -> OverlapRecord:
    return OverlapRecord(
        window=13, windows=180, share=share, wanted=wanted, passed_over=7, passed_over_tokens=90,
        max_overlap=0.25, min_tokens=10_000, boilerplate=0.38, boilerplate_windows=0,
    )  # fmt: skip


def manifest(
    limit: float | None = None, inputs: list | None = None, quarantined: dict | None = None, **changes
) -> Manifest:
    counts = SplitCounts(documents=90, tokens=1_000, bytes=5 * MIB, unknown=1, folded=700)
    held_out = SplitCounts(documents=10, tokens=200, bytes=MIB, unknown=1, folded=70)
    record = DomainRecord(
        slot="zh", rows=600, offered=130, duplicates=5, too_long=1, train=counts, held_out=held_out, unigram_entropy=4.0,
        shift=0.25, shift_deviation=0.5, sources=[], over_limit=24, offered_bytes=30 * MIB,
        left_out_bytes=24 * MIB, overlap=overlap(), near_duplicates=0,
    )  # fmt: skip
    config = {
        "domains": [["zh"], ["en"]], "slot_rows": 600, "max_mib_per_domain": limit, "inputs": inputs or [],
        "boilerplate_documents": 10, "max_boilerplate": 0.5, "max_held_out_tokens": 1_000,
    }  # fmt: skip
    domains = {"zh": record.model_copy(update=changes), "en": record}
    return Manifest(
        fingerprint="", models={}, vocabulary_size=1, domains=domains, quarantined=quarantined or {}, config=config,
        examples={"not JSON": "a.jsonl:3: what"},
    )  # fmt: skip
