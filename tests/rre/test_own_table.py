"""Tables of one's own: what an array or a function says is what is trained with, or it is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import pangu_sigma as ps
from experiments.tiny import tiny_config
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.rre.own_table import own_table
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sections import RoutingConfig
from pangu_sigma.training.start import start_run

TEXTS = ["a", "Bc", "", "dé", "9"]


def config_of(**model: object) -> Config:
    return tiny_config(Path("data"), model=model)


def test_a_function_is_asked_for_every_token_domain_and_segment():
    asked = []

    def router(text: str, token: int, domain: str, segment: int) -> int:
        asked.append((text, token, domain, segment))
        return (len(text) + segment) % 2

    table = own_table(router, config_of(), TEXTS)
    assert len(asked) == len(set(asked)) == 2 * 3 * len(TEXTS)
    by_hand = [[[(len(text) + n) % 2 for text in TEXTS]] * 3 for n in range(2)]
    assert np.array_equal(table.first_NDV, by_hand) and table.first_NDV.dtype == np.int16
    assert (table.spread_DV == 1).all() and table.common_N is None
    ids = np.arange(len(TEXTS))
    routed = table.route(ids, np.full_like(ids, 2), ids + 7)
    assert np.array_equal(routed, 4 + np.array(by_hand)[:, 0]), "code has the experts 4 and 5, at any position"


@pytest.mark.parametrize("shape", [(), (5,), (3, 1), (2, 3, 5)])
def test_an_array_is_broadcast(shape):
    array = np.random.default_rng(0).integers(0, 2, shape)
    assert np.array_equal(own_table(array, config_of(), TEXTS).first_NDV, np.broadcast_to(array, (2, 3, 5)))


def test_common_segments_have_one_expert_for_all_domains():
    config = config_of(segments=["own", "common"], common_experts=3)
    domains = set()

    def router(text: str, token: int, domain: str, segment: int) -> int:
        domains.add((domain, segment % 2))
        return 2 if segment % 2 else 1

    table = own_table(router, config, TEXTS)
    assert domains == {("zh", 0), ("en", 0), ("code", 0), ("", 1)}
    ids = np.zeros(1, int)
    assert table.route(ids, ids + 1, ids)[:, 0].tolist() == [3, 2, 3, 2]
    with pytest.raises(
        ConfigError, match=r"expert 2 of token 0 \('a'\) in domain zh, segment 0.* the experts 0 … 1 there"
    ):
        own_table(lambda *_: 2, config, TEXTS)
    differing = np.arange(3)[:, None] % 2
    with pytest.raises(ConfigError, match="must send a token to the same one"):
        own_table(differing, config, TEXTS)


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (np.zeros((4, 5), int), r"of shape \(4, 5\) is not allowed; give .* broadcast to \(2, 3, 5\)"),
        (np.zeros(5), "an array of float64 .* whole numbers"),
        ("random", "an array of <U6"),
        (np.array([0, 1, 2, 0, 1]), r"expert 2 of token 2 \(''\) in domain zh, segment 0, does not exist"),
        (np.array(-1), "expert -1 of token 0"),
        (lambda *_: 0.5, r"router: 0\.5 for token 0 \('a'\): return a whole number"),
        (lambda *_: None, "router: None for token 0"),
    ],
)
def test_a_router_that_is_none_is_refused(router, message):
    with pytest.raises(ConfigError, match=message):
        own_table(router, config_of(), TEXTS)


def test_a_written_file_is_what_a_run_is_trained_with_and_its_hash_is_the_runs(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = tiny_config(tiny_data)
    file = ps.write_routing(plain, lambda text, token, domain, segment: token % 2, "mine.npz")
    assert file == Path("mine.npz")
    config = tiny_config(tiny_data, routing={"table": "mine.npz"})
    run = start_run(tmp_path / "run", config)
    assert (run.table.first_NDV == np.arange(run.tokenizer.size) % 2).all()
    assert run.table.hash == RoutingTable.load(file).hash == RoutingTable.load(tmp_path / "run/routing.npz").hash
    assert run.table.hash != start_run(tmp_path / "other", plain).table.hash
    assert run.config.routing.table == str(tmp_path / "mine.npz"), "found from any folder"
    # routing.npz of a run is such a file too, for the same text
    again = tiny_config(tiny_data, routing={"table": str(tmp_path / "other/routing.npz")})
    assert start_run(tmp_path / "again", again).table.hash == start_run(tmp_path / "other", plain).table.hash
    for output, message in (("mine.npz", "mine.npz: name a new file"), ("mine.npy", r"name a new file, NAME\.npz")):
        with pytest.raises(ps.UserError, match=message):
            ps.write_routing(plain, np.array(0), output)


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    file = tmp_path / "mine.npz"
    routing = RoutingConfig(table=str(file))
    with pytest.raises(DataError, match=re.escape(f"{file}: No such file")):
        draw_tables(routing, 2, 3, 5, 2, None)
    own_table(np.array(0), config_of(), TEXTS).save(file)
    assert draw_tables(routing, 2, 3, 5, 2, None).first_NDV.shape == (2, 3, 5)
    for sizes, message in (
        ((2, 3, 6, 2), r"is for \(2, 3, 5\) segments, domains and token ids, this run has \(2, 3, 6\)"),
        ((2, 3, 5, 4), r"is for 2 experts of a domain, this run has 4"),
    ):
        with pytest.raises(ConfigError, match=f"^routing.table={re.escape(str(file))} {message}; write it for this"):
            draw_tables(routing, *sizes, None)
    with pytest.raises(ConfigError, match=r"experts of each common segment, this run has \[3, 3\]"):
        draw_tables(routing, 2, 3, 5, 2, None, ["common"], 3)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"is not what was written .*; write it with ps\.write_routing"):
        draw_tables(routing, 2, 3, 5, 2, None)
    np.savez(file, first_NDV=np.zeros((2, 3, 5), int), spread_DV=np.ones((3, 5), int), experts=2)
    with pytest.raises(DataError, match=r"numbers are not of 16 bits; write it with ps\.write_routing"):
        draw_tables(routing, 2, 3, 5, 2, None)


def test_a_name_that_is_no_file_is_refused():
    with pytest.raises(ps.UserError, match=r"routing\.table: 'hash' is not allowed"):
        ps.load_config("sigma_tiny", {"routing.table": "hash"})
