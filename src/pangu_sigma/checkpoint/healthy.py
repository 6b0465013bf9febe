"""Search for the checkpoint that a run with values that are not finite can go back to: whole, and every array of it finite."""

from __future__ import annotations

from pathlib import Path

from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.format import CheckpointError
from pangu_sigma.checkpoint.not_finite import count_not_finite
from pangu_sigma.checkpoint.root import candidates
from pangu_sigma.errors import argument
from pangu_sigma.ranks.ranks import Ranks


def way_on(root: Path, ranks: Ranks) -> str:
    """Return the advice to the user of a run that cannot go on. All ranks call this."""
    healthy, ill = last_healthy(root, ranks)
    if healthy is None:
        return f"No checkpoint in {root} has only finite values: start again in another folder, with {argument('--output')}."
    remove = f"remove {', '.join(map(str, ill))}, and " if ill else ""
    again = "start the same command again, which goes on from it."
    return f"The last checkpoint whose values are all finite is {healthy}: {remove}{again}"


def last_healthy(root: Path, ranks: Ranks) -> tuple[Path | None, list[Path]]:
    """Return the first intact, finite checkpoint that the run would resume from, or None, and those before it, which are not.

    All ranks call this; each checks some of the files.
    """
    ill: list[Path] = []
    for path in candidates(root) if root.is_dir() else ():
        try:
            files = list(load_checkpoint(path, ranks=ranks).files.values())[ranks.rank :: ranks.world]
        except CheckpointError:
            ill.append(path)
            continue
        if not ranks.any(any(count_not_finite(array.values) for arrays in files for array in arrays.values())):
            return path, ill
        ill.append(path)
    return None, ill
