from __future__ import annotations

import pytest
from helpers.manifests import manifest, overlap

from pangu_sigma.data.manifest import SplitCounts
from pangu_sigma.data.prepare.overview import format_overview, warnings_of


def test_the_table_says_what_became_of_the_text_in_the_order_of_the_configuration():
    lines = format_overview(manifest(quarantined={"not JSON": 2})).splitlines()
    assert lines[0].split("  ")[0] == "domain"
    assert " ".join(lines[1].split()) == "zh 130 30.0 5 1 24 100 6.0 10 7 0.20% 38.0% +0.25 ± 0.50 1,200 0.17% 770"
    assert [line.split()[0] for line in lines[1:3]] == ["zh", "en"]
    assert lines[3].startswith("shift: unigram loss of the held-out text above that of random text of its domain")
    assert lines[4:] == ["2 lines are unusable and quarantined:", "  2 × not JSON, first a.jsonl:3: what"]


def test_there_is_no_table_without_a_usable_document():
    empty = manifest(quarantined={"not JSON": 2})
    records = {name: record.model_copy(update={"offered": 0}) for name, record in empty.domains.items()}
    assert format_overview(empty.model_copy(update={"domains": records})).splitlines() == [
        "no document of any domain is usable",
        "2 lines are unusable and quarantined:",
        "  2 × not JSON, first a.jsonl:3: what",
    ]


@pytest.mark.parametrize(("passed_over", "advice"), [(0, "more documents"), (7, "up to 1, to pass over fewer")])
def test_an_unfair_sample_is_told_the_keys(passed_over, advice):
    record = manifest(shift=3.5, overlap=overlap().model_copy(update={"passed_over": passed_over}))
    [sentence] = [text for text in warnings_of(record) if "no fair sample" in text]
    assert "raise data.held_out" in sentence and sentence.endswith(advice)


def test_text_that_is_left_out_is_said_with_the_key():
    assert warnings_of(manifest(limit=6.0, inputs=[["a", "b"]]))[0] == (
        "zh: 24.0 of 30.0 MiB were left out by data.max_mib_per_domain=6.0; raise it, or set it to null for all of input"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"duplicates": 14}, "zh: 11% of the documents are exact copies"),
        (
            {"train": SplitCounts(documents=1, tokens=800, bytes=1, unknown=5, folded=0)},
            "zh: 0.60% of the tokens are <unk>",
        ),
        (
            {"overlap": overlap(wanted=12)},
            "zh: 10 documents are held out, and not 12 as held_out says, because the others repeat text of",
        ),
        (
            {"overlap": overlap(wanted=8)},
            "zh: 10 documents are held out, and not 8 as held_out says, to have min_held_out_tokens=10,000",
        ),
        (
            {"overlap": overlap(wanted=12).model_copy(update={"passed_over": 0})},
            "zh: 10 documents are held out, and not 12 as held_out says, to have at most data.max_held_out_tokens=1,000",
        ),
        (
            {"shift": 3.5},
            "zh: its held-out text is no fair sample of it: its unigram loss is 3.50 nats a token above that of random documents",
        ),
        (
            {"overlap": overlap().model_copy(update={"boilerplate": 0.824})},
            "zh: 82% of the tokens of its held-out text are boilerplate: collapse blanks",
        ),
        ({"overlap": overlap(share=0.2)}, "zh: 20.0% of the held-out text stands in the training text (windows of 13"),
    ],
)
def test_what_bites_is_said(changes, said):
    quiet = {"left_out_bytes": 0, "over_limit": 0}
    assert [text for text in warnings_of(manifest(**quiet)) if text.startswith("zh")] == []
    assert [text for text in warnings_of(manifest(**quiet, **changes)) if text.startswith(said)]
