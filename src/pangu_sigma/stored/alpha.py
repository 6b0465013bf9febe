"""Dense PanGu-α in the files of another project, as a model that answers: a Σ without RRE layers, with PanGu-α's vocabulary."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.foreign.dense_model import DenseModel
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.sections import Activation
from pangu_sigma.stored.model import Kind, Listed, StoredModel
from pangu_sigma.text.tokenizer import AlphaTokenizer, Tokenizer
from pangu_sigma.text.vocabulary import ALPHA_SIZE

logger = logging.getLogger(__name__)

PUBLISHED_HEADS = {1024: 16, 2560: 32, 5120: 40}
"""Attention heads of the published 350M, 2.6B and 13B by hidden size: MindSpore's files do not state them."""


class StoredAlpha(StoredModel):
    """Dense PanGu-α in the files of another project. Opening reads everything except the values of the tensors."""

    kind: Kind = "alpha"

    def __init__(self, path: Path, verified: bool = True):
        """verified: as in `StoredModel`. Raises LayoutError as `open_dense_model`."""
        super().__init__(path, verified)
        self.files = open_dense_model(path)
        self.tensors, self.made_from, self.unused = self.files.tensors, self.files.made_from, self.files.unused
        self.activation_known = self.files.activation_known

    def assume(self, heads: int | None, activation: Activation | None) -> None:
        """Set heads and activation where the files do not state them. None: leave as it is."""
        self.files = replace(self.files, heads=self.files.heads or heads)
        if activation is not None and not self.activation_known:
            self.files, self.activation_known = replace(self.files, activation=activation), True

    @property
    def layout(self) -> str:
        return self.files.layout

    @property
    def sizes(self) -> DenseModel:
        return self.files

    @property
    def vocabulary_refusal(self) -> str | None:
        """Reason to refuse the model because its word table is not of PanGu-α's vocabulary, for messages; None if it is."""
        if self.files.vocabulary == ALPHA_SIZE:
            return None
        return (
            f"its word table has {self.files.vocabulary} rows, PanGu-α's vocabulary has {ALPHA_SIZE}; only models with that "
            "vocabulary can be used, because nothing else says what their ids mean"
        )

    @cached_property
    def config(self) -> Config:
        """Configuration of a dense model with one domain, zh. Raises LayoutError for unknown heads and another vocabulary."""
        files = self.files
        if self.vocabulary_refusal:
            raise LayoutError(f"{self.path}: {self.vocabulary_refusal}")
        heads = files.heads or PUBLISHED_HEADS.get(files.hidden)
        if heads is None:
            raise LayoutError(
                f"{self.path}: its files do not state the attention heads, and no published PanGu-α has hidden size "
                f"{files.hidden}; `pangu-sigma inherit {self.path} CONFIG --heads N` makes a run of it"
            )
        if not self.activation_known:
            logger.warning("%s does not state its activation; %s is assumed", self.path, files.activation)
        sizes = {name: getattr(files, name) for name in ("hidden", "ffn", "activation", "seq_length")}
        layers = {"dense_layers": files.layers, "rre_layers": 0, "heads": heads, "slot_rows": ALPHA_SIZE}
        domain = {"name": "zh", "language": "zh"}
        return parse_config({"name": "pangu-alpha", "model": sizes | layers, "domains": [domain]})

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return AlphaTokenizer()

    @cached_property
    def table(self) -> RoutingTable:
        """Routing table of a model without RRE layers, [0 layers, 1 domain, V]."""
        vocabulary = self.tokenizer.size
        return RoutingTable(np.zeros((0, 1, vocabulary), np.int16), np.ones((1, vocabulary), np.int16), 1)

    @cached_property
    def hash(self) -> str:
        """Hash of the files' names, sizes and times of change: hashing their contents would take minutes."""
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        entries = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
        return xxhash.xxh3_128_hexdigest(repr(entries).encode())

    def listed(self) -> Listed:
        """Return ("", name, shape, dtype in the files) for each tensor. If `verified`, every value is read first, which raises
        LayoutError for an entry with another checksum and for a head that is not the word table."""
        if self._verified:
            for tensor in self.tensors.values():
                for _ in tensor.content():  # to read the values is to check them
                    pass
        return (("", name, tensor.shape, self.files.kinds[name]) for name, tensor in self.tensors.items())
