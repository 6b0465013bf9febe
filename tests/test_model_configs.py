"""Every shipped configuration loads, counts what its name says, and survives a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

from pangu_sigma.config import Config
from pangu_sigma.config_file import dump_config, load_config
from pangu_sigma.domains import domains_of

FOLDER = Path(__file__).parents[1] / "model_configs"
PATHS = sorted(FOLDER.glob("*.yaml"))
TOTALS = {
    "sigma_minute": 2.402e6,
    "sigma_paper_tiny": 46.34e6,
    "sigma_tiny": 46.34e6,
    "sigma_small": 329.4e6,
    "alpha_2_6b": 2.625e9,
    "alpha_13b": 12.80e9,
    "sigma_38b": 37.97e9,
    "sigma_1t": 1.0854e12,
}


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest) -> Config:
    return load_config(request.param)


def tensor_sizes(config: Config) -> dict[str, int]:
    """Elements of every tensor of the network, written down layer by layer, independent of Config.num_params."""
    m = config.model
    sizes = {
        "embedding": len({d.slot for d in config.domains}) * m.slot_rows * m.hidden,
        "positions": m.seq_length * m.hidden,
        "query_positions": m.seq_length * m.hidden,
        "final_norm": m.hidden + m.hidden,
    }
    for layer in range(m.dense_layers + m.rre_layers):
        for name in ("query", "key", "value", "output"):
            sizes[f"{layer}.{name}"] = m.hidden * m.hidden + m.hidden
        sizes[f"{layer}.attention_norm"] = sizes[f"{layer}.ffn_norm"] = 2 * m.hidden
        sizes[f"{layer}.row_scale"] = 1 if m.rows else 0
        if layer < m.dense_layers:
            sizes[f"{layer}.ffn"] = m.ffn * m.hidden + m.ffn + m.hidden * m.ffn + m.hidden
            continue
        own, width = len(config.domains) * m.experts_per_domain, m.ffn // len(m.segments)
        sizes[f"{layer}.b2"] = own * m.hidden
        for s, kind in enumerate(m.segments):
            experts = own if kind == "own" else m.common_experts
            sizes[f"{layer}.{s}.ffn"] = experts * (width * m.hidden + width + m.hidden * width)
    return sizes


def test_every_shipped_configuration_is_named_here_by_its_file():
    assert {path.stem for path in PATHS} == TOTALS.keys() == {load_config(path).name for path in PATHS}


def test_total_is_the_sum_over_tensors_and_the_promised_number(config: Config):
    count = config.num_params()
    assert count.total == sum(tensor_sizes(config).values()) == count.dense + count.experts + count.embeddings
    assert count.total == pytest.approx(TOTALS[config.name], rel=1e-3)


def test_round_trip(config: Config, tmp_path: Path):
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config


def test_the_trillion_has_the_papers_domains():
    config = load_config(FOLDER / "sigma_1t.yaml")
    domains = domains_of(config)
    assert (len(domains), config.experts, config.active_of("own"), config.slots) == (40, 640, 64, 3)
    assert [d.name for d in domains][:4] == ["zh", "en", "bilingual", "python"]
    assert sum(d.weight for d in domains) == pytest.approx(329, rel=0.01)  # billions of tokens
    assert sum(d.format == "code" for d in domains) == 1 + 6
    alone = {domains.slot_names[d.slot] for d in domains if len(domains.in_slot(d.slot)) == 1}
    assert alone == {"zh", "bilingual"}


def test_a_token_meets_as_much_in_the_trillion_as_in_its_parent():
    active = {
        name: load_config(FOLDER / f"{name}.yaml").num_params().active_per_token
        for name in ("alpha_13b", "sigma_38b", "sigma_1t")
    }
    assert set(active.values()) == {12_585_584_640}


def test_the_38b_is_one_domain_of_the_trillion():
    part, whole = load_config(FOLDER / "sigma_38b.yaml"), load_config(FOLDER / "sigma_1t.yaml")
    assert part.model == whole.model
    assert part.train.optimizer == whole.train.optimizer
