"""Exported graph, run by MindSpore for one text.

Shape suffixes: T new tokens, R rows of a slot.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.generate.graph.cached import inputs_and_outputs, open_inputs
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.process import mindspore_lock, use_cpu
from pangu_sigma.stored.export import GRAPH_FILE, StoredExport


class ExportedGraph:
    """Exported graph, run for one text at a time: its KV cache has one lane."""

    def __init__(self, graph: nn.Cell):
        """Prepare a graph with the signature of `CachedGraph` for inputs of any size."""
        self._graph = graph
        with mindspore_lock:
            graph.set_inputs(*open_inputs())

    @classmethod
    def load(cls, export: StoredExport) -> ExportedGraph:
        """Load the graph of an exported model. Raises ConfigError if the graph has another signature, because another version of
        the program wrote it, and DamagedFile for damaged files of the model."""
        use_cpu()
        if export.facts["signature"] != inputs_and_outputs(export.config):
            raise ConfigError(
                f"{export.path} takes and gives other arrays than this version; run `pangu-sigma export` on its run again"
            )
        with mindspore_lock:
            return cls(nn.GraphCell(ms.load(str(export.path / GRAPH_FILE))))

    def read(self, domain: Domain, ids: list[int], start: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Read tokens of a text. Return the logits of the token after each, float32 [T, R], and the likeliest ids, int32 [T].

        start: number of the text's tokens that earlier calls have read; 0 begins a new text."""
        inputs = ([ids], [len(ids)], [start], [0], [domain.index], range(len(ids)))
        with mindspore_lock:
            logits_TR, token_T = self._graph(*(as_tensor(np.array(values, np.int32)) for values in inputs))
            return logits_TR.asnumpy(), token_T.asnumpy()

    def continue_greedily(self, domain: Domain, ids: list[int], count: int) -> list[int]:
        """Generate `count` tokens that follow a text, each the likeliest, and return their ids. The first call reads the text, a
        later one the token before."""
        answer_ids, start, new_ids = list[int](), 0, ids
        for _ in range(count):
            _, token_T = self.read(domain, new_ids, start)
            start, new_ids = start + len(new_ids), [int(token_T[-1])]
            answer_ids += new_ids
        return answer_ids
