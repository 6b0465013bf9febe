"""Names of the tensors of a dense PanGu-α in the layouts of other projects, and our counterpart of each.

MindSpore: names of `pcl_pangu/model/panguAlpha_mindspore/src/pangu_alpha.py`; for the tables also the names of a merged file
(`pcl_pangu/model/alpha/alpha.py`) and of the later model zoo. Weights of `nn.Dense` are [out, in], of `Mapping` [in, out].
Megatron, and DeepSpeed around it: `pcl_pangu/model/panguAlpha_pytorch/megatron`. Hugging Face: `modeling_gptpangu.py` in the
repositories imone/pangu_2_6B (attention's output `out_proj`) and sunzeyeah/pangu-* (`c_proj`). All their weights are [out, in].
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pangu_sigma.errors import LayoutError


class Counterpart(NamedTuple):
    """Tensor of this project that a tensor of another project becomes. ours: its name here. transposed: True if it is transposed.
    cut: axis along which Megatron's tensor ranks split their tensor; None if they do not."""

    ours: str
    transposed: bool = False
    cut: int | None = None


_COLUMNS = ("mindspore", "megatron", "huggingface")
_LAYERS = {
    "mindspore": (r"backbone\.blocks\.(\d+)", "backbone.top_query_layer"),
    "megatron": (r"language_model\.transformer\.layers\.(\d+)", "language_model.transformer.topQueryLayer"),
    "huggingface": (r"h\.(\d+)", None),
}
"""Layout → pattern of the prefix of a layer's names, and prefix of the query layer, our last one, if it is none of them."""
_LAYER = {
    ("attention_norm.gain", "attention_norm.bias", None): ("layernorm1", "input_layernorm", "ln_1"),
    ("ffn_norm.gain", "ffn_norm.bias", None): ("layernorm2", "post_attention_layernorm", "ln_2"),
    ("attention.query.weight", "attention.query.bias", 0): ("attention.dense1 T", "attention.query T", "attn.q_proj T"),
    ("attention.key.weight", "attention.key.bias", 0): ("attention.dense2 T", "attention.key T", "attn.k_proj T"),
    ("attention.value.weight", "attention.value.bias", 0): ("attention.dense3 T", "attention.value T", "attn.v_proj T"),
    ("attention.output.weight", "attention.output.bias", 1): (
        *("attention.projection", "attention.dense T", "attn.c_proj T"),
    ),
    ("ffn.w1", "ffn.b1", 0): ("output.mapping T", "mlp.dense_h_to_4h", "mlp.c_fc"),
    ("ffn.w2", "ffn.b2", 1): ("output.projection", "mlp.dense_4h_to_h T", "mlp.c_proj T"),
}
"""Our weight and bias of a layer, and the axis of Megatron's cut → name in each layout of _COLUMNS, after the layer's prefix and
before `.weight` and `.bias`. T: the weight is transposed."""
WORD_TABLE = "language_model.embedding.word_embeddings.weight"
_SHARED = {
    "mindspore": {
        "backbone.layernorm.gamma": Counterpart("norm.gain"),
        "backbone.layernorm.beta": Counterpart("norm.bias"),
    },
    "megatron": {
        WORD_TABLE: Counterpart("embedding", cut=0),
        "language_model.embedding.position_embeddings.weight": Counterpart("positions"),
        "language_model.topQueryEmbedding.top_query_embeddings.weight": Counterpart("query_positions"),
        "language_model.transformer.final_layernorm.weight": Counterpart("norm.gain"),
        "language_model.transformer.final_layernorm.bias": Counterpart("norm.bias"),
    },
    "huggingface": {
        "wte.weight": Counterpart("embedding"),
        "wpe.weight": Counterpart("positions"),
        "wqe.weight": Counterpart("query_positions"),
        "ln_f.weight": Counterpart("norm.gain"),
        "ln_f.bias": Counterpart("norm.bias"),
    },
}
"""Layout → name of each tensor outside of the layers (in MindSpore's without TABLES) → our tensor."""
LATER = ("backbone.embedding.word_embedding.embedding_table", "word_embedding_table")
"""Names of the word table in the later model zoo; the second where tables were .npy files (mPanGu, MindFormers' converter)."""
TABLES = {
    "embedding": ("word_embedding.npy", "embedding_table", "backbone.word_embedding.embedding_table", *LATER),
    "positions": (
        "position_embedding.npy",
        "backbone.embedding.embedding.position_embedding.embedding_table",
        "backbone.position_embedding.embedding_table",
        *("backbone.embedding.position_embedding.embedding_table", "position_embedding_table"),
    ),
    "query_positions": (
        "top_query_embedding.npy",
        "backbone.top_query_embedding_table",
        *("backbone.top_query_embedding.embedding_table", "query_embedding_table"),
    ),
}
"""Our table → its .npy file, and its names in MindSpore's files: in the release, merged, and two in the later model zoo."""


def counterparts(layout: str, path: Path, names: Iterable[str]) -> dict[str, Counterpart]:
    """Return the tensors that a model in a layout must have, but MindSpore's TABLES: name in that layout → our counterpart.

    names: names of the tensors in `path`, from which the layers are counted. Raises LayoutError if a layer is left out.
    """
    pattern, query_layer = _LAYERS[layout]
    indices = {match[1] for name in names if (match := re.match(rf"{pattern}\.", name))}
    for index in range(len(indices)):
        if str(index) not in indices:
            raise LayoutError(f"{path}: there are {len(indices)} layers and none of index {index}; take all files")
    template = pattern.replace(r"(\d+)", "{}").replace("\\", "")  # r"h\.(\d+)" becomes "h.{}"
    count = len(indices) if query_layer else max(1, len(indices))  # a model without a layer lacks the first one
    prefixes = [template.format(index) for index in range(count)] + ([query_layer] if query_layer else [])
    rules, column = dict(_SHARED[layout]), _COLUMNS.index(layout)
    for layer, prefix in enumerate(prefixes):
        for (weight, bias, cut), other_names in _LAYER.items():
            name, _, mark = other_names[column].partition(" ")  # "<name> T": the weight is transposed
            suffixes = ("gamma", "beta") if name.startswith("layernorm") else ("weight", "bias")
            rules[f"{prefix}.{name}.{suffixes[0]}"] = Counterpart(f"layers.{layer}.{weight}", mark == "T", cut)
            # a weight that is split by its outputs has its bias split, too
            rules[f"{prefix}.{name}.{suffixes[1]}"] = Counterpart(f"layers.{layer}.{bias}", cut=0 if cut == 0 else None)
    return rules
