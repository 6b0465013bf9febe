from __future__ import annotations

import numpy as np
import pytest

from experiments.tiny import tiny_config
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.generate.decoder import Chunk
from pangu_sigma.generate.graph.decoder import GraphDecoder
from pangu_sigma.stored.open import open_model
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.loop import train

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A run whose experts have parted."""
    path = tmp_path_factory.mktemp("exact") / "run"
    steps = {"steps": 6, "eval_interval": 6, "checkpoint_interval": 6}
    train(tiny_config(tiny_data, model={"expert_init": "independent"}, train=steps), path)
    return open_model(path, "run")


def exact(run: StoredRun, activation: str = "fast_gelu") -> ExactModel:
    return ExactModel(run.config.model, run, activation)


def test_its_logits_are_those_of_the_graph_up_to_rounding(trained):
    graph, model = GraphDecoder.of(trained, 1), exact(trained)
    rows, each = np.arange(trained.config.model.slot_rows), trained.config.model.slot_rows
    for domain in domains_of(trained.config):
        used = trained.tokenizer.slot_rows[domain.slot]
        ids = np.random.default_rng(domain.index).choice(used[(used >= 0) & (used != trained.tokenizer.eot)], 12)
        experts_NT = trained.table.route(ids, np.full_like(ids, domain.index), np.arange(len(ids)))
        at = domain.slot * each
        mine = model.logits(at + trained.tokenizer.row_of[domain.slot, ids], experts_NT, at + rows)
        graph.begin(0, domain)
        (its,) = graph.read([Chunk(0, ids.tolist(), len(ids))])
        assert np.abs(mine - its)[:, used >= 0].max() < 1e-5
        last = model.logits(at + trained.tokenizer.row_of[domain.slot, ids], experts_NT, at + rows[::7], last=1)
        assert (last[0] == mine[-1, ::7]).all(), "a logit is the same whatever is asked for with it"


def test_sums_do_not_depend_on_how_many_rows_an_expert_gets(trained):
    model = exact(trained)
    x_TH = np.random.default_rng(0).standard_normal((40, trained.config.model.hidden)).astype(np.float32)

    def ffn(x_TH: np.ndarray) -> np.ndarray:
        return model.routed_ffn(0, np.zeros_like(x_TH), x_TH, np.zeros((1, len(x_TH)), int))

    for rows in ([3], [0, 39], range(7), range(1, 40, 2)):
        assert (ffn(x_TH[list(rows)]) == ffn(x_TH)[list(rows)]).all()
