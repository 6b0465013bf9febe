"""The first success: text that is installed becomes a model that knows more than how frequent tokens are."""

from __future__ import annotations

from collections import Counter

import pytest

import pangu_sigma as ps
from examples import minute


def test_each_domain_has_text_within_its_limit():
    sizes = Counter[str]()
    for document in minute.documents():
        sizes[document["domain"]] += len(document["text"].encode())
    assert sizes.keys() == {"en", "code"}
    assert min(sizes.values()) > 300 << 10
    assert max(sizes.values()) <= minute.KIB << 10


@pytest.mark.slow
def test_it_beats_counting_words_in_every_domain(tmp_path):
    minute.main(tmp_path)
    for measured in ps.load(tmp_path / "run").evaluate().values():
        assert measured["loss"] < measured["unigram"] - 1.0
