"""Opener of dense PanGu-α checkpoints of other projects, which detects the layout of their files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pangu_sigma.data.prepared import is_prepared
from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_model import DenseModel
from pangu_sigma.foreign.huggingface_layout import is_huggingface, open_huggingface
from pangu_sigma.foreign.megatron_layout import is_megatron, open_megatron
from pangu_sigma.foreign.mindspore_layout import is_mindspore, open_mindspore

LAYOUTS = {
    "huggingface": "config.json with model.safetensors or pytorch_model.bin, whole or by an index",
    "megatron": "latest_checkpointed_iteration.txt with iter_<step>/mp_rank_<rank>/model_optim_rng.pt, or one such .pt",
    "deepspeed": "latest with <tag>/mp_rank_<rank>_model_states.pt, or one such .pt",
    "mindspore": "one .ckpt, or filerted_<rank>.ckpt with a strategy file; word_embedding.npy, position_embedding.npy and "
    "top_query_embedding.npy where the checkpoints lack them",
}
"""Layout of other projects' files → files by which it is recognised."""
_OPENERS = ((is_huggingface, open_huggingface), (is_megatron, open_megatron), (is_mindspore, open_mindspore))


def is_dense_model(path: Path) -> bool:
    """Return True if a path looks like a dense PanGu-α in the files of another project, in one of LAYOUTS."""
    return path.exists() and any(has_layout(path) for has_layout, _ in _OPENERS)


def open_dense_model(path: Path) -> DenseModel:
    """Open a dense PanGu-α in one of LAYOUTS; the values of a tensor are read when they are first needed.

    Raises LayoutError if no layout fits, or if a tensor is missing, unknown, damaged, or of another model.
    """
    fix = f"give one of these: {'; '.join(map(': '.join, LAYOUTS.items()))}"
    if not path.exists():
        raise LayoutError(f"{path} does not exist; {fix}")
    for has_layout, open_layout in _OPENERS:
        if has_layout(path):
            return open_layout(path)
    raise LayoutError(f"{path} is in no layout that is read: {describe_contents(path)}; {fix}")


def describe_contents(path: Path, hidden_names: Collection[str] = ()) -> str:
    """Describe a file or folder that is no model, for an error message. hidden_names: names inside the folder to leave out."""
    if is_prepared(path):
        return "prepared data"
    if path.suffix in (".yaml", ".yml"):
        return "a configuration; MODEL comes first, CONFIG second"  # arguments of `inherit`
    if path.is_file():
        return f"a file that ends in {path.suffix or 'nothing'}"
    names = sorted({file.name for file in path.iterdir()}.difference(hidden_names))
    if not names:
        return "an empty folder"
    return f"a folder with {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
