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
from pangu_sigma.foreign.file_tensors import MIXED, FileTensor, WholeTensor, path_in_folder
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
    files, unused = _find_files(path)
    trees = [tree if isinstance(tree, dict) else {} for tree in map(open_torch_file, files)]
    key = next((key for key in ("model", "module") if isinstance(trees[0].get(key), dict)), None)
    if key is None:
        raise LayoutError(f"{files[0]}: no weights under `model` (Megatron) or `module` (DeepSpeed); give a PanGu-α")
    layout = "megatron" if key == "model" else "deepspeed"
    for file, tree in zip(files, trees, strict=True):
        if not isinstance(tree.get(key), dict):
            raise LayoutError(f"{file}: it has no weights under `{key}`, as other ranks have; {MIXED}")
    weights_by_rank = [named_tensors(file, tree[key]) for file, tree in zip(files, trees, strict=True)]
    names = weights_by_rank[0].keys()
    rules = counterparts("megatron", path, names)
    sources = {name: _join_ranks(name, weights_by_rank, rules.get(name)) for name in names}
    for file, weights in zip(files, weights_by_rank, strict=True):
        if different_names := weights.keys() ^ names:
            raise LayoutError(f"{path}: {min(different_names)[:120]} is in only one of {files[0]} and {file}; {MIXED}")
    state_names = [name for name in trees[0] if name not in (key, "args")]
    unused |= {name: f"{'random state' if 'rng' in name else 'state of training'}, not built" for name in state_names}
    facts = _facts(path, trees[0].get("args"), len(files), sources.get(WORD_TABLE))
    return dense_model_of(path, layout, sources, rules, facts, unused)


def _find_files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files of the ranks in their order, and the names of other files in the folder with the reason to skip them.
    path: a rank's file, the folder of a checkpoint, or a folder of checkpoints, of which a tracker file names the newest."""
    if path.is_file():
        return [path], {}
    other_names = [file.name for file in sorted(path.iterdir()) if file.is_file() and not _RANK.match(file.name)]
    tracker = next((name for name in (TRACKER, TAG_FILE) if name in other_names), None)
    checkpoints = [item for item in path.iterdir() if item.is_dir() and re.match(r"iter_\d+$|release$", item.name)]
    if tracker is not None:
        folder = path_in_folder(path, _checkpoint_folder_name(path, tracker), f"the folder that {tracker} names")
    elif len(checkpoints) > 1:
        raise LayoutError(f"{path}: {len(checkpoints)} checkpoints and no {TRACKER}; give the folder of one of them")
    else:
        folder = checkpoints[0] if checkpoints else path
    single_file = folder / RANK_FILE
    files = [single_file] if single_file.is_file() else _rank_files(folder)
    unused = [name for name in other_names if name != tracker and path / name != single_file]
    return files, dict.fromkeys(unused, "not of this layout")


def _rank_files(folder: Path) -> list[Path]:
    """Return the files of all tensor ranks in the folder of a checkpoint, by rank. Raises LayoutError if one is missing."""
    by_rank: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if match := _RANK.match(file.name):
            by_rank[int(match[1])] = file if match[2] else file / RANK_FILE  # DeepSpeed's file or Megatron's folder
        elif file.name.startswith("mp_rank_"):
            raise LayoutError(f"{folder}: {file.name} is not of a tensor rank alone; give one without pipeline stages")
    files = [by_rank.get(rank, folder / f"mp_rank_{rank:02d}") for rank in range(max(1, len(by_rank)))]
    for file in files:  # of a missing rank, too
        if not file.is_file():
            raise LayoutError(f"{folder}: {file.relative_to(folder)} is missing; take the files of all ranks")
    return files


def _checkpoint_folder_name(path: Path, tracker: str) -> str:
    """Read the name of the newest checkpoint's folder from the file `tracker`: DeepSpeed's has the name, Megatron's the step."""
    with open(path / tracker, "rb") as stream:
        content = stream.read(300).decode("utf-8", "replace").strip()  # no name of a folder is longer
    if tracker == TAG_FILE or content == "release":
        return content
    if not re.match(r"\d{1,9}$", content, re.ASCII):
        raise LayoutError(f"{path / TRACKER}: {content!r:.40} must have the number of a step, or `release`; correct it")
    return f"iter_{int(content):07d}"


def _join_ranks(name: str, weights_by_rank: list[dict[str, FileTensor]], rule: Counterpart | None) -> WholeTensor:
    """Return the whole tensor `name`: the ranks' parts joined along the axis `rule.cut`, or the copy of rank 0 if it is not split.
    rule: None for a tensor that PanGu-α does not have. Raises LayoutError for parts of different shapes."""
    parts = [weights[name] for weights in weights_by_rank if name in weights]
    first = parts[0]
    for other in parts[1:]:
        if other.shape != first.shape:
            raise LayoutError(f"{other.origin} is of shape {other.shape}, of rank 0 it is {first.shape}; {MIXED}")
    if rule is None or rule.cut is None or len(parts) == 1:
        return WholeTensor.from_part(first)
    if rule.cut >= len(first.shape):
        raise LayoutError(f"{first.origin} is of shape {first.shape}, and must have an axis {rule.cut}; {MIXED}")
    # one axis of ranks, along which the tensor's axis `rule.cut` is split
    cut = Cut((len(parts),), tuple(0 if axis == rule.cut else -1 for axis in range(len(first.shape))))
    tensors = enumerate(map(WholeTensor.from_part, parts))
    return cut.join({cut.first_index(rank, tensor.shape): tensor for rank, tensor in tensors})


def _facts(path: Path, args: Any, ranks: int, word_table: WholeTensor | None) -> Facts:
    """Read the model's properties from `args`, the arguments of its training; without them, return the defaults of the community's
    code. ranks: number of tensor ranks. Raises LayoutError if `args` states another number of ranks."""
    rows = word_table.shape[0] if word_table is not None and word_table.shape else 0
    is_padded = ALPHA_VOCABULARY < rows <= ALPHA_VOCABULARY + _MOST_PADDING  # as Megatron pads PanGu-α's table
    facts = Facts(activation="erf", vocabulary=ALPHA_VOCABULARY if is_padded else None)
    if not isinstance(args, Namespace):
        return facts
    # a file can have values of any type
    values = {name: value for name, value in vars(args).items() if type(value) in (bool, int) and 0 <= value < 1 << 31}
    for name in ("model_parallel_size", "tensor_model_parallel_size"):
        if values.get(name, ranks) != ranks:
            raise LayoutError(f"{path}: args.{name} is {values[name]}, and {ranks} ranks are here; give all files")
    for key, name in (("hidden_size", "hidden"), ("max_position_embeddings", "seq_length")):
        if key in values:
            facts.stated_sizes[name] = (f"args.{key}", values[key])
    if "num_layers" in values:
        facts.stated_sizes["layers"] = ("args.num_layers + 1, the query layer,", values["num_layers"] + 1)
    facts.heads = values.get("num_attention_heads")
    if 0 < values.get("vocab_size", 0) < rows:
        facts.vocabulary = values["vocab_size"]
    if "openai_gelu" in values:
        is_tanh = values["openai_gelu"] or values.get("bias_gelu_fusion", False)
        facts.activation, facts.activation_known = ("tanh" if is_tanh else "erf"), True
    return facts
