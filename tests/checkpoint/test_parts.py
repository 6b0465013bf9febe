"""Arrays cut in one way and put together in another."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
from helpers.threads import on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.checkpoint.checkpoint import Identity, newest_checkpoint, whole_array
from pangu_sigma.checkpoint.parts import Part, SavedArray, copy_part, parts_from, parts_metadata
from pangu_sigma.checkpoint.saver import Saver

IDENTITY = Identity("vocabulary", "routing", {})


def cuts(draw: st.DrawFn, length: int) -> list[tuple[int, int]]:
    """A row of intervals that cover 0 … length - 1."""
    borders = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=2))})
    return list(itertools.pairwise(borders))


@st.composite
def tilings(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Part]:
    """Parts of an array of `shape` that cover it once: rows dealt to owners, the other axes cut."""
    owners = np.array(draw(st.lists(st.integers(0, 2), min_size=shape[0], max_size=shape[0])))
    boxes = [()]
    for length in shape[1:]:
        boxes = [(*box, cut) for box in boxes for cut in cuts(draw, length)]
    return [
        (Part(shape, Part.of_rows(shape, np.flatnonzero(owners == owner)).rows, tuple(first for first, _ in box)), box)
        for owner in np.unique(owners)
        for box in boxes
    ]


def cut_out(whole: np.ndarray, part: Part, box: tuple) -> np.ndarray:
    return whole[(part.numbers(), *(slice(None) for _ in box))][(slice(None), *(slice(a, b) for a, b in box))]


@st.composite
def recuts(draw: st.DrawFn):
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    return shape, draw(tilings(shape)), draw(tilings(shape))


@settings(deadline=None)
@given(recuts())
def test_any_tiling_fills_any_other(recut):
    shape, written, wanted = recut
    whole = np.arange(np.prod(shape)).reshape(shape)
    for part, box in wanted:
        expected = cut_out(whole, part, box)
        target = np.full_like(expected, -1)
        for p, b in written:
            copy_part(SavedArray(p, cut_out(whole, p, b)), target, part)
        assert np.array_equal(target, expected)


@settings(deadline=None)
@given(recuts())
def test_parts_come_back_from_their_text(recut):
    whole = np.zeros(recut[0])
    arrays = {str(i): SavedArray(part, cut_out(whole, part, box)) for i, (part, box) in enumerate(recut[1])}
    parts = {name: array.part for name, array in arrays.items() if not array.is_whole}
    assert parts_from(parts_metadata(arrays)) == parts


def test_parts_of_several_ranks_are_one_array_and_each_row_of_it():
    """Rows 0 and 3 are one part, and the others two, of columns."""
    values = np.random.default_rng(0).standard_normal((6, 5, 4)).astype(np.float32)
    rows = [1, 2, 4, 5]
    parts = [
        SavedArray(Part.of_rows(values.shape, np.array([0, 3])), values[[0, 3]]),
        SavedArray(Part(values.shape, ((1, 3), (4, 6)), (0, 0)), values[rows, :2]),
        SavedArray(Part(values.shape, ((1, 3), (4, 6)), (2, 0)), values[rows, 2:]),
    ]
    for saved in (parts, [SavedArray.whole(values)]):
        assert (whole_array(saved, "w1").read() == values).all()
        for number in range(6):
            assert (whole_array(saved, "w1").part(number, "w1").read() == values[number]).all()


def save_on(world: int, root: Path, step: int) -> list:
    """A matrix whose rows are dealt out to `world` ranks, and what rank 0 alone writes."""
    whole = np.arange(24.0).reshape(6, 4)

    def work(ranks):
        rows = np.arange(6)[ranks.rank :: world]
        files = {f"experts.{ranks.rank}": {"w": SavedArray(Part.of_rows((6, 4), rows), whole[rows])}}
        if ranks.first:
            files["dense"] = {"x": SavedArray.whole(np.ones(3))}
        with Saver(root, IDENTITY, 2, ranks=ranks) as saver:
            return saver.save(step, files, {"step": step})

    return on_ranks(world, work)


def test_ranks_write_one_checkpoint_that_any_number_reads(tmp_path):
    assert save_on(3, tmp_path, 7) == [tmp_path / "step_00000007"] * 3
    names = ["dense", "experts.0", "experts.1", "experts.2"]
    assert sorted(p.stem for p in (tmp_path / "step_00000007").glob("*.safetensors")) == names
    assert not list((tmp_path / "step_00000007").glob(".*"))
    for world in (1, 2, 5):
        for loaded in on_ranks(world, lambda ranks: newest_checkpoint(tmp_path, IDENTITY, ranks)):
            assert np.array_equal(loaded.array("experts", "w").read(), np.arange(24.0).reshape(6, 4))
            assert loaded.parts["dense", "x"][0].values.tolist() == [1, 1, 1]


def test_ranks_read_the_checkpoint_that_rank_0_sees(tmp_path, monkeypatch):
    """A shared file system may show another rank an old list."""
    save_on(2, tmp_path, 7)
    save_on(2, tmp_path, 8)
    listed, shown = Path.iterdir, lambda self: (p for p in listed(self) if held.first or p.name != "step_00000008")
    held = threading.local()
    monkeypatch.setattr(Path, "iterdir", shown)

    def work(ranks):
        held.first = ranks.first
        return newest_checkpoint(tmp_path, IDENTITY, ranks).step

    assert on_ranks(2, work) == [8] * 2


def test_damage_that_one_rank_finds_sends_all_to_the_checkpoint_before(tmp_path):
    save_on(3, tmp_path, 7)
    save_on(3, tmp_path, 8)
    file = tmp_path / "step_00000008" / "experts.1.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert [found.step for found in on_ranks(4, lambda ranks: newest_checkpoint(tmp_path, IDENTITY, ranks))] == [7] * 4
