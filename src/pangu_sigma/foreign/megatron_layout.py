"""Layouts of the community's PyTorch PanGu-α: checkpoints of its Megatron, and the same tensors saved by DeepSpeed.

    megatron     latest_checkpointed_iteration.txt, iter_<step>/mp_rank_<rank>/model_optim_rng.pt: {"model": …, "args": …, …}
    deepspeed    latest, <tag>/mp_rank_<rank>_model_states.pt: {"module": …, …}

Query, key and value are three tensors. Tensor ranks split the embedding table by rows, query, key, value and the first FFN matrix
by their outputs, the attention's output and the second FFN matrix by their inputs.
"""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_model import DenseModel, Facts, dense_model_of
from pangu_sigma.foreign.file_tensors import MIXED, FileTensor, Joined, plain_name
from pangu_sigma.foreign.names import WORD_TABLE, Counterpart, counterparts
from pangu_sigma.foreign.strategy_file import Cut
from pangu_sigma.foreign.torch_files import named_tensors, open_torch_file

ALPHA_VOCABULARY = 40_000
"""Size of PanGu-α's vocabulary. Megatron pads its table to a multiple of 128 times the number of ranks."""
_MOST_PADDING = 128 * 64

TRACKER, TAG_FILE = "latest_checkpointed_iteration.txt", "latest"
RANK_FILE = "model_optim_rng.pt"
_RANK = re.compile(r"mp_rank_(\d{2,4})(_model_states\.pt)?$")
"""Pattern of a rank's folder, or file in DeepSpeed's layout."""


def is_megatron(path: Path) -> bool:
    """Return True if a file or folder looks like a Megatron or DeepSpeed checkpoint of PanGu-α."""
    if path.is_file():
        return path.suffix in (".pt", ".pth")
    names = [file.name for file in path.iterdir()]
    return any(name in (TRACKER, TAG_FILE, RANK_FILE) or name.startswith(("mp_rank_", "iter_")) for name in names)


def open_megatron(path: Path) -> DenseModel:
    """Open a Megatron or DeepSpeed checkpoint of PanGu-α. Raises LayoutError, which names the file or tensor."""
    files, unused = _files(path)
    opened = [open_torch_file(file) for file in files]
    top = opened[0]
    key = next((key for key in ("model", "module") if isinstance(top, dict) and isinstance(top.get(key), dict)), None)
    if key is None:
        raise LayoutError(f"{files[0]}: no weights under `model` (Megatron) or `module` (DeepSpeed); give a PanGu-α")
    layout = "megatron" if key == "model" else "deepspeed"
    for file, value in zip(files, opened, strict=True):
        if not isinstance(value, dict) or not isinstance(value.get(key), dict):
            raise LayoutError(f"{file}: it has no weights under `{key}`, as other ranks have; {MIXED}")
    ranks = [named_tensors(file, value[key]) for file, value in zip(files, opened, strict=True)]
    rules = counterparts("megatron", path, ranks[0])
    sources = {name: _source(path, name, ranks, rules.get(name)) for name in ranks[0]}
    for file, weights in zip(files, ranks, strict=True):
        if weights.keys() != ranks[0].keys():
            name = min(weights.keys() ^ ranks[0].keys())
            raise LayoutError(f"{path}: {name[:120]} is in only one of {files[0]} and {file}; {MIXED}")
    rest = [name for name in top if name not in (key, "args")]
    unused |= {name: f"{'random state' if 'rng' in name else 'state of training'}, not built" for name in rest}
    facts = _facts(path, top.get("args"), len(files), sources.get(WORD_TABLE))
    return dense_model_of(path, layout, sources, rules, facts, unused)


def _files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files of the ranks in their order, and the other files beside them."""
    if path.is_file():
        return [path], {}
    rest = [file.name for file in sorted(path.iterdir()) if file.is_file() and not _RANK.match(file.name)]
    folder, tracker = path, next((name for name in (TRACKER, TAG_FILE) if name in rest), None)
    if tracker is not None:
        folder = plain_name(path, _named_folder(path, tracker), f"the folder that {tracker} names")
    elif steps := [one for one in path.iterdir() if one.is_dir() and re.match(r"iter_\d+$|release$", one.name)]:
        if len(steps) > 1:
            raise LayoutError(f"{path}: {len(steps)} checkpoints and no {TRACKER}; give the folder of one of them")
        folder = steps[0]
    whole = folder / RANK_FILE
    files = [whole] if whole.is_file() else _of_ranks(folder)
    unused = [name for name in rest if name != tracker and path / name != whole]
    return files, dict.fromkeys(unused, "not of this layout")


def _of_ranks(folder: Path) -> list[Path]:
    by_rank: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if match := _RANK.match(file.name):
            by_rank[int(match[1])] = file if match[2] else file / RANK_FILE
        elif file.name.startswith("mp_rank_"):
            raise LayoutError(f"{folder}: {file.name} is not of a tensor rank alone; give one without pipeline stages")
    files = [by_rank.get(rank, folder / f"mp_rank_{rank:02d}") for rank in range(max(1, len(by_rank)))]
    for file in files:
        if not file.is_file():
            raise LayoutError(f"{folder}: {file.relative_to(folder)} is missing; take the files of all ranks")
    return files


def _named_folder(path: Path, tracker: str) -> str:
    """Return the name of the folder that a tracker's one line stands for."""
    with open(path / tracker, "rb") as stream:
        said = stream.read(300).decode("utf-8", "replace").strip()
    if tracker == TAG_FILE or said == "release":
        return said
    if not re.match(r"\d{1,9}$", said, re.ASCII):
        raise LayoutError(f"{path / TRACKER}: {said!r:.40} must have the number of a step, or `release`; correct it")
    return f"iter_{int(said):07d}"


def _source(path: Path, name: str, ranks: list[dict[str, FileTensor]], rule: Counterpart | None) -> Joined:
    """Return a whole tensor from the ranks' tensors: joined along the axis of its split, or the tensor of rank 0."""
    held = [weights[name] for weights in ranks if name in weights]
    first = held[0]
    for other in held[1:]:
        if other.shape != first.shape:
            raise LayoutError(f"{other.origin} is of shape {other.shape}, of rank 0 it is {first.shape}; {MIXED}")
    if rule is None or rule.cut is None or len(held) == 1:
        return Joined(first.shape, [first], same=held[1:])
    axis = rule.cut
    if axis >= len(first.shape):
        raise LayoutError(f"{first.origin} is of shape {first.shape}, and must have an axis {axis}; {MIXED}")
    cut = Cut((len(held),), tuple(0 if other == axis else -1 for other in range(len(first.shape))))
    return cut.joined({cut.first(rank, one.shape): Joined.only(one) for rank, one in enumerate(held)})


def _facts(path: Path, args: Any, ranks: int, words: Joined | None) -> Facts:
    """Read the properties in the training's arguments; without arguments, return the defaults of the community's code."""
    rows = words.shape[0] if words is not None and words.shape else 0
    padded = ALPHA_VOCABULARY < rows <= ALPHA_VOCABULARY + _MOST_PADDING
    facts = Facts(activation="erf", vocabulary=ALPHA_VOCABULARY if padded else None)
    if not isinstance(args, Namespace):
        return facts
    given = {name: value for name, value in vars(args).items() if type(value) in (bool, int) and 0 <= value < 1 << 31}
    for name in ("model_parallel_size", "tensor_model_parallel_size"):
        if given.get(name, ranks) != ranks:
            raise LayoutError(f"{path}: args.{name} is {given[name]}, and {ranks} ranks are here; give all files")
    for key, name in (("hidden_size", "hidden"), ("max_position_embeddings", "seq_length")):
        if key in given:
            facts.said[name] = (f"args.{key}", given[key])
    if "num_layers" in given:
        facts.said["layers"] = ("args.num_layers + 1, the query layer,", given["num_layers"] + 1)
    facts.heads = given.get("num_attention_heads")
    if 0 < given.get("vocab_size", 0) < rows:
        facts.vocabulary = given["vocab_size"]
    if "openai_gelu" in given:
        tanh = given["openai_gelu"] or given.get("bias_gelu_fusion", False)
        facts.activation, facts.activation_known = ("tanh" if tanh else "erf"), True
    return facts
