"""The exact path gives a number the same bits whatever is computed with it. That its numbers are those of the graph is in
tests/generate/graph/test_decoder.py, and with segments in tests/convert/test_mindir.py."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.domains import domains_of
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun


@pytest.fixture(scope="module")
def run(tiny_run) -> StoredRun:
    return open_model(tiny_run, "run")


def test_a_logit_is_the_same_whatever_is_asked_for_with_it(run):
    model, domain = ExactModel(run.config.model, run, "fast_gelu"), domains_of(run.config).named("en")
    ids = np.array(run.tokenizer.prompt("the cat sees a small old dog", domain))
    experts_NT = run.table.route(ids, np.full_like(ids, domain.index), np.arange(len(ids)))
    first, rows = domain.slot * run.config.model.slot_rows, np.arange(run.config.model.slot_rows)
    rows_T = first + run.tokenizer.row_of[domain.slot, ids]
    every_TR = model.logits(rows_T, experts_NT, first + rows)
    assert (model.logits(rows_T, experts_NT, first + rows[::7])[-1] == every_TR[-1, ::7]).all()


def test_sums_do_not_depend_on_how_many_rows_an_expert_gets(run):
    model = ExactModel(run.config.model, run, "fast_gelu")
    x_TH = np.random.default_rng(0).standard_normal((40, run.config.model.hidden)).astype(np.float32)

    def ffn(x_TH: np.ndarray) -> np.ndarray:
        return model.routed_ffn(0, np.zeros_like(x_TH), x_TH, np.zeros((1, len(x_TH)), int))

    for rows in ([3], [0, 39], range(7), range(1, 40, 2)):
        assert (ffn(x_TH[list(rows)]) == ffn(x_TH)[list(rows)]).all()
