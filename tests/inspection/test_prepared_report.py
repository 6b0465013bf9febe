"""The numbers of a prepared folder are those that counting its tokens one by one gives; its picture shows them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from matplotlib.image import imread

import pangu_sigma as ps
from pangu_sigma.cli import main
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.data.prepare.overview import format_overview
from pangu_sigma.data.prepared import PreparedData, is_prepared
from pangu_sigma.errors import DataError
from pangu_sigma.inspection.prepared_report import (
    EXPERTS,
    draw_prepared,
    expected_load,
    measure_prepared,
)
from pangu_sigma.rre.table import draw_tables
from pangu_sigma.sections import RoutingConfig


@pytest.fixture(scope="module")
def numbers(tiny_data):
    return measure_prepared(PreparedData(tiny_data))


@pytest.fixture(scope="module")
def read(tiny_data):
    """Domain → split → ids of every document, read from the token files."""
    data = PreparedData(tiny_data)
    size, found = data.tokenizer().size, {}
    for name in data.manifest.domains:
        found[name] = {}
        for split in ("train", "held_out"):
            file = data.tokens(name, split, size)
            ends = np.cumsum(file.lengths)
            found[name][split] = [
                file.read(int(end - length), int(length)).tolist()
                for end, length in zip(ends, file.lengths, strict=True)
            ]
    return found


def test_tokens_lengths_and_shares_are_those_of_the_files(numbers, read):
    assert [*numbers["domains"]] == ["zh", "en", "code"]
    total = sum(len(ids) for of in read.values() for documents in of.values() for ids in documents)
    assert numbers["tokens"] == total
    for name, each in numbers["domains"].items():
        lengths = [len(ids) for documents in read[name].values() for ids in documents]
        assert (each["median"], each["longest"], each["documents"]) == (np.median(lengths), max(lengths), 120)
        assert each["share"] == sum(lengths) / total


def test_fertility_is_tokens_over_the_characters_and_bytes_of_the_text(tiny_data, numbers, read):
    tokenizer = PreparedData(tiny_data).tokenizer()
    for name, each in numbers["domains"].items():
        training = read[name]["train"]
        text = "".join(tokenizer.decode(ids) for ids in training)
        tokens = sum(map(len, training))
        assert each["tokens_per_character"] == tokens / len(text)
        assert each["tokens_per_byte"] == tokens / len(text.encode()), "this text is as it was given"


def test_the_expected_load_is_that_of_the_tokens_routed_by_the_tables(tiny_data, numbers, read):
    for (name, domain), every_V in zip(numbers["domains"].items(), PreparedData(tiny_data).frequencies(), strict=True):
        counts_V = np.bincount(np.concatenate(read[name]["train"]))
        ids = np.arange(len(counts_V))
        for table in ("random", "balanced"):
            drawn = draw_tables(RoutingConfig(table=table), 4, 1, len(ids), 4, counts_V[None])
            loads_NE = np.zeros((4, 4))
            for position in range(12):  # an id is spread over 1 … 4 experts
                routed_NV = drawn.route(ids, 0 * ids, np.full_like(ids, position))
                loads_NE += [np.bincount(experts_V, counts_V / 12, 4) for experts_V in routed_NV]
            by_hand = (loads_NE.max(axis=1) / loads_NE.mean(axis=1)).mean()
            assert expected_load(counts_V, table, 4) == pytest.approx(by_hand)
        assert 1 <= domain["load"]["balanced"] <= domain["load"]["random"] == expected_load(every_V, "random", EXPERTS)
    assert expected_load(np.zeros(50, np.int64), "random", 4) == 1.0, "without tokens it is even"


def test_a_damaged_file_is_refused_and_other_folders_are_no_prepared_data(tiny_data, tmp_path):
    assert is_prepared(tiny_data)
    assert not is_prepared(tmp_path)
    data = shutil.copytree(tiny_data, tmp_path / "data")
    file = data / "en" / "frequencies.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"en/frequencies\.npy: "):
        measure_prepared(PreparedData(data))


def test_the_picture_shows_tokens_and_loads(numbers):
    domains = numbers["domains"].values()
    tokens, load = draw_prepared(numbers).axes
    assert [bar.get_width() for bar in tokens.patches] == [each["tokens"] for each in domains]
    for line, table in zip(load.lines, ("random", "balanced"), strict=False):
        assert [*line.get_xdata()] == [each["load"][table] for each in domains]


def test_the_command_and_the_function_print_and_draw_beside_the_folder(tiny_data, tmp_path, capsys, caplog):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    before = {file: file.read_bytes() for file in data.rglob("*") if file.is_file()}
    assert main(["report", str(data)]) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[:4]] == ["domain", "zh", "en", "code"]
    assert "if the model has 16 experts a domain" in table
    assert format_overview(load_manifest(data)) in table, "what was left out"
    found = ps.report(data)
    assert found["report"] == str(tmp_path / "data.report.png")
    assert min(imread(found["report"]).shape[:2]) > 200
    assert {file: file.read_bytes() for file in data.rglob("*") if file.is_file()} == before, "nothing is written there"
    for each in found["domains"].values():
        assert f"{each['load']['random']:.2f} / {each['load']['balanced']:.2f}\n" in table
    assert ps.report(data, against=[tmp_path]) == found
    assert f"against has no effect: it compares runs, and {data} is prepared data" in caplog.messages
    (tmp_path / "data.report.png").unlink()
    (tmp_path / "data.report.png").mkdir()
    with pytest.raises(DataError, match=r"cannot write .*data\.report\.png"):
        ps.report(data)
