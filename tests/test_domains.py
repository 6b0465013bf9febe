"""Domains: groups of experts that cover the layer without overlap, and slots that domains may share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.tiny import tiny_config
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.domains import Domains, chosen_domains, domains_of


def built(slots: list[str], experts: int = 2) -> Domains:
    model = {"hidden": 8, "ffn": 16, "heads": 2, "dense_layers": 1, "rre_layers": 1, "experts_per_domain": experts}
    domains = [{"name": f"d{i}", "slot": slot, "weight": i + 0.5} for i, slot in enumerate(slots)]
    return domains_of(parse_config({"name": "test", "model": model, "domains": domains}))


@given(slots=st.lists(st.sampled_from("abc"), min_size=1, max_size=6), experts=st.integers(1, 5))
def test_groups_tile_the_experts_and_slots_are_numbered_without_gaps(slots: list[str], experts: int):
    domains = built(slots, experts)
    owned = [e for d in domains for e in range(d.first_expert, d.first_expert + d.experts)]
    assert owned == list(range(len(slots) * experts))
    assert {d.slot for d in domains} == set(range(len(set(slots))))
    assert [domains.slot_names[d.slot] for d in domains] == slots
    assert [d.index for d in domains] == list(range(len(domains)))


def test_domains_are_found_by_index_by_name_and_by_slot():
    domains = built(["a", "b", "a"])
    assert domains[1] is domains.named("d1")
    assert [d.name for d in domains.in_slot(0)] == ["d0", "d2"]
    assert domains.in_slot(7) == []
    assert domains[2].weight == 2.5


@pytest.mark.parametrize(
    ("kept", "dropped", "message"),
    [
        ([], [], r"keep, or those to leave away with drop, not neither; there are zh, en, code"),
        (["zh"], ["en"], r"not both"),
        (["fr"], [], r"unknown domain 'fr'; this configuration has zh, en, code"),
        ([], ["zh", "en", "code"], r"no domain would be left"),
    ],
)
def test_domains_that_cannot_be_chosen_are_refused(tmp_path, kept, dropped, message):
    with pytest.raises(ConfigError, match=message):
        chosen_domains(tiny_config(tmp_path), kept, dropped)
