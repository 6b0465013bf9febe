"""Small dense models in the layouts of others, written here without any code of `pangu_sigma.convert`.

Names are those of `pcl-pangu`, read out of its own converter by `alpha_names`. Files of torch are written by Python's pickler, with
stand-ins for torch's classes; those of MindSpore by its own protobuf messages.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pangu_sigma.foreign.dense_model import DenseModel

HIDDEN, HEADS, LAYERS, LENGTH, WORDS = 16, 8, 3, 6, 40
"""Sizes of the model that is written."""


def parent(
    dtype: str = "float32", hidden: int = HIDDEN, layers: int = LAYERS, words: int = WORDS
) -> dict[str, np.ndarray]:
    """Values of a dense model by our names, no two alike."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (words, hidden)}
    shapes |= {"positions": (LENGTH, hidden), "query_positions": (LENGTH, hidden)}
    for i in range(layers):
        for norm in ("attention_norm", "ffn_norm"):
            shapes |= {f"layers.{i}.{norm}.gain": (hidden,), f"layers.{i}.{norm}.bias": (hidden,)}
        for name in ("query", "key", "value", "output"):
            at = f"layers.{i}.attention.{name}"
            shapes |= {f"{at}.weight": (hidden, hidden), f"{at}.bias": (hidden,)}
        shapes |= {f"layers.{i}.ffn.w1": (4 * hidden, hidden), f"layers.{i}.ffn.b1": (4 * hidden,)}
        shapes |= {f"layers.{i}.ffn.w2": (4 * hidden, hidden), f"layers.{i}.ffn.b2": (hidden,)}
    shapes |= {"norm.gain": (hidden,), "norm.bias": (hidden,)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def assert_values(model: DenseModel, values: Mapping[str, np.ndarray]) -> None:
    """A model has these tensors, bit for bit and in their type, and says what each was made from."""
    assert set(model.tensors) == set(values) == set(model.made_from)
    for name, array in values.items():
        read = model.tensors[name].read()
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array, name)


# names


@cache
def alpha_names() -> dict[str, tuple[str, bool]]:
    """For each name of MindSpore's layout, that of Megatron's, and whether the two are transposed: what the code of
    `pcl_pangu/model_converter/_numpy_ckpt_2_pytorch.py` does, with `{}` for the number of a layer."""
    spec = find_spec("pcl_pangu")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "model_converter" / "_numpy_ckpt_2_pytorch.py"
    text = source.read_text(encoding="utf-8").replace("{layerID}", "{}")
    arrays = dict(re.findall(r"(\w+_np)\s*=\s*\\?\s*np\.load\(npCkptPath\s*\+\s*f?'([\w.{}]+)\.npy'\)", text))
    assert len(arrays) >= 9
    found: dict[str, tuple[str, bool]] = {}
    for function in text.split("\ndef ")[1:]:
        arrays = dict(re.findall(r"(\w+_np)\s*=\s*\\?\s*np\.load\(npCkptPath\s*\+\s*f?'([\w.{}]+)\.npy'\)", function))
        tables = re.findall(
            r"languageModel\['(\w+)'\]\['(\w+)'\]\['weight'\]\[[^]]*\]\s*=\s*\\?\s*torch\.tensor\((\w+)\)", function
        )
        for group, name, array in tables:
            found[arrays[array]] = (f"language_model.{group}.{name}.weight", False)
        targets = dict(re.findall(r"(\w+)\s*=\s*\\?\s*transformer\[f?'([\w.{}]+)'\]", function))
        for target, array in re.findall(r"(\w+)\[:[^]]*\]\s*=\s*\\?\s*torch\.tensor\((\w+)\)", function):
            found[arrays[array]] = (f"language_model.transformer.{targets[target]}", False)
        direct = r"(?:(\w+)|transformer\['([\w.]+)'\])\[:[^]]*\]\s*=\s*\\?\s*torch\.tensor\(\s*"
        direct += r"np\.load\(npCkptPath\s*\+\s*f?'([\w.{}]+)\.npy'\)"
        for target, name, array, transposed in re.findall(direct + r"(\s*\.transpose\(\))?", function):
            found[array] = (f"language_model.transformer.{name or targets[target]}", bool(transposed))
    return found


def _ours(name: str) -> tuple[str, bool]:
    """Our name for one of MindSpore's, and whether MindSpore's is transposed: `nn.Dense` is [out, in] and our attention [in, out],
    `Mapping` is [in, out] and our first FFN matrix [out, in]."""
    inner = {
        "layernorm1.gamma": "attention_norm.gain",
        "layernorm1.beta": "attention_norm.bias",
        "layernorm2.gamma": "ffn_norm.gain",
        "layernorm2.beta": "ffn_norm.bias",
        "attention.projection": "attention.output",
        "attention.dense1": "attention.query",
        "attention.dense2": "attention.key",
        "attention.dense3": "attention.value",
        "output.mapping.weight": "ffn.w1",
        "output.mapping.bias": "ffn.b1",
        "output.projection.weight": "ffn.w2",
        "output.projection.bias": "ffn.b2",
        "backbone.word_embedding.embedding_table": "embedding",
        "backbone.position_embedding.embedding_table": "positions",
        "backbone.top_query_embedding.embedding_table": "query_positions",
        "backbone.layernorm.gamma": "norm.gain",
        "backbone.layernorm.beta": "norm.bias",
    }
    for theirs, ours in inner.items():
        if theirs in name:
            name = name.replace(theirs, ours)
    name = name.replace("backbone.blocks.", "layers.").replace("backbone.top_query_layer.", "layers.top.")
    dense = any(f"attention.{one}.weight" in name for one in ("query", "key", "value"))
    return name, dense or name.endswith("ffn.w1")


def names(layers: int = LAYERS) -> Iterator[tuple[str, str, str, bool, bool]]:
    """MindSpore's, Megatron's and our name of every tensor, and whether MindSpore's and Megatron's are ours transposed."""
    for mindspore, (megatron, between) in alpha_names().items():
        ours, transposed = _ours(mindspore)
        numbers = range(layers - 1) if "{}" in mindspore else [0]
        for i in numbers:
            filled = ours.format(i).replace("layers.top.", f"layers.{layers - 1}.")
            yield mindspore.format(i), megatron.format(i), filled, transposed, transposed != between


def in_mindspore(values: Mapping[str, np.ndarray], layers: int = LAYERS) -> dict[str, np.ndarray]:
    """Values by the names of a merged file of MindSpore."""
    return {theirs: values[ours].T if flip else values[ours] for theirs, _, ours, flip, _ in names(layers)}


def in_megatron(values: Mapping[str, np.ndarray], layers: int = LAYERS) -> dict[str, np.ndarray]:
    """Values by Megatron's dotted names."""
    return {theirs: values[ours].T if flip else values[ours] for _, theirs, ours, _, flip in names(layers)}


def in_huggingface(
    values: Mapping[str, np.ndarray], output: str = "c_proj", layers: int = LAYERS
) -> dict[str, np.ndarray]:
    """Values by the names of `modeling_gptpangu.py` (imone/pangu_2_6B, sunzeyeah/pangu-*; mindnlp's `gpt_pangu`), which are
    those of Megatron in other words: `nn.Linear` everywhere."""
    words = {
        "language_model.embedding.word_embeddings": "wte",
        "language_model.embedding.position_embeddings": "wpe",
        "language_model.topQueryEmbedding.top_query_embeddings": "wqe",
        "language_model.transformer.final_layernorm": "ln_f",
        "language_model.transformer.topQueryLayer": f"h.{layers - 1}",
        "language_model.transformer.layers": "h",
        "post_attention_layernorm": "ln_2",
        "input_layernorm": "ln_1",
        "attention.query": "attn.q_proj",
        "attention.key": "attn.k_proj",
        "attention.value": "attn.v_proj",
        "attention.dense": f"attn.{output}",
        "mlp.dense_h_to_4h": "mlp.c_fc",
        "mlp.dense_4h_to_h": "mlp.c_proj",
    }
    found = {}
    for name, value in in_megatron(values, layers).items():
        for theirs, word in words.items():
            name = name.replace(theirs, word)
        found[f"transformer.{name}"] = value
    return found


# torch


class FakeTensor:
    """A tensor that the pickler below writes as torch would. storage: values that it is a view of."""

    def __init__(self, values: np.ndarray, kind: str | None = None):
        self.values = np.ascontiguousarray(values)
        self.kind = kind or {"float32": "Float", "float16": "Half", "uint8": "Byte", "int64": "Long"}[values.dtype.name]

    def bytes(self) -> bytes:
        return self.values.tobytes()


class _StorageId:
    def __init__(self, kind: Any, key: str, size: int):
        self.id = ("storage", kind, key, "cpu", size)


@contextmanager
def fake_torch() -> Iterator[dict[str, Any]]:
    """torch's names, where the pickler looks for them."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")
    made: dict[str, Any] = {}
    kinds = ("Float", "Half", "Byte", "Long", "BFloat16", "ComplexFloat")
    for name in (*(f"{kind}Storage" for kind in kinds), "Size"):
        made[name] = type(name, (), {"__module__": "torch"})
        setattr(torch, name, made[name])

    def _rebuild_tensor_v2(*_: Any) -> None: ...

    def _rebuild_parameter(*_: Any) -> None: ...

    for function in (_rebuild_tensor_v2, _rebuild_parameter):
        function.__module__, function.__qualname__ = "torch._utils", function.__name__
        made[function.__name__] = function
        setattr(utils, function.__name__, function)
    kept = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        yield made
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, torch: dict[str, Any]):
        super().__init__(stream, 2)
        self.torch, self.storages = torch, {}  # type: ignore[var-annotated]

    def persistent_id(self, value: Any) -> Any:
        return value.id if isinstance(value, _StorageId) else None

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return NotImplemented
        key = str(len(self.storages))
        self.storages[key] = value
        kind = self.torch[f"{value.kind}Storage"]
        strides = tuple(step // value.values.itemsize for step in value.values.strides)
        storage = _StorageId(kind, key, value.values.size)
        return self.torch["_rebuild_tensor_v2"], (storage, 0, value.values.shape, strides, False, OrderedDict())


def torch_zip(value: Any, change: Callable[[bytes], bytes] = lambda content: content, **members: bytes) -> bytes:
    """A file of torch, zip format. change: of the pickle. members: more of them, or others, by name."""
    with fake_torch() as torch:
        stream = io.BytesIO()
        pickler = _Pickler(stream, torch)
        pickler.dump(value)
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        inside = {"data.pkl": change(stream.getvalue()), "byteorder": b"little"}
        inside |= {f"data/{key}": tensor.bytes() for key, tensor in pickler.storages.items()}
        for name, content in (inside | {"version": b"3\n"} | members).items():
            archive.writestr(f"archive/{name}", content)
    return output.getvalue()


def nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Megatron's dictionaries in dictionaries; names inside `transformer` keep their dots."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        model, group, rest = name.split(".", 2)
        keys = [rest] if group == "transformer" else rest.split(".")
        here = tree.setdefault(model, {}).setdefault(group, OrderedDict())
        for key in keys[:-1]:
            here = here.setdefault(key, OrderedDict())
        here[keys[-1]] = FakeTensor(value)
    return tree


def of_rank(name: str, value: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """What a tensor rank holds: as Megatron's `ColumnParallelLinear`, `RowParallelLinear` and `VocabParallelEmbedding` cut."""
    if re.search(r"attention\.(query|key|value)\.|dense_h_to_4h\.|word_embeddings", name):
        return np.split(value, ranks, 0)[rank]
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        return np.split(value, ranks, 1)[rank]
    return value


def arguments(ranks: int, **more: Any) -> Namespace:
    """Arguments of a training, as its checkpoints hold them."""
    given = {"num_layers": LAYERS - 1, "hidden_size": HIDDEN, "num_attention_heads": HEADS}
    given |= {"max_position_embeddings": LENGTH}
    return Namespace(**{**given, "model_parallel_size": ranks, "openai_gelu": False, "onnx_safe": None, **more})


def training_state(step: int = 7) -> dict[str, Any]:
    """What a checkpoint holds beside weights and arguments: random states, an optimizer."""
    import random

    moments = {0: {"exp_avg": FakeTensor(np.ones((2, 2), np.float32)), "step": 3}}
    return {
        "iteration": step,
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0]}]},
        "random_rng_state": random.Random(0).getstate(),
        "np_rng_state": np.random.RandomState(0).get_state(),
        "torch_rng_state": FakeTensor(np.arange(5, dtype=np.uint8)),
        "rng_tracker_states": {"model-parallel-rng": FakeTensor(np.arange(5, dtype=np.uint8))},
    }


def write_megatron(
    folder: Path,
    values: Mapping[str, np.ndarray],
    ranks: int = 1,
    step: int = 7,
    **given: Any,
) -> Path:
    """A folder as Megatron's `save_checkpoint` leaves it. given: arguments of the training, if not those of `parent`."""
    flat = in_megatron(values, given.get("num_layers", LAYERS - 1) + 1)
    for rank in range(ranks):
        cut = {name: of_rank(name, value, rank, ranks) for name, value in flat.items()}
        file = folder / f"iter_{step:07d}" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        file.parent.mkdir(parents=True)
        file.write_bytes(torch_zip({"args": arguments(ranks, **given), "model": nested(cut), **training_state(step)}))
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder


def write_deepspeed(folder: Path, values: Mapping[str, np.ndarray], ranks: int = 1) -> Path:
    """A folder as DeepSpeed's `save_checkpoint` leaves it."""
    (folder / "global_step7").mkdir(parents=True)
    flat = in_megatron(values)
    for rank in range(ranks):
        cut = {name: of_rank(name, value, rank, ranks) for name, value in flat.items()}
        value = {"module": nested(cut), "csr_tensor_module_names": set(), "mp_world_size": ranks, "global_steps": 7}
        (folder / "global_step7" / f"mp_rank_{rank:02d}_model_states.pt").write_bytes(torch_zip(value))
    (folder / "latest").write_text("global_step7")
    return folder


def huggingface_config(**more: Any) -> dict[str, Any]:
    """config.json of imone/pangu_2_6B, with small sizes."""
    config = {"architectures": ["GPTPanguForCausalLM"], "model_type": "gpt_pangu", "activation_function": "gelu"}
    config |= {"hidden_size": HIDDEN, "intermediate_size": None, "num_layers": LAYERS, "num_heads": HEADS}
    return {**config, "max_position_embeddings": LENGTH, "vocab_size": WORDS, "layer_norm_epsilon": 1e-5, **more}


def write_huggingface(folder: Path, tensors: Mapping[str, np.ndarray], form: str) -> Path:
    """A folder of GPTPangu. form: "safetensors" or "bin", with "-index" in two files and an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(huggingface_config()))
    single, name = (
        ("model.safetensors", "model-{}.safetensors")
        if form.startswith("safetensors")
        else ("pytorch_model.bin", "pytorch_model-{}.bin")
    )
    groups = {single: list(tensors)}
    if form.endswith("-index"):
        groups = {name.format(i): list(tensors)[i::2] for i in range(2)}
        index = {tensor: file for file, some in groups.items() for tensor in some}
        (folder / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for file, some in groups.items():
        held = {tensor: np.ascontiguousarray(tensors[tensor]) for tensor in some}
        if file.endswith(".safetensors"):
            save_file(held, folder / file)
        else:
            value = OrderedDict((tensor, FakeTensor(values)) for tensor, values in held.items())
            (folder / file).write_bytes(torch_zip(value))
    return folder


# MindSpore


def ckpt(tensors: Mapping[str, np.ndarray], stretch: int | None = None) -> bytes:
    """A checkpoint of MindSpore. stretch: number of values after which a tensor goes on in another message, as one of more than
    512 MB does."""
    from mindspore.train.checkpoint_pb2 import Checkpoint

    content = b""
    for name, values in tensors.items():
        flat = np.ascontiguousarray(values).reshape(-1)
        for part in [flat] if stretch is None else np.array_split(flat, -(-flat.size // stretch)):
            message = Checkpoint()
            value = message.value.add()
            value.tag = name
            value.tensor.dims.extend(values.shape or [0])
            value.tensor.tensor_type = {"float32": "Float32", "float16": "Float16", "int32": "Int32"}[values.dtype.name]
            value.tensor.tensor_content = part.tobytes()
            content += message.SerializeToString()
    return content


def release_cut(name: str, data: int, tensor: int, stretches: int) -> tuple[list[int], int]:
    """tensor_map of a parameter of the released network on a grid of [data, tensor], by the `shard` calls of
    `pcl_pangu/model/panguAlpha_mindspore/src/pangu_alpha.py`, and into how many stretches the optimizer cuts it (1: it does not,
    `parallel_optimizer=False`). test_foreign_writers.py compares it with what MindSpore makes of that network."""
    if re.search(r"dense\d\.weight", name):
        return [0, -1], stretches
    if name.endswith("output.mapping.weight"):
        return [-1, 0], stretches
    if name.endswith("projection.weight"):
        return [0, -1], stretches
    if re.search(r"dense\d\.bias|output\.mapping\.bias", name):
        return [0], stretches
    return [-1] * (2 if "embedding" in name else 1), 1


def strategy(
    cuts: Mapping[str, tuple[list[int], int]], shapes: Mapping[str, tuple[int, ...]], grid: list[int]
) -> bytes:
    """A strategy file. cuts: tensor_map and stretches of each parameter. shapes: of the parts of a rank."""
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    message = ParallelStrategyMap()
    message.current_stage = 0
    for name, (axes, stretches) in cuts.items():
        item = message.parallel_layout_item.add()
        item.param_name = name
        layout = item.parallel_layouts
        layout.dev_matrix.add().dim.extend(grid)
        layout.tensor_map.add().dim.extend(axes)
        layout.param_split_shape.add().dim.extend(shapes[name])
        layout.indices_offset.add()
        layout.field = 0
        layout.opt_weight_shard_step = grid[-1] if stretches > 1 else 0
        layout.opt_weight_shard_size = stretches if stretches > 1 else 0
    return message.SerializeToString()


def write_release(
    folder: Path, values: Mapping[str, np.ndarray], data: int, tensor: int, stretches: int = 1, layers: int = LAYERS
) -> Path:
    """A folder of filerted_<rank>.ckpt, a strategy file and three tables, as PanGu-α was released."""
    folder.mkdir(parents=True)
    tables = {"word": "embedding", "position": "positions", "top_query": "query_positions"}
    for name, ours in tables.items():
        np.save(folder / f"{name}_embedding.npy", values[ours])
    whole = {name: value for name, value in in_mindspore(values, layers).items() if "_embedding" not in name}
    cuts = {name: release_cut(name, data, tensor, stretches) for name in whole}
    written: dict[tuple[int, int], bytes] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rank in range(data * tensor):
        at = (rank % tensor, rank // tensor % stretches)
        if at not in written:
            parts = {}
            for name, value in whole.items():
                axes, count = cuts[name]
                part = np.split(value, tensor, axes.index(0))[at[0]] if 0 in axes else value
                parts[name] = np.split(part, count, 0)[at[1] % count]
            shapes = {name: part.shape for name, part in parts.items()}
            written[at] = ckpt(parts | {"global_step": np.array(7, np.int32)})
        (folder / f"filerted_{rank}.ckpt").write_bytes(written[at])
    (folder / "pangu_strategy.ckpt").write_bytes(strategy(cuts, shapes, [data, tensor]))
    return folder
