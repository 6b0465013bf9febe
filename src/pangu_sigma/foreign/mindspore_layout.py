"""Layout of MindSpore's PanGu-α: one `.ckpt`, or a folder of them cut by a strategy file, with three tables as `.npy`."""

from __future__ import annotations

import re
from pathlib import Path

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_model import DenseModel, Facts, dense_model_of
from pangu_sigma.foreign.file_tensors import MIXED, Joined, npy_source
from pangu_sigma.foreign.mindspore_files import open_ckpt
from pangu_sigma.foreign.names import LATER, TABLES, Counterpart, counterparts
from pangu_sigma.foreign.strategy_file import Cut, read_strategy

_STATE = re.compile(
    r"(adam_[mv]|moment[12s]?|accu_grads)\.|scale_sense$|global_step$|current_iterator_step$|last_overflow_iterator_step$|"
    r"(epoch|step)_num$|learning_rate$|beta[12]_power$|.*\.(key|value)_past$|.*is_first_iteration$"
)
"""Pattern of names of training and decoding state beside the weights."""
_PART = re.compile(r"fil(?:ert|ter)ed_(\d{1,6})\.ckpt$")
"""Pattern of the release's file names; its spelling is `filerted_`."""


def is_mindspore(path: Path) -> bool:
    """Return True if a file or folder looks like a MindSpore checkpoint of PanGu-α."""
    if path.is_file():
        return path.suffix == ".ckpt"
    return any(file.suffix == ".ckpt" for file in path.iterdir())


def open_mindspore(path: Path) -> DenseModel:
    """Open a MindSpore checkpoint of PanGu-α, a file or folder. Raises LayoutError, which names the file or tensor."""
    folder = path if path.is_dir() else None
    files = sorted(path.glob("*.ckpt")) if folder else [path]
    strategies = [file for file in files if "strategy" in file.name.lower()] if folder else []
    weights = [file for file in files if file not in strategies]
    if any(_PART.match(file.name) for file in weights):
        sources, unused = _joined(path, _in_order(path, weights), strategies)
    elif len(weights) == 1:
        sources, unused = _split(open_ckpt(weights[0]))
        unused |= {file.name: "how ranks cut a model; this one is whole" for file in strategies}
    else:
        raise LayoutError(
            f"{path}: {len(weights)} checkpoint files without a strategy; give one, or filerted_<rank>.ckpt with theirs"
        )
    tables = _tables(path, folder, sources, unused)
    blocks = {int(match[1]) for name in sources if (match := re.match(r"backbone\.blocks\.(\d{1,9})\.", name))}
    if blocks and not any(name.startswith("backbone.top_query_layer.") for name in sources):
        raise LayoutError(
            f"{path}: backbone.top_query_layer is missing and backbone.blocks.{max(blocks)} stands for it, as in pipeline stages, "
            "whose last LayerNorm comes after the query layer, not before it as in our network; it cannot be used"
        )
    rules = counterparts("mindspore", path, sources)
    rules |= {name: Counterpart(ours) for ours, name in tables.items()}
    later = any(name in sources for name in LATER)  # its network computes fast GELU
    facts = Facts(activation="fast_gelu" if later else "tanh")
    return dense_model_of(path, "mindspore", sources, rules, facts, unused)


def _in_order(path: Path, weights: list[Path]) -> list[Path]:
    """Return the files of the ranks in their order. Raises LayoutError when one is missing or does not belong."""
    by_rank: dict[int, Path] = {}
    for file in weights:
        match = _PART.match(file.name)
        if match is None:
            raise LayoutError(f"{path}: {file.name} is beside filerted_<rank>.ckpt and is none of them; move it away")
        if by_rank.setdefault(int(match[1]), file) is not file:
            raise LayoutError(f"{path}: {by_rank[int(match[1])].name} and {file.name} are of one rank; move one away")
    for rank in range(len(by_rank)):
        if rank not in by_rank:
            raise LayoutError(
                f"{path}: filerted_{rank}.ckpt is missing, {len(by_rank)} others are there; download it (the release has 512)"
            )
    return [by_rank[rank] for rank in range(len(by_rank))]


def _split(tensors: dict[str, Joined]) -> tuple[dict[str, Joined], dict[str, str]]:
    """Split tensors into weights and training state."""
    unused = {name: "state of training or decoding" for name in tensors if _STATE.match(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in unused}, unused


def _joined(path: Path, files: list[Path], strategies: list[Path]) -> tuple[dict[str, Joined], dict[str, str]]:
    """Join the tensors of the ranks' files. Raises LayoutError unless there is one strategy file, which fits them."""
    if len(strategies) != 1:
        raise LayoutError(f"{path}: {len(strategies)} strategy files; put only the release's *strategy*.ckpt here")
    strategy = strategies[0]
    cuts = read_strategy(strategy)
    ranks = next(iter(cuts.values())).ranks
    if ranks != len(files):
        raise LayoutError(f"{path}: {len(files)} files of ranks, {strategy.name} is for {ranks}; take a whole release")
    weights, unused = _split(open_ckpt(files[0]))
    for name, tensor in weights.items():
        _check_cut(files[0], strategy, name, tensor.shape, cuts.get(name))
    parts: dict[str, dict[tuple[int, ...], Joined]] = {name: {} for name in weights}
    for rank, file in enumerate(files):
        for name, tensor in (_of_rank(file, files[0], weights) if rank else weights).items():
            # what MindSpore did not cut has no layout
            corner = cuts[name].first(rank, tensor.shape) if name in cuts else ()
            parts[name].setdefault(corner, tensor)  # of equal parts, that of the lowest rank is read
    return {name: cuts[name].joined(held) if name in cuts else held[()] for name, held in parts.items()}, unused


def _of_rank(file: Path, other: Path, weights: dict[str, Joined]) -> dict[str, Joined]:
    """Read the weights of a rank's file. Raises LayoutError when names, shapes or dtypes differ from another rank's."""
    found, _ = _split(open_ckpt(file))
    if found.keys() != weights.keys():
        name = min(found.keys() ^ weights.keys())
        raise LayoutError(f"{file.parent}: {name[:120]} is in only one of {other.name} and {file.name}; download both")
    for name, tensor in found.items():
        wanted = weights[name]
        if (tensor.shape, tensor.kind) != (wanted.shape, wanted.kind):
            raise LayoutError(
                f"{file}: {name:.99} is {tensor.kind} {tensor.shape}, in {other.name} {wanted.kind} {wanted.shape}; {MIXED}"
            )
    return found


def _check_cut(file: Path, strategy: Path, name: str, shape: tuple[int, ...], cut: Cut | None) -> None:
    """Raise LayoutError if a rank's part of a tensor has another shape than the strategy says."""
    if cut is None:
        return
    before = (shape[0] * cut.stretches, *shape[1:]) if shape else ()
    if len(shape) != len(cut.axes) or (cut.part and cut.part not in (shape, before)):
        raise LayoutError(f"{file}: {name:.99} has shape {shape}, {strategy.name} says {cut.part or cut.axes}; {MIXED}")


def _tables(path: Path, folder: Path | None, sources: dict[str, Joined], unused: dict[str, str]) -> dict[str, str]:
    """Return the name of each table in `sources`; an .npy file is added where the checkpoint lacks the table."""
    found = {}
    for ours, (file, *names) in TABLES.items():
        there = [name for name in names if name in sources]
        if len(there) > 1:
            raise LayoutError(f"{path}: {there[0]} and {there[1]} are both {ours}; the file is not of one model")
        npy = folder / file if folder and (folder / file).is_file() else None
        if there and npy:
            unused[file] = f"the checkpoint has it too, as {there[0]}"
        elif npy:
            sources[file] = npy_source(npy)
        elif not there:
            raise LayoutError(f"{path}: {file} is missing, and no checkpoint has {ours}; put it beside the checkpoints")
        found[ours] = there[0] if there else file
    return found
