"""Parents: a dense PanGu-α that a sparse run inherits, whoever wrote it.

a dense run of this project        slots, vocabulary and Adam's state are those of the run
a Hugging Face style folder of it  the same, without Adam's state
files of a released PanGu-α        one word table, whose row is the token id: 40,000 of them; see convert/README.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pangu_sigma.checkpoint.checkpoint import Checkpoint, load_checkpoint
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.model_files import CONFIG_FILE
from pangu_sigma.checkpoint.parts import WEIGHTS
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.checkpoint.state import OPTIMIZER
from pangu_sigma.checkpoint.whole import whole_array
from pangu_sigma.config import Activation, Config, ConfigError
from pangu_sigma.convert.hf_folder import is_hf_folder, read_hf_folder
from pangu_sigma.convert.safetensors import is_weights_file
from pangu_sigma.convert.trained_model import as_dense_model, dense_model
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.data.vocabulary import ALPHA_SIZE, FIRST_ENGLISH, Vocabulary
from pangu_sigma.domains import domains_of
from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.foreign.dense_model import DenseModel, LayoutError

PUBLISHED = """\
a parent is a dense run of this project (`pangu-sigma train alpha_2_6b`, or sigma_tiny with model.rre_layers=0), a folder that
`pangu-sigma convert` made of one, or one of the published PanGu-α weights, none of which is here:
  2.6B, 13B  MindSpore files filerted_*.ckpt with word_embedding.npy    PCL-Platform.Intelligence/PanGu-Alpha on OpenI
  2.6B, 13B  Megatron and DeepSpeed files mp_rank_*                     the same, folder panguAlpha_pytorch
  2.6B       pytorch_model*.bin, float32                                imone/pangu_2_6B on Hugging Face
  350M … 13B pytorch_model*.bin, float32                                sunzeyeah/pangu-350M, -2_6B, -13B on Hugging Face"""
"""Where parents come from, for whoever has none."""


NO_TOKENIZER = (
    "has weights and a configuration but no tokenizer, so nothing says what the rows of its word table mean; inherit from the run "
    "that it came from, or from a folder of `pangu-sigma convert RUN FOLDER --to hf`"
)
"""Why a file of `pangu-sigma export --format safetensors` is no parent."""


class WordTable(Protocol):
    """The rows that a parent's word table has for the tokens of a child."""

    slots: list[str]

    def rows(self, slot: int, vocabulary: Vocabulary, ids: np.ndarray) -> np.ndarray:
        """Row of the flattened table for each token id of the child's `vocabulary`, in a slot of the parent; -1 where it has
        none."""


@dataclass(frozen=True)
class Parent:
    """A dense model with what its tokens mean.

    step: of the checkpoint, for a run of this project. table: the meaning of its word table's rows. domain: what its domains are
    called. state: Adam's state of a run of ours, by shard and name; None where there is none.
    """

    model: DenseModel
    table: WordTable
    step: int | None = None
    state: Callable[[str, str], LazyArray | None] = lambda shard, name: None

    @property
    def path(self) -> Path:
        return self.model.path


class AlphaTable:
    """PanGu-α's word table: the row of a token is its id."""

    def __init__(self) -> None:
        self.slots = ["alpha"]

    def rows(self, slot: int, vocabulary: Vocabulary, ids: np.ndarray) -> np.ndarray:
        return np.where(ids < ALPHA_SIZE, ids, -1)


class SlotTable:
    """The word table of a run of this project: a slot after the other."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self.slots, self._tokenizer, self._each = domains_of(config).slot_names, tokenizer, config.model.slot_rows

    def rows(self, slot: int, vocabulary: Vocabulary, ids: np.ndarray) -> np.ndarray:
        known = parent_ids(self._tokenizer.vocabulary, vocabulary)[ids]
        rows = self._tokenizer.row_of[slot, np.maximum(known, 0)]
        return np.where((known >= 0) & (rows >= 0), slot * self._each + rows, -1)


def open_parent(path: Path, heads: int | None = None, activation: Activation | None = None) -> Parent:
    """The parent in a folder or file. heads, activation: what its files do not say.

    Raises ConfigError for a sparse run, LayoutError for files that cannot be used, CheckpointError and DataError as training does.
    """
    if not path.exists():
        raise LayoutError(f"{path} is not there; {PUBLISHED}")
    if (path / CONFIG_FILE).exists():
        return _open_run(path)
    if is_hf_folder(path):
        return _open_hf_folder(path)
    if is_weights_file(path):
        raise LayoutError(f"{path}: {NO_TOKENIZER}")
    model = open_dense_model(path, heads=heads, activation=activation)
    if refusal := foreign_refusal(model):
        raise LayoutError(f"{path}: {refusal}")
    return Parent(model, AlphaTable())


def _open_run(path: Path) -> Parent:
    run = RunFolder.open(path)
    _refuse_sparse(path, run.config)
    checkpoint = load_checkpoint(run.checkpoints, run.identity)
    tensors = {name: whole_array(saved, name) for name, saved in checkpoint.saved(WEIGHTS).items()}
    model = dense_model(path, "run", run.config, tensors)
    return Parent(model, SlotTable(run.config, run.tokenizer), checkpoint.step, _saved(checkpoint))


def _open_hf_folder(path: Path) -> Parent:
    """A folder of `pangu-sigma convert --to hf`, which has its tokenizer and no Adam state."""
    _refuse_sparse(path, read_hf_folder(path, values=False).config)
    model = read_hf_folder(path)
    return Parent(as_dense_model(model), SlotTable(model.config, model.tokenizer), model.step)


def foreign_refusal(model: DenseModel) -> str | None:
    """Why a model in files of others cannot be a parent; None if it can."""
    if model.vocabulary == ALPHA_SIZE:
        return None
    return (
        f"its word table has {model.vocabulary} rows, PanGu-α's vocabulary has {ALPHA_SIZE}; only models with that vocabulary can "
        "be inherited from files, because nothing else says what their ids mean"
    )


def sparse_refusal(config: Config) -> str | None:
    """Why a model of this project cannot be a parent; None if it can."""
    layers = config.model.rre_layers
    if not layers:
        return None
    return (
        f"has model.rre_layers={layers}; only a dense model (rre_layers=0) can be inherited; to add domains to a sparse run use "
        "`pangu-sigma extend`"
    )


def _refuse_sparse(path: Path, config: Config) -> None:
    if refusal := sparse_refusal(config):
        raise ConfigError(f"{path}: {refusal}")


def _saved(checkpoint: Checkpoint) -> Callable[[str, str], LazyArray | None]:
    shards = {OPTIMIZER: checkpoint.saved(OPTIMIZER)}

    def find(shard: str, name: str) -> LazyArray | None:
        saved = shards.get(shard, {}).get(name)
        return None if saved is None else whole_array(saved, name)

    return find


def parent_ids(parent: Vocabulary, child: Vocabulary) -> np.ndarray:
    """The parent's id of each of the child's tokens, -1 where it has none: int64 [V].

    PanGu-α's pieces, tags and bytes have the same ids everywhere; English pieces are matched by the bytes they stand for.
    """
    english = {surface: FIRST_ENGLISH + i for i, surface in enumerate(parent.surfaces[FIRST_ENGLISH:])}
    return np.array([*range(FIRST_ENGLISH), *(english.get(s, -1) for s in child.surfaces[FIRST_ENGLISH:])])


def parent_slot(name: str, parent_names: list[str]) -> int:
    """The parent's slot that a slot of the child takes its rows from: the one of that name, else the parent's only one."""
    if name in parent_names:
        return parent_names.index(name)
    if len(parent_names) == 1:
        return 0
    raise ConfigError(
        f"domains: slot {name!r} has no parent: the parent's slots are {', '.join(parent_names)}; use one of these names"
    )
