"""Layout of the Hugging Face ports of PanGu-α (GPTPangu): `config.json` beside safetensors or `pytorch_model*.bin`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.lazy import map_file
from pangu_sigma.checkpoint.safetensors_file import array_extents
from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_model import Activation, DenseModel, Facts, dense_model_of
from pangu_sigma.foreign.file_tensors import FileTensor, WholeTensor, map_tensor, path_in_folder
from pangu_sigma.foreign.names import counterparts
from pangu_sigma.foreign.torch_files import named_tensors, open_torch_file
from pangu_sigma.sealed import DamagedFile

_ACTIVATIONS: dict[str, Activation] = {
    **dict.fromkeys(("gelu", "gelu_python"), "erf"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"), "tanh"),
    "quick_gelu": "fast_gelu",
}
"""Name of an activation in transformers → our name."""
_SIZES = {
    **{"hidden_size": "hidden", "num_layers": "layers", "max_position_embeddings": "seq_length"},
    **{"vocab_size": "vocabulary", "intermediate_size": "ffn"},
}
"""Key of config.json → field of `DenseModel`."""
_KINDS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_REQUIRED_VALUES = {"model_type": "gpt_pangu", "scale_attn_weights": True, "layer_norm_epsilon": 1e-5}
"""Key of config.json → its value for PanGu-α; without the last two it is the same."""
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of the files of weights; the first file that exists is read."""
_MOST_BYTES = 16 << 20
"""Maximum bytes of a JSON file."""


def is_huggingface(path: Path) -> bool:
    """Return True if a folder looks like a Hugging Face port of PanGu-α."""
    return path.is_dir() and (path / "config.json").is_file() and any((path / file).is_file() for file in _FILES)


def open_huggingface(path: Path) -> DenseModel:
    """Open a folder of a Hugging Face port of PanGu-α. Raises LayoutError, which names the file or tensor."""
    config = _json(path / "config.json")
    facts = _facts(path / "config.json", config)
    file, *other_files = [path / name for name in _FILES if (path / name).is_file()]
    unused = {other.name: f"{file.name} is read instead" for other in other_files}
    sources = _sources(path, _weights(path, file), unused)
    rules = counterparts("huggingface", path, sources)
    return dense_model_of(path, "huggingface", sources, rules, facts, unused)


def _json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises LayoutError for any other content, and for more than 16 MiB."""
    if file.stat().st_size > _MOST_BYTES:
        raise LayoutError(f"{file}: {file.stat().st_size:,} bytes are too many for it; download it again")
    try:
        tree = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{file}: it is not JSON ({str(error)[:80]}); download it again") from None
    if not isinstance(tree, dict):
        raise LayoutError(f"{file}: it holds a {type(tree).__name__}, and must hold keys; download it again")
    return tree


def _facts(file: Path, config: dict[str, Any]) -> Facts:
    """Read the properties in config.json. Raises LayoutError when the model computes something else than PanGu-α."""
    for key, required in _REQUIRED_VALUES.items():
        default = None if key == "model_type" else required  # a key that is left out has this value in transformers
        if config.get(key, default) != required:
            text = repr(config.get(key))[:40]
            raise LayoutError(f"{file}: {key} is {text}, and must be {required!r}; other models cannot be inherited")
    name = config.get("activation_function")
    if name is not None and (not isinstance(name, str) or name not in _ACTIVATIONS):
        raise LayoutError(f"{file}: activation_function is {name!r:.40}; computed here: {', '.join(_ACTIVATIONS)}")
    facts = Facts(activation=_ACTIVATIONS[name] if name else "erf", activation_known=name is not None)
    sizes = {key: config[key] for key in (*_SIZES, "num_heads") if config.get(key) is not None}
    for key, value in sizes.items():
        if type(value) is not int or not 0 < value < 1 << 31:
            raise LayoutError(f"{file}: {key} is {str(value)[:40]}, and must be a positive number; download it again")
    facts.heads = sizes.pop("num_heads", None)
    facts.stated_sizes |= {_SIZES[key]: (key, value) for key, value in sizes.items()}
    return facts


def _weights(path: Path, file: Path) -> dict[str, FileTensor]:
    """Return the tensors of a model by name. file: the only file of weights, or a JSON index, which names several."""
    if not file.name.endswith(".json"):
        return _tensors(file)
    index = _json(file).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise LayoutError(f"{file}: it has no weight_map; download it again")
    tensors: dict[str, FileTensor] = {}
    for name in sorted({str(name) for name in index.values()}):
        file_tensors = _tensors(path_in_folder(path, name, f"a file that {file.name} names"))
        if duplicates := tensors.keys() & file_tensors.keys():
            raise LayoutError(f"{path / name}: {min(duplicates)[:120]} is in another file, too; download both")
        tensors |= file_tensors
    return tensors


def _tensors(file: Path) -> dict[str, FileTensor]:
    """Return the tensors of a .safetensors or .bin file by name. Raises LayoutError for any other or a damaged file."""
    if file.suffix == ".safetensors":
        try:
            extents = array_extents(file)
        except DamagedFile as error:
            raise LayoutError(f"{error}: download it again") from None
        content = map_file(file)
        return {
            name: map_tensor(file, name, _KINDS.get(kind, kind), shape, content[begin:end])
            for name, (kind, shape, begin, end) in extents.items()
        }
    if file.suffix != ".bin":
        raise LayoutError(f"{file}: weights are read from .safetensors and .bin; correct the index")
    tensors = open_torch_file(file)
    if not isinstance(tensors, dict):
        raise LayoutError(f"{file}: it holds no tensors by their names; it is another kind of file")
    return named_tensors(file, tensors)


def _sources(path: Path, tensors: dict[str, FileTensor], unused: dict[str, str]) -> dict[str, WholeTensor]:
    """Return the weights by the names that names.py has. The output head becomes the twin of the word table, to which it is tied.

    tensors: by their names in the files. unused: entries that are no weights are added, with the reason. Raises LayoutError for a
    weight that is twice there, and for a head that has another shape than the word table."""
    sources: dict[str, WholeTensor] = {}
    head = None
    for name, tensor in tensors.items():
        short_name = name.removeprefix("transformer.")
        if short_name == "lm_head.weight":
            head = tensor
            unused[name] = "the word table, which the head is tied to; compared when that is read"
        elif short_name.endswith((".attn.bias", ".attn.masked_bias")):
            unused[name] = "the causal mask, a constant"
        else:
            short_name = short_name.replace(".attn.out_proj.", ".attn.c_proj.")
            if short_name in sources:
                raise LayoutError(f"{path}: {name[:120]} is there under two names; the files are not of one model")
            sources[short_name] = WholeTensor.from_part(tensor)
    if head is not None and "wte.weight" in sources:
        if head.shape != sources["wte.weight"].shape:
            raise LayoutError(f"{path}: lm_head.weight is of shape {head.shape}, not the word table: it cannot be used")
        sources["wte.weight"] = replace(sources["wte.weight"], twin=head)
    return sources
