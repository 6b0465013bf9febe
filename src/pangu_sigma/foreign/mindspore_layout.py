"""Layout of MindSpore's PanGu-α: one `.ckpt`, or a folder of them cut by a strategy file, with three tables as `.npy`."""

from __future__ import annotations

import re
from pathlib import Path

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_model import DenseModel, Facts, dense_model_of
from pangu_sigma.foreign.file_tensors import MIXED, WholeTensor, npy_source
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
    weight_files = [file for file in files if file not in strategies]
    if any(_PART.match(file.name) for file in weight_files):
        sources, unused = _join_ranks(path, _sort_by_rank(path, weight_files), strategies)
    elif len(weight_files) == 1:
        sources, unused = _split_off_state(open_ckpt(weight_files[0]))
        unused |= {file.name: "how ranks cut a model; this one is whole" for file in strategies}
    else:
        fix = "give one, or filerted_<rank>.ckpt with theirs"
        raise LayoutError(f"{path}: {len(weight_files)} checkpoint files without a strategy; {fix}")
    tables = _tables(path, folder, sources, unused)
    blocks = {int(match[1]) for name in sources if (match := re.match(r"backbone\.blocks\.(\d{1,9})\.", name))}
    if blocks and not any(name.startswith("backbone.top_query_layer.") for name in sources):
        raise LayoutError(
            f"{path}: backbone.top_query_layer is missing and backbone.blocks.{max(blocks)} stands for it, as in pipeline stages, "
            "whose last LayerNorm comes after the query layer, not before it as in our network; it cannot be used"
        )
    rules = counterparts("mindspore", path, sources)
    rules |= {name: Counterpart(our_name) for our_name, name in tables.items()}
    has_later_names = any(name in sources for name in LATER)  # of the later model zoo, whose network computes fast GELU
    facts = Facts(activation="fast_gelu" if has_later_names else "tanh")
    return dense_model_of(path, "mindspore", sources, rules, facts, unused)


def _sort_by_rank(path: Path, files: list[Path]) -> list[Path]:
    """Return files of ranks sorted by rank. path: folder, for messages. Raises LayoutError unless there is one of each rank."""
    by_rank: dict[int, Path] = {}
    for file in files:
        match = _PART.match(file.name)
        if match is None:
            raise LayoutError(f"{path}: {file.name} is beside filerted_<rank>.ckpt and is none of them; move it away")
        if by_rank.setdefault(int(match[1]), file) is not file:
            raise LayoutError(f"{path}: {by_rank[int(match[1])].name} and {file.name} are of one rank; move one away")
    for rank in range(len(by_rank)):
        if rank not in by_rank:
            fix = "download it (the release has 512)"
            raise LayoutError(f"{path}: filerted_{rank}.ckpt is missing, {len(by_rank)} others are there; {fix}")
    return [by_rank[rank] for rank in range(len(by_rank))]


def _split_off_state(tensors: dict[str, WholeTensor]) -> tuple[dict[str, WholeTensor], dict[str, str]]:
    """Return the weights among the tensors of a file, and the names of all other tensors with the reason to skip them."""
    unused = {name: "state of training or decoding" for name in tensors if _STATE.match(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in unused}, unused


def _join_ranks(path: Path, files: list[Path], strategies: list[Path]) -> tuple[dict[str, WholeTensor], dict[str, str]]:
    """Join the tensors of the ranks' files. Return the whole weights by name, and the names of other entries with the reason to
    skip them. Raises LayoutError unless there is one strategy file, which fits the files."""
    if len(strategies) != 1:
        raise LayoutError(f"{path}: {len(strategies)} strategy files; put only the release's *strategy*.ckpt here")
    strategy = strategies[0]
    cuts = read_strategy(strategy)
    ranks = next(iter(cuts.values())).ranks
    if ranks != len(files):
        raise LayoutError(f"{path}: {len(files)} files of ranks, {strategy.name} is for {ranks}; take a whole release")
    weights, unused = _split_off_state(open_ckpt(files[0]))
    for name, tensor in weights.items():
        if name in cuts:  # a tensor that MindSpore did not cut is not in the strategy: every rank has all of it
            _check_cut(files[0], strategy, name, tensor.shape, cuts[name])
    # tensor → index of a part's first value in the whole tensor → the part
    parts_by_name: dict[str, dict[tuple[int, ...], WholeTensor]] = {name: {} for name in weights}
    for rank, file in enumerate(files):
        rank_weights = _read_rank(file, files[0], weights) if rank > 0 else weights
        for name, tensor in rank_weights.items():
            corner = cuts[name].first_index(rank, tensor.shape) if name in cuts else ()
            parts_by_name[name].setdefault(corner, tensor)  # of equal parts, the one of the lowest rank is read
    tensors = {name: cuts[name].join(parts) if name in cuts else parts[()] for name, parts in parts_by_name.items()}
    return tensors, unused


def _read_rank(file: Path, other: Path, weights: dict[str, WholeTensor]) -> dict[str, WholeTensor]:
    """Read the weights of a rank's file. Raises LayoutError if their names, shapes or dtypes differ from another rank's. other,
    weights: that rank's file and its weights."""
    rank_weights, _ = _split_off_state(open_ckpt(file))
    if rank_weights.keys() != weights.keys():
        name = min(rank_weights.keys() ^ weights.keys())
        raise LayoutError(f"{file.parent}: {name[:120]} is in only one of {other.name} and {file.name}; download both")
    for name, tensor in rank_weights.items():
        form, expected = (f"{t.kind} {t.shape}" for t in (tensor, weights[name]))
        if form != expected:
            raise LayoutError(f"{file}: {name:.99} is {form}, in {other.name} {expected}; {MIXED}")
    return rank_weights


def _check_cut(file: Path, strategy: Path, name: str, shape: tuple[int, ...], cut: Cut) -> None:
    """Raise LayoutError if `shape`, of a rank's part of a tensor, is not what the strategy file says."""
    # the strategy may state the shape before the optimizer splits axis 0 further
    unsplit_shape = (shape[0] * cut.stretches, *shape[1:]) if shape else ()
    if len(shape) != len(cut.axes) or (cut.part and cut.part not in (shape, unsplit_shape)):
        raise LayoutError(f"{file}: {name:.99} has shape {shape}, {strategy.name} says {cut.part or cut.axes}; {MIXED}")


def _tables(path: Path, folder: Path | None, sources: dict[str, WholeTensor], unused: dict[str, str]) -> dict[str, str]:
    """Return the name in `sources` of each of our tables: embedding, positions, query_positions. A table that the checkpoint lacks
    is added to `sources` from its .npy file in `folder`, or else LayoutError raised; other .npy files are added to `unused`."""
    names_by_table = {}
    for ours, (file, *names) in TABLES.items():
        matches = [name for name in names if name in sources]
        if len(matches) > 1:
            raise LayoutError(f"{path}: {matches[0]} and {matches[1]} are both {ours}; the file is not of one model")
        npy = folder / file if folder and (folder / file).is_file() else None
        if matches and npy:
            unused[file] = f"the checkpoint has it too, as {matches[0]}"
        elif npy:
            sources[file] = npy_source(npy)
        elif not matches:
            raise LayoutError(f"{path}: {file} is missing, and no checkpoint has {ours}; put it beside the checkpoints")
        names_by_table[ours] = matches[0] if matches else file
    return names_by_table
