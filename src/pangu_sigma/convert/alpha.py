"""Writes a dense model in the community's Megatron layout, which `pcl-pangu` loads.

Files are those of `torch.save`: a zip of a pickle and the values, stored without compression. The pickle is put together here from
its instructions; Python's own pickler would need torch's classes. Values are streamed: one tensor at a time is in memory.
"""

from __future__ import annotations

import logging
import pickle
import struct
import tempfile
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.foreign.dense_model import Activation, LayoutError, tensor_shapes
from pangu_sigma.foreign.file_tensors import row_major
from pangu_sigma.foreign.layout import Counterpart
from pangu_sigma.foreign.megatron_layout import RANK_FILE, TRACKER, layer_rules
from pangu_sigma.sealed import sync

logger = logging.getLogger(__name__)

_STEP = 1
"""Step that the checkpoint says it is of; the community's loader takes no 0."""
_ROWS = 128
"""Megatron pads the vocabulary to a multiple of this times the ranks."""
_SLICE = 16 << 20
"""Bytes that are brought into order and written at once."""
_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage"}
_ROOT = "archive"


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the pickle describes it: number of its storage, type, and shape."""

    key: str
    dtype: str
    shape: tuple[int, ...]


def write_alpha(
    tensors: Mapping[str, LazyArray], folder: Path, *, heads: int, activation: Activation, ranks: int = 1
) -> list[Path]:
    """Write a dense model, by the names of `tensor_shapes`, as `iter_0000001/mp_rank_<rank>/model_optim_rng.pt` and a tracker.

    heads, activation: of the model; fast GELU is written down and warned about, because no program of the community computes it.
    ranks: tensor ranks that the tensors are cut for. Values keep their type, float32 or float16.
    The folder appears whole or not at all. Returns the files. Raises LayoutError when it exists, when a tensor is missing, too many
    or misshapen, or when ranks do not divide the heads.
    """
    layers = _check(tensors, folder, heads, ranks)
    if activation == "fast_gelu":
        logger.warning(
            "the model computes fast GELU; programs of the community compute erf or tanh: up to 0.09 in a logit"
        )
    rules = layer_rules(layers)
    folder.parent.mkdir(parents=True, exist_ok=True)
    names = [f"iter_{_STEP:07d}/mp_rank_{rank:02d}/{RANK_FILE}" for rank in range(ranks)]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        unfinished = Path(temporary) / folder.name
        arguments = _arguments(tensors, layers, heads, activation, ranks)
        with ExitStack() as opened:
            archives = []
            for name in names:
                (unfinished / name).parent.mkdir(parents=True)
                archives.append(opened.enter_context(zipfile.ZipFile(unfinished / name, "w")))
            _write_files(archives, tensors, rules, arguments)
        (unfinished / TRACKER).write_text(str(_STEP))
        for file in (*names, TRACKER):
            sync(unfinished / file)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    return [folder / name for name in names]


def _check(tensors: Mapping[str, LazyArray], folder: Path, heads: int, ranks: int) -> int:
    """Number of layers. Raises LayoutError before anything is written."""
    if folder.exists():
        raise LayoutError(f"{folder} exists; choose another folder")
    for name in ("embedding", "positions", "layers.0.ffn.w1"):
        if name not in tensors:
            raise LayoutError(f"{name} is missing; only a whole dense model can be written in the layout of PanGu-α")
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    (rows, hidden), length = tensors["embedding"].shape, tensors["positions"].shape[0]
    wanted = tensor_shapes(hidden, tensors["layers.0.ffn.w1"].shape[0], layers, length, rows)
    for name in (*wanted, *tensors):
        if name not in wanted or name not in tensors or tensors[name].shape != wanted[name]:
            raise LayoutError(
                f"{name} is missing, misshapen or too many; only a whole dense model can be written in this layout"
            )
        if tensors[name].dtype.name not in _STORAGES:
            raise LayoutError(f"{name} is {tensors[name].dtype}; float32 and float16 can be written")
    if ranks < 1 or heads < 1 or hidden % heads or heads % ranks or wanted["layers.0.ffn.w1"][0] != 4 * hidden:
        raise LayoutError(
            f"{ranks} ranks, {heads} heads, hidden {hidden}, ffn {wanted['layers.0.ffn.w1'][0]}: ranks must divide the heads, "
            "heads the hidden size, and in this layout the FFN is four times as wide"
        )
    return layers


def _arguments(
    tensors: Mapping[str, LazyArray], layers: int, heads: int, activation: Activation, ranks: int
) -> Namespace:
    """Arguments of a training, as the community's loader compares them with its own."""
    rows, hidden = tensors["embedding"].shape
    return Namespace(
        num_layers=layers - 1,
        hidden_size=hidden,
        num_attention_heads=heads,
        max_position_embeddings=tensors["positions"].shape[0],
        seq_length=tensors["positions"].shape[0],
        make_vocab_size_divisible_by=_ROWS,
        vocab_size=rows,
        padded_vocab_size=_padded(rows, ranks),
        tokenizer_type="GPT2BPETokenizer",
        model_parallel_size=ranks,
        openai_gelu=activation == "tanh",
        onnx_safe=None,
        bias_gelu_fusion=False,
        activation=activation,
    )


def _padded(rows: int, ranks: int) -> int:
    return -(-rows // (_ROWS * ranks)) * _ROWS * ranks


def _write_files(
    archives: list[zipfile.ZipFile],
    tensors: Mapping[str, LazyArray],
    rules: Mapping[str, Counterpart],
    arguments: Namespace,
) -> None:
    """Write what all ranks hold, each tensor read once."""
    ranks, tree = len(archives), {}
    for number, (name, rule) in enumerate(rules.items()):
        shape = tensors[rule.ours].shape[:: -1 if rule.transposed else 1]
        if rule.ours == "embedding":
            shape = (_padded(shape[0], ranks), *shape[1:])
        if rule.cut is not None:
            shape = tuple(n // ranks if axis == rule.cut else n for axis, n in enumerate(shape))
        tree[name] = _Tensor(str(number), tensors[rule.ours].dtype.name, shape)
    content = _pickled({"args": arguments, "iteration": _STEP, "model": _nested(tree)})
    for archive in archives:
        _member(archive, "data.pkl", content)
        _member(archive, "byteorder", b"little")
    for name, rule in tqdm(rules.items(), desc="write", unit="tensor", leave=False):
        values = tensors[rule.ours].read()
        values = values.T if rule.transposed else values
        for rank, archive in enumerate(archives):
            _write_values(archive, tree[name], _of_rank(values, rule, rank, tree[name].shape))
    for archive in archives:
        _member(archive, "version", b"3\n")


def _of_rank(values: np.ndarray, rule: Counterpart, rank: int, shape: tuple[int, ...]) -> np.ndarray:
    """What a rank holds of a tensor; of the word table it may be fewer rows than the shape says."""
    if rule.cut is None:
        return values
    size = shape[rule.cut]
    where = slice(rank * size, (rank + 1) * size)
    return values[where] if rule.cut == 0 else values[:, where]


def _write_values(archive: zipfile.ZipFile, tensor: _Tensor, values: np.ndarray) -> None:
    size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
    member = zipfile.ZipInfo(f"{_ROOT}/data/{tensor.key}")
    member.file_size = size  # so that a large one gets the long form of header
    with archive.open(member, "w") as stream:
        length = max(1, _SLICE // max(1, values[:1].nbytes))
        for begin in range(0, len(values), length):
            chunk = np.ascontiguousarray(values[begin : begin + length])
            stream.write(chunk.view(np.uint8).data)
        left = size - values.nbytes  # rows of padding
        while left:
            stream.write(bytes(min(left, _SLICE)))
            left -= min(left, _SLICE)


def _member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"{_ROOT}/{name}"), content)


def _nested(tree: dict[str, _Tensor]) -> dict[str, Any]:
    """The dictionaries in dictionaries of Megatron: the names inside `transformer` keep their dots."""
    nested: dict[str, Any] = {}
    for name, tensor in tree.items():
        model, group, rest = name.split(".", 2)
        *keys, last = [rest] if group == "transformer" else rest.split(".")
        here = nested.setdefault(model, {}).setdefault(group, {})
        for key in keys:
            here = here.setdefault(key, {})
        here[last] = tensor
    return nested


def _pickled(value: Any) -> bytes:
    """A pickle of protocol 2 of dictionaries, texts, numbers, a Namespace, and descriptions of tensors."""
    return pickle.PROTO + b"\2" + b"".join(_instructions(value)) + pickle.STOP


def _instructions(value: Any) -> Iterator[bytes]:
    match value:
        case None | True | False:
            yield {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
        case int():
            yield pickle.BININT + struct.pack("<i", value)
        case str():
            text = value.encode()
            yield pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        case tuple():
            yield pickle.MARK
            for one in value:
                yield from _instructions(one)
            yield pickle.TUPLE
        case dict():
            yield pickle.EMPTY_DICT + pickle.MARK
            for key, one in value.items():
                yield from _instructions(key)
                yield from _instructions(one)
            yield pickle.SETITEMS
        case Namespace():
            yield pickle.GLOBAL + b"argparse\nNamespace\n" + pickle.EMPTY_TUPLE + pickle.NEWOBJ
            yield from _instructions(vars(value))
            yield pickle.BUILD
        case _Tensor(key=key, dtype=dtype, shape=shape):
            yield pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + pickle.MARK
            yield from _instructions("storage")
            yield pickle.GLOBAL + f"torch\n{_STORAGES[dtype]}\n".encode()
            for one in (key, "cpu", int(np.prod(shape))):
                yield from _instructions(one)
            yield pickle.TUPLE + pickle.BINPERSID
            for one in (0, shape, row_major(shape), False):
                yield from _instructions(one)
            yield pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
            yield pickle.TUPLE + pickle.REDUCE
        case _:
            raise TypeError(f"a {type(value).__name__} is not written")
