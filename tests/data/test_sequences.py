"""The numbers of documents, and positions in them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.batches import documents_and_positions

EOT = 9


@given(st.lists(st.lists(st.sampled_from([EOT, 1, 2]), min_size=7, max_size=7), min_size=1, max_size=4))
def test_documents_and_positions_restart_after_each_eot(rows):
    documents, found = documents_and_positions(np.array(rows), EOT)
    assert documents.dtype == found.dtype == np.int32
    for row, numbers, positions in zip(rows, documents.tolist(), found.tolist(), strict=True):
        document = position = 0
        for token, number, at in zip(row, numbers, positions, strict=True):
            assert (number, at) == (document, position)
            document, position = (document + 1, 0) if token == EOT else (document, position + 1)
