"""JSON files of a Hugging Face style folder: `config.json`, `tokenizer_config.json`, `generation_config.json`, and their checks.

`config.json` has sizes, domains and routing under the names that readers of such folders look for. They are computed from the whole
resolved configuration, which is under `pangu_sigma`. A folder in which the two differ is refused; the error names the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.changes import absolute_paths, paths_from_here
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import LayoutError
from pangu_sigma.sealed import ITS_VERSION
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.text.segmentation import PATTERNS
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import EOT, PAD

HF_FORMAT = 2
"""Format version of a Hugging Face style folder; others are refused."""
MODEL_TYPE = "pangu_sigma"
WHOLE = "pangu_sigma"
"""Key of the whole configuration in config.json."""
FORMAT_KEY = "pangu_sigma_format"
ROUTING_KEY = "routing_hash"
ROWS_KEY = "rows_met"
"""Key of the number of rows that a token met, of each entry of `model.rows`; absent without rows."""

CODE = {
    "AutoConfig": "configuration_pangu_sigma.PanGuSigmaConfig",
    "AutoModelForCausalLM": "modeling_pangu_sigma.PanGuSigmaForCausalLM",
    "AutoTokenizer": "tokenization_pangu_sigma.PanGuSigmaTokenizer",
}
"""Classes that `transformers` loads from the files of code in the folder, each by the name of its automatic class."""
FIX = "it was changed or is damaged; take it again, or write it again with `pangu-sigma export RUN --format hf`"
"""Advice to the user for a file of a folder."""
_SAVED_BY = "transformers_version"
"""Key that `save_pretrained` of transformers writes to config.json, and we do not."""


def generation_json(config: Config) -> dict[str, Any]:
    """Return the contents of `generation_config.json`: greedy decoding of at most 64 new tokens, and no token before a text."""
    limit = min(64, max(1, config.model.seq_length // 2))
    return {"bos_token_id": None, "eos_token_id": EOT, "pad_token_id": PAD, "do_sample": False, "max_new_tokens": limit}


def size_keys(config: Config) -> dict[str, Any]:
    """Return the entries of a Hugging Face style folder's `config.json` that follow from the configuration."""
    model = config.model
    rows = {"rows": [entry.model_dump() for entry in model.rows]} if model.rows else {}
    return {
        "architectures": ["PanGuSigmaForCausalLM"],
        "model_type": MODEL_TYPE,
        FORMAT_KEY: HF_FORMAT,
        "dtype": "float32",
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_dense_layers": model.dense_layers,
        "num_rre_layers": model.rre_layers,
        "n_routed_experts": config.experts if model.rre_layers else 0,
        "num_experts_per_domain": model.experts_per_domain if model.rre_layers else 0,
        "expert_segments": list(model.segments) if model.rre_layers else [],
        "num_common_experts": model.common_experts if model.rre_layers else 0,
        "num_experts_per_tok": len(model.segments),
        "max_position_embeddings": model.seq_length,
        "embedding_slots": domains_of(config).slot_names,
        "slot_rows": model.slot_rows,
        "hidden_act": model.activation,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "domains": [
            {"name": d.name, "format": d.format, "language": d.language, "slot": d.slot, "first_expert": d.first_expert}
            for d in domains_of(config)
        ],
        "routing": {"table": config.routing.table, "seed": config.routing.seed},
        **rows,
    }


def tokenizer_keys(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the entries of a Hugging Face style folder's `config.json` that describe the tokenizer."""
    return {
        "vocab_size": tokenizer.size,
        "eos_token_id": tokenizer.eot,
        "pad_token_id": tokenizer.pad,
        "tokenizer_hash": tokenizer.hash,
    }


def config_json(model: StoredModel) -> dict[str, Any]:
    """Return the contents of the `config.json` of a model's Hugging Face style folder."""
    config = paths_from_here(model.config)
    code = {name: python_class for name, python_class in CODE.items() if name != "AutoTokenizer"}
    tree = size_keys(config) | {"domain": config.domains[0].name, "auto_map": code}
    tree |= tokenizer_keys(model.tokenizer) | {ROUTING_KEY: model.table.hash}
    if config.model.rows:
        tree[ROWS_KEY] = [len(model.rows(entry)[0]) for entry in range(len(config.model.rows))]
    source = {"step": model.step, "data_hash": model.data_hash, "config": config.model_dump(mode="json")}
    return tree | {WHOLE: source}


def code_files() -> list[str]:
    """Return the names of the files of code in a Hugging Face style folder."""
    return [f"{python_class.partition('.')[0]}.py" for python_class in CODE.values()]


def tokenizer_config_json(model: StoredModel) -> dict[str, Any]:
    """Return the contents of `tokenizer_config.json`, which the tokenizer's class for `transformers` reads besides its files."""
    return {
        "tokenizer_class": CODE["AutoTokenizer"].partition(".")[2],
        "auto_map": {"AutoTokenizer": [CODE["AutoTokenizer"], None]},
        "domain": model.config.domains[0].name,
        "domains": size_keys(model.config)["domains"],
        "patterns": PATTERNS,
        "model_max_length": model.config.model.seq_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }


def saved_by_transformers(tree: Any) -> str | None:
    """Return the version of transformers whose `save_pretrained` wrote a `config.json`, read as `tree`; None if we wrote it."""
    version = tree.get(_SAVED_BY) if isinstance(tree, dict) else None
    return version if isinstance(version, str) else None


def read_config_json(file: Path, tree: Any) -> tuple[Config, int, str | None]:
    """Parse `tree`, the JSON value of a Hugging Face style folder's `config.json`, into (configuration, step, hash of the training
    text or None). file: for messages. Raises LayoutError for another format, and for keys that contradict each other."""
    if not isinstance(tree, dict):
        raise LayoutError(f"{file}: holds no keys; {FIX}")
    version, dtype, source = tree.get(FORMAT_KEY), tree.get("dtype"), tree.get(WHOLE)
    if type(version) is not int or version != HF_FORMAT:
        raise LayoutError(f"{file}: {FORMAT_KEY} is {_short(version)}, this version reads {HF_FORMAT}; {ITS_VERSION}")
    if dtype != "float32" and saved_by_transformers(tree):
        raise LayoutError(f"{file}: it was saved in {_short(dtype)}; load it with dtype=float32 and save it again")
    try:
        config = parse_config(source["config"])  # type: ignore[index]
        step, data_hash = source["step"], source["data_hash"]  # type: ignore[index]
    except ConfigError as error:
        raise LayoutError(f"{file}: {WHOLE}.config: {error}; {FIX}") from error
    except (KeyError, TypeError) as error:
        raise LayoutError(f"{file}: {WHOLE} has no config, step and data_hash; {FIX}") from error
    if type(step) is not int or step < 0 or not isinstance(data_hash, str | None):
        raise LayoutError(f"{file}: {WHOLE}.step or data_hash is not what was written; {FIX}")
    compare_keys(file, tree, size_keys(config), f"{WHOLE}.config")
    return absolute_paths(config), step, data_hash


def compare_keys(file: Path, tree: dict[str, Any], expected: dict[str, Any], source: str = "the folder") -> None:
    """Raise LayoutError if a key of `config.json` differs from `expected`. tree: its JSON value. source: origin of `expected`."""
    for key, value in expected.items():
        if key not in tree or tree[key] != value or type(tree[key]) is not type(value):
            raise LayoutError(f"{file}: {key} is {_short(tree.get(key))}, {source} says {_short(value)}; {FIX}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
