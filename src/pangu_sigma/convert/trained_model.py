"""A model of this project on the disk, whatever keeps it: its configuration, what its ids mean, and its weights by name.

A run folder and a Hugging Face style folder give the same names: those of the network's parameters, and for experts
`layers.<i>.ffn.experts.<e>.<w1|b1|w2|b2>`. There i counts all layers of the network and e the experts of the layer, domain after
domain. An expert has tensors of its own, and not a row of one tensor for a layer: an expert belongs to one domain, so a domain is a
list of names, and a layer of the paper's 640 experts would be one tensor of half a terabyte, which no file of a few GiB holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import EXPERTS, WEIGHTS, SavedArray
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.start_over import LINEAGE_FILE
from pangu_sigma.checkpoint.whole import whole_array
from pangu_sigma.config import Config
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.foreign.dense_model import DenseModel, LayoutError, check_tensors
from pangu_sigma.parallel.parameters import dense_weights, expert_arrays
from pangu_sigma.rre.table import RoutingTable


@dataclass(frozen=True)
class TrainedModel:
    """A trained model whose weights are read when they are asked for.

    path: where it is. layout: "run" or "hf". config: as it was trained, of one process. step: of the checkpoint.
    data_hash: content hash of the text that it was trained on; None if it is not known.
    tensors: weights by name. lineage: the receipt of how it got its weights, if it has one.
    """

    path: Path
    layout: str
    config: Config
    tokenizer: Tokenizer
    table: RoutingTable
    step: int
    data_hash: str | None
    tensors: dict[str, LazyArray]
    lineage: dict[str, Any] | None


def expert_name(layer: int, expert: int, name: str) -> str:
    """Name of a tensor of an expert. layer: of the network. expert: of all experts of the layer."""
    return f"layers.{layer}.ffn.experts.{expert}.{name}"


def weight_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a model, in the order of the network."""
    shapes = {array.name: array.shape for array in dense_weights(config.on_one_rank())}
    for layer, name, (experts, *shape) in _expert_tensors(config):
        at = config.model.dense_layers + layer
        shapes |= {expert_name(at, expert, name): tuple(shape) for expert in range(experts)}
    order = {f"layers.{layer}": layer for layer in range(config.model.layers)}
    return dict(sorted(shapes.items(), key=lambda item: _rank(item[0], order)))


def _rank(name: str, order: dict[str, int]) -> tuple[int, int]:
    """Tables first, then layer by layer with its experts one after another, and the last norm."""
    words = name.split(".")
    layer = order.get(".".join(words[:2]))
    if layer is None:
        return (-1, 0) if words[0] != "norm" else (len(order), 0)
    return layer, int(words[4]) + 1 if "experts" in words else 0


def _expert_tensors(config: Config) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """RRE layer, name and shape of each weight of a layer's experts."""
    for array in expert_arrays(config.on_one_rank()):
        if array.kind == "weight":
            _, layer, name = array.name.split(".")
            yield int(layer), name, array.shape


def open_trained_run(path: Path) -> TrainedModel:
    """The newest intact checkpoint of a run, whatever ranks wrote it. Raises as `RunFolder.open` and `load_checkpoint`."""
    run = RunFolder.open(path)
    checkpoint = load_checkpoint(run.checkpoints, run.identity)
    tensors = {name: whole_array(saved, name) for name, saved in checkpoint.saved(WEIGHTS).items()}
    experts: dict[int, dict[str, list[SavedArray]]] = {}
    for layer, name, (count, *_) in _expert_tensors(run.config):
        saved = experts.setdefault(layer, checkpoint.saved(f"{EXPERTS}{layer}"))[name]
        for expert in range(count):
            full = expert_name(run.config.model.dense_layers + layer, expert, name)
            tensors[full] = whole_array(saved, name).part(expert, full)
    return TrainedModel(
        *(path, "run", run.config, run.tokenizer, run.table, checkpoint.step, checkpoint.identity.data_hash),
        {name: tensors[name] for name in weight_shapes(run.config)},
        read_lineage(path),
    )


def experts_of_layer(model: TrainedModel, layer: int, name: str, shape: tuple[int, ...]) -> LazyArray:
    """The tensors of all experts of an RRE layer as one array, as a checkpoint has it. shape: of that."""
    at = model.config.model.dense_layers + layer
    tensors = [model.tensors[expert_name(at, expert, name)] for expert in range(shape[0])]

    def content() -> Iterator[np.ndarray]:
        for tensor in tensors:
            yield from tensor.content()

    return LazyArray(shape, tensors[0].dtype, content, f"{name} of layer {at}")


def as_dense_model(model: TrainedModel) -> DenseModel:
    """The weights of a model without routed experts as a `DenseModel`. Raises LayoutError for one that has some."""
    if model.config.model.rre_layers:
        raise LayoutError(
            f"{model.path}: has model.rre_layers={model.config.model.rre_layers}; only a dense model (rre_layers=0) goes here"
        )
    return dense_model(model.path, model.layout, model.config, model.tensors)


def dense_model(path: Path, layout: str, config: Config, tensors: dict[str, LazyArray]) -> DenseModel:
    """A dense model of this project by its tensors, which have our names already."""
    sizes = config.model
    dense = DenseModel(
        path=path,
        layout=layout,
        hidden=sizes.hidden,
        ffn=sizes.ffn,
        heads=sizes.heads,
        layers=sizes.layers,
        seq_length=sizes.seq_length,
        vocabulary=config.slots * sizes.slot_rows,
        activation=sizes.activation,
        activation_known=True,
        tensors=tensors,
        made_from=dict.fromkeys(tensors, "copied"),
    )
    return check_tensors(dense)


def read_lineage(folder: Path) -> dict[str, Any] | None:
    """The receipt that a folder has of how it got its weights, or None. Raises LayoutError if it cannot be read."""
    file = folder / LINEAGE_FILE
    try:
        tree = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(f"{file}: cannot be read ({error}); take it from a copy, or remove it") from error
    if not isinstance(tree, dict):
        raise LayoutError(f"{file}: holds no receipt; take it from a copy, or remove it")
    return tree
