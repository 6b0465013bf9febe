"""README of an exported model: inputs and outputs of its graph, and a program that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pangu_sigma.config import Config
from pangu_sigma.convert.model_card import tables_text
from pangu_sigma.domains import domains_of
from pangu_sigma.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ascend_ops.few_rows import StoredPrecision

_AXES = {
    "B": "texts of the call",
    "C": "new tokens of the longest of them",
    "W": "tokens whose successor is wanted",
    "R": "rows of a slot",
}
_MEANINGS = {
    "ids": "new tokens of each text; what fills a shorter one up may be anything",
    "lengths": "how many of them are new tokens: 1 … C",
    "start": "number of tokens that the text's lane holds already; 0 begins a new text",
    "lane": "the part of the cache that holds the text, another for each text",
    "domain": "number of the text's domain",
    "wanted": "numbers, in the B·C new tokens row by row, of those whose successor is wanted",
    "logits": "of the token that follows each wanted one, over the rows of the slot of its domain; -inf where a row has no token",
    "token": "the most likely one's id",
}
_PROGRAM = """\
import mindspore as ms
from mindspore import Tensor, nn

ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
graph = nn.GraphCell(ms.load("model.mindir"))
graph.set_inputs(Tensor(shape=[None, None], dtype=ms.int32), *[Tensor(shape=[None], dtype=ms.int32)] * 5)
ids, start, domain, answer = {ids}, 0, {domain}, []
while len(answer) < 8:
    call = [ids], [len(ids)], [start], [0], [domain], [len(ids) - 1]
    logits, token = graph(*(Tensor(each, ms.int32) for each in call))
    start, ids = start + len(ids), token.tolist()
    answer += ids
print(answer)
"""
_ROWS = """
Rows for pairs of tokens (`model.rows`) are float32. The graph makes the key of a token's row from its id and the id
before it, which the cache holds. `rows.<entry>.numbers` has the keys of the rows that training met, and
`rows.<entry>.weight` these rows; the last one is zeros, and stands for all others.
"""


def readme(
    config: Config,
    tokenizer: Tokenizer,
    signature: dict[str, Any],
    at_rest: StoredPrecision,
    openings: dict[str, list[int]],
) -> str:
    """Return the text of the README of a MindIR export. signature: inputs and outputs of its graph. at_rest: dtype of the stored
    matrices. openings: domain → token ids of an example prompt."""
    domains, model = domains_of(config), config.model
    first = domains[0]
    names = ", ".join(f"`{axis}` {meaning}" for axis, meaning in _AXES.items())
    sizes = f"model.seq_length = {model.seq_length} tokens of a lane, R = {model.slot_rows}"
    rows = [
        f"| {kind} | `{each['name']}` | [{', '.join(each['axes'])}] | {each['dtype']} | {_MEANINGS[each['name']]} |"
        for kind in ("input", "output")
        for each in signature[f"{kind}s"]
    ]
    listed = [f"| {d.index} | `{d.name}` | {d.format} | {d.slot} | `{openings[d.name]}` |" for d in domains]
    cache = [".keys", ".values", ".ended", *[".before"] * bool(model.rows)]
    scales = " int8 rows have a scale each, in `<name>.scale`." if at_rest == "int8" else ""
    return f"""\
# {config.name}: an exported PanGu-Σ

`model.mindir` is the whole model in MindSpore's standard operators: the network, every expert, which expert a token id goes to,
which row of the word table it has, and a KV cache. Token ids and the number of a domain are all that it must be given. Matrices are
kept in {at_rest}.{scales} It was exported by MindSpore 2.9 and pangu-sigma, which reads the folder too: `pangu-sigma generate
FOLDER`.

## Inputs and outputs

| | name | shape | dtype | |
|---|---|---|---|---|
{chr(10).join(rows)}

Sizes: {names}; {sizes}. An `<eot>`, id {tokenizer.eot}, ends a document: what follows it does not see it, as in training. Logits
are NaN where an id, among the new ones, does not exist or has no row in the domain's slot.
{_ROWS if model.rows else ""}
| domain | name | format | slot | a prompt |
|---|---|---|---|---|
{chr(10).join(listed)}

## Run it

```python
{_PROGRAM.format(ids=openings[first.name], domain=first.index)}```

The file has a cache of one lane. For L lanes, after `nn.GraphCell(…)`:

```python
import numpy as np

for name, parameter in graph.parameters_and_names():
    if name.endswith({tuple(cache)}):
        shape = (L, *parameter.shape[1:])
        parameter.set_data(Tensor(np.zeros(shape, parameter.asnumpy().dtype)), slice_shape=True)
```

## The other files

* `tokenizer/`: `vocabulary.json` has the text of each id (`pieces`), and the ids of each slot's rows; beside it are the
SentencePiece
  models, PanGu-α's for Chinese and one for the rest.
* `tables.safetensors`: what the graph looks up. {tables_text(model)}.
  `slot_of_domain`, `row_of_id` [slots, vocabulary] (-1: none), `id_of_row` [slots, R].
* `configuration.json`, `routing.npz`: the configuration, and the routing tables again, as pangu-sigma reads them.
* `seal.json`: size and xxh3_128 hash of every other file, and this table of inputs and outputs.
"""
