"""Decoder that runs an exported inference graph with MindSpore.

Shape suffixes: B texts of a call, C new tokens of the longest, W wanted tokens, R rows of a slot.
"""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.graph.cached import inputs_and_outputs, open_inputs
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.process import mindspore_lock, use_cpu
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.stored.export import GRAPH_FILE, StoredExport
from pangu_sigma.text.tokenizer import Tokenizer

_AT_ONCE = 256
"""Maximum number of new tokens of a text in one call, which needs memory in proportion."""


class GraphDecoder(Decoder):
    """`Decoder` that runs an exported graph with MindSpore; the graph's parameters are the weights and the KV cache."""

    def __init__(self, graph: nn.Cell, config: Config, tokenizer: Tokenizer, table: RoutingTable, lanes: int):
        """graph: graph with the signature of `CachedGraph`. Its KV cache has one lane (one text), and is enlarged to `lanes`."""
        super().__init__(config, tokenizer, table, lanes)
        self._graph = graph
        with mindspore_lock:
            graph.set_inputs(*open_inputs())
            self._copy = _CopyLane([_with_lanes(p, lanes) for p in graph.get_parameters() if is_cache(p.name)])

    @classmethod
    def of(cls, export: StoredExport, lanes: int = 4) -> GraphDecoder:
        """Make the decoder of an exported model. lanes: texts in the cache.

        Raises ConfigError if the exported graph has another signature, DamagedFile for damaged files of the model.
        """
        use_cpu()
        if export.facts["signature"] != inputs_and_outputs(export.config):
            raise ConfigError(
                f"{export.path} takes and gives other arrays than this version; run `pangu-sigma export` on its run again"
            )
        with mindspore_lock:
            graph = nn.GraphCell(ms.load(str(export.path / GRAPH_FILE)))
        return cls(graph, export.config, export.tokenizer, export.table, lanes)

    def copy(self, source: int, target: int) -> None:
        super().copy(source, target)
        with mindspore_lock:
            self._copy(as_tensor(np.array([source], np.int32)), as_tensor(np.array([target], np.int32)))

    def read(self, chunks: list[Chunk]) -> list[np.ndarray]:
        self._texts_after(chunks)
        for chunk in chunks:
            self.tokenizer.rows(chunk.ids, self._texts[chunk.lane].domain)
        logits: list[list[np.ndarray]] = [[np.empty((0, self.config.model.slot_rows), np.float32)] for _ in chunks]
        single = [number for number, chunk in enumerate(chunks) if len(chunk.ids) == 1]
        if single:
            self._read([chunks[number] for number in single], [logits[number] for number in single])
        for chunk, of_chunk in zip(chunks, logits, strict=True):
            if len(chunk.ids) > 1:  # in a batch, shorter texts would be padded to the longest
                for first in range(0, len(chunk.ids), _AT_ONCE):
                    ids = chunk.ids[first : first + _AT_ONCE]
                    later = len(chunk.ids) - first - len(ids)
                    self._read([Chunk(chunk.lane, ids, min(max(chunk.wanted - later, 0), len(ids)))], [of_chunk])
        return [np.concatenate(of_chunk) for of_chunk in logits]

    def _read(self, chunks: list[Chunk], logits: list[list[np.ndarray]]) -> None:
        """Read chunks in one call, and append the logits of each chunk to its list in `logits`."""
        texts = [self._texts[chunk.lane] for chunk in chunks]
        lengths_B = np.array([len(chunk.ids) for chunk in chunks])
        ids_BC = np.zeros((len(chunks), lengths_B.max()), np.int32)
        for ids_C, chunk in zip(ids_BC, chunks, strict=True):
            ids_C[: len(chunk.ids)] = chunk.ids
        ends_B = np.arange(len(chunks)) * ids_BC.shape[1] + lengths_B
        wanted = [np.arange(end - chunk.wanted, end) for end, chunk in zip(ends_B, chunks, strict=True)]
        wanted_W = np.concatenate(wanted)
        inputs = (
            ids_BC,
            lengths_B,
            [text.length for text in texts],
            [chunk.lane for chunk in chunks],
            [text.domain.index for text in texts],
            wanted_W if len(wanted_W) else ends_B[:1] - 1,  # a graph takes no empty array
        )
        with mindspore_lock:
            logits_WR = self._graph(*(as_tensor(np.asarray(values, np.int32)) for values in inputs))[0].asnumpy()
        starts = np.cumsum([0, *map(len, wanted)])
        for chunk, text, of_chunk, first, end in zip(chunks, texts, logits, starts[:-1], starts[1:], strict=True):
            self._texts[chunk.lane] = replace(text, length=text.length + len(chunk.ids))
            of_chunk.append(logits_WR[first:end])


def is_cache(name: str) -> bool:
    """Return True if an exported graph's parameter of this name belongs to the KV cache, and not to the weights."""
    return name.rsplit(".", 1)[-1] in ("keys", "values", "ended", "before")


def _with_lanes(parameter: Parameter, lanes: int) -> Parameter:
    """Enlarge a cache parameter of one empty lane to `lanes` lanes."""
    lane = parameter.asnumpy()
    parameter.set_data(Tensor(np.zeros((lanes, *lane.shape[1:]), lane.dtype)), slice_shape=True)
    return parameter


class _CopyLane(nn.Cell):
    """Copy of one lane to another in every cache parameter: construct(source [1], target [1]) -> target."""

    def __init__(self, parameters: list[Parameter]):
        super().__init__()
        self.parameters = ParameterTuple(parameters)
        self.pick, self.update = ops.Gather(), ops.ScatterUpdate()

    def construct(self, source, target):
        for parameter in self.parameters:
            self.update(parameter, target, self.pick(parameter, source, 0))
        return target
