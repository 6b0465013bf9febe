"""A dense model becomes PanGu-α's files: the row of a token is its id, and what has no such row is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.hf_folders import drawn_model
from helpers.tiny import tiny_tree

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.convert.to_alpha import in_order_of_ids, write_dense_alpha
from pangu_sigma.data.vocabulary import FIRST_BYTE, FIRST_ENGLISH
from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.foreign.dense_model import LayoutError

IDS = np.array([9, 6, *range(2000, 2100), 17, *range(FIRST_BYTE, FIRST_ENGLISH)])


def dense_config(slots: int = 1, **model: int) -> Config:
    tree = tiny_tree(Path("data"))
    tree["model"] |= {"hidden": 8, "ffn": 32, "dense_layers": 3, "rre_layers": 0, "slot_rows": len(IDS)} | model
    for i, domain in enumerate(tree["domains"]):
        domain["slot"] = f"slot{i % slots}"
    return parse_config(tree)


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_reads_back_as_the_same_model_with_rows_by_id(tmp_path, caplog, ranks):
    model = drawn_model(dense_config(), tmp_path / "model", IDS)
    written = write_dense_alpha(model, tmp_path / "alpha", ranks)
    found = open_dense_model(written, heads=2, activation="fast_gelu")
    assert (found.layers, found.hidden, found.ffn, found.vocabulary) == (3, 8, 32, 40_000)
    for name, tensor in model.tensors.items():
        value, its = tensor.read(), found.tensors[name].read()
        if name != "embedding":
            assert (its == value).all(), name
            continue
        known = IDS < 40_000
        assert (its[IDS[known]] == value[known]).all()
        others = np.setdiff1d(np.arange(40_000), IDS)
        assert not its[others].any()
    assert "256 rows of tags, bytes and English pieces are left out" in caplog.text
    assert "39897 of PanGu-α's 40000 ids have no row here and get zeros" in caplog.text


def test_a_model_that_has_no_such_form_is_refused(tmp_path):
    with pytest.raises(LayoutError, match="has 2 embedding slots"):
        in_order_of_ids(drawn_model(dense_config(slots=2), tmp_path / "two", IDS))
    sparse = drawn_model(dense_config(rre_layers=1, dense_layers=2), tmp_path / "sparse", IDS)
    with pytest.raises(LayoutError, match=r"has model\.rre_layers=1; only a dense model"):
        in_order_of_ids(sparse)
    narrow = drawn_model(dense_config(ffn=16), tmp_path / "narrow", IDS)
    with pytest.raises(LayoutError, match="four times as wide"):
        write_dense_alpha(narrow, tmp_path / "alpha")
    assert not (tmp_path / "alpha").exists()
