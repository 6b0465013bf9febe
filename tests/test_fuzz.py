"""Whatever is in a file that is loaded: no crash, no hang, nothing executed, bounded memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.fuzzing import TARGETS, Executed, fuzz, watched

CASES = int(os.environ.get("PANGU_SIGMA_FUZZ_CASES", "600"))
"""Cases of all targets together."""
SEED = int(os.environ.get("PANGU_SIGMA_FUZZ_SEED", "3"))


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_loaded_is_taken_or_refused_with_a_message(name: str, tmp_path: Path):
    target = TARGETS[name](tmp_path / "valid")
    count = max(2, round(CASES * target.share / len(TARGETS) / 2))
    tallies = [fuzz(target, mutated, count, tmp_path, seed=SEED) for mutated in (False, True)]
    assert all(tally.cases >= count / 2 for tally in tallies)
    past, cases = sum(tally.past_first for tally in tallies), sum(tally.cases for tally in tallies)
    print(f"{name}: {past} of {cases} past the first look")
    assert past > 0.1 * cases or target.share < 1


def test_a_file_that_runs_a_program_would_be_noticed(tmp_path: Path):
    """The judge itself: what loads `os.system` out of a pickle is caught, even by code that catches everything."""
    with pytest.raises(Executed, match=r"os\.system"), watched(), suppress(Exception):
        os.system("true")
    with pytest.raises(Executed, match="open"), watched():
        (tmp_path / "written").write_text("")
