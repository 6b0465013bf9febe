"""Model card, README.md of a Hugging Face style folder: sizes, versions, domains, origin of the weights, data sources and use."""

from __future__ import annotations

import html
import re
from importlib.metadata import version
from pathlib import Path

import yaml

from pangu_sigma.config import ConfigError
from pangu_sigma.data.manifest import Manifest
from pangu_sigma.data.prepared import data_of, encodes
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.sections import ModelConfig
from pangu_sigma.stored.model import StoredModel

_LANGUAGES = {"zh": ["zh"], "en": ["en"], "mixed": ["zh", "en"], "python": ["code"], "java": ["code"]}


def model_card(model: StoredModel) -> str:
    """Return the text of a model card, with the Hugging Face Hub's YAML header. It states the licence of the weights as unknown."""
    config = model.config
    languages = [each for domain in config.domains for each in _LANGUAGES[domain.language]]
    kinds = ["mixture-of-experts"] if config.model.rre_layers else []
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "unknown",
        "language": list(dict.fromkeys(languages)),
        "tags": ["pangu-sigma", "custom_code", *kinds],
    }
    parts = [f"---\n{yaml.safe_dump(header, sort_keys=False)}---", f"# {config.name}"]
    parts += [_sizes(model), _domains(model), _lineage(model), _sources(model), _use(model)]
    return "\n\n".join(parts) + "\n"


def _text(value: object) -> str:
    """Return a value as text of Markdown on one line: names of slots and sources, which may be markup, are shown as they are."""
    return re.sub(r"[\\`*\[\]|~!$]", r"\\\g<0>", html.escape(" ".join(str(value).split()), quote=False))


def _code(value: object) -> str:
    """Return a value as code of Markdown on one line; a backtick, which would end the code, becomes an apostrophe."""
    text = " ".join(str(value).split()).replace("`", "'")
    return f"`{text}`"


def _sizes(model: StoredModel) -> str:
    config, count = model.config, model.config.num_params()
    sizes = config.model
    lines = [
        f"A PanGu-Σ of {count.total:,} parameters at step {model.step}, in float32: {count.dense:,} in shared layers, "
        f"{count.experts:,} in experts, {count.embeddings:,} in tables.",
        "",
        f"* layers: {sizes.dense_layers} dense, {sizes.rre_layers} with routed experts; hidden {sizes.hidden}, FFN {sizes.ffn}, "
        f"{sizes.heads} heads; context {sizes.seq_length} tokens; GELU `{sizes.activation}`",
        f"* word tables: {config.slots} slots of {sizes.slot_rows} rows; vocabulary of {model.tokenizer.size} ids, hash "
        f"`{model.tokenizer.hash}`",
    ]
    if sizes.rre_layers:
        table = _code(Path(config.routing.table).name)
        lines.append(
            f"* routing: table {table}, seed {config.routing.seed}, hash `{model.table.hash}`; no gate. {tables_text(sizes)}"
        )
    if sizes.rows:
        lines += [_rows(model)]
    return "\n".join(lines)


def _rows(model: StoredModel) -> str:
    """Return the entries of `model.rows` and how to read them."""
    entries, count = [], 0
    for e, entry in enumerate(model.config.model.rows):
        met = len(model.rows(e)[0])
        count += met * entry.width
        entries.append(
            f"`rows.{e}`: order {entry.order}, {entry.rows} {entry.kind} of width {entry.width}, {met} of them met"
        )
    return (
        f"* rows for pairs of tokens, {count:,} parameters besides: {'; '.join(entries)}. The number of a token's row is "
        "(`tid2key`[its id] + `before2key`[the id before it in its text]) mod rows, and of own rows + domain · rows; the last "
        "number of `before2key` is for no id before. `weight` has the rows of the numbers `keys`, which ascend; all others are "
        "zeros. Before each layer, the rows of all entries side by side are added, times `layers.<layer>.row_scale`, in the last "
        "layer behind the last norm"
    )


def tables_text(sizes: ModelConfig) -> str:
    """Return how to read the routing tables of a model, without a full stop."""
    parts, several = len(sizes.segments), len(sizes.segments) > 1
    segments = (
        f"An RRE layer's FFN is the sum of {parts} segments ({', '.join(sizes.segments)}), each with {sizes.segment_ffn} of the "
        f"{sizes.ffn} inner units; the first has the output bias b2. "
    )
    common = (
        f". In a common segment it is one of the {sizes.common_experts} that all domains share, the same for all of them; "
        "`tid2eid_common_spread` [vocabulary] is its s"
    )
    return (
        f"{segments * several}The tensor `tid2eid` [RRE layers, {'segments, ' * several}domains, vocabulary] has the expert of "
        f"each token id, numbered over the {'segment' if several else 'layer'}. An id whose `tid2eid_spread` [domains, vocabulary] "
        "is s takes, at position p of its document, the expert p mod s further on in the domain's group, which goes on at its "
        f"beginning{common * ('common' in sizes.segments)}"
    )


def _domains(model: StoredModel) -> str:
    domains, sizes = domains_of(model.config), model.config.model
    where = "a layer" if len(sizes.segments) == 1 else "each own segment"
    rows = ["## Domains", "", f"| domain | format | language | slot | experts of {where} |", "|---|---|---|---|---|"]
    for domain in domains:
        last = domain.first_expert + domain.experts - 1
        experts = f"{domain.first_expert} … {last}" if sizes.rre_layers else "–"
        rows.append(
            f"| {domain.name} | {domain.format} | {domain.language} | {_text(domains.slot_names[domain.slot])} | {experts} |"
        )
    rows += ["", "A text of another domain than the one asked for is read with experts that never saw its kind."]
    return "\n".join(rows)


def _lineage(model: StoredModel) -> str:
    lineage, config = model.lineage, model.config
    tuned = f" on the task `{config.finetune.task}`" if config.finetune else ""
    batch = f"{config.train.batch_size} sequences of {config.model.seq_length} tokens"
    steps = f"Trained for {model.step} steps{tuned}, each of {batch}"
    if lineage is None:
        return f"## Lineage\n\n{steps}, from weights that were drawn at random."
    facts = [
        f"{key} {_code(lineage[key])}"
        for key in ("kind", "parent", "layout", "parent_step", "parent_hash")
        if key in lineage
    ]
    return (
        f"## Lineage\n\nIts weights began elsewhere: {', '.join(facts)}. {steps}, counted from there. The whole receipt is in "
        "`lineage.json`."
    )


def _sources(model: StoredModel) -> str:
    manifest = _manifest(model)
    if isinstance(manifest, str):
        return f"## Data\n\nThe sources of the text and their licences are not known: {manifest}."
    rows = [
        "## Data",
        "",
        "| domain | training tokens | source | version | licence | sha256 |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in manifest.domains.items():
        for source in record.sources:
            facts = map(_text, (source.name, source.version, source.licence, source.sha256 or "–"))
            rows.append(f"| {_text(name)} | {record.train.tokens:,} | {' | '.join(facts)} |")
    return "\n".join(rows)


def _manifest(model: StoredModel) -> Manifest | str:
    """Return the manifest of the model's prepared data, or the reason why there is none."""
    try:
        data = data_of(model.config)
        its = encodes(model.tokenizer, data.tokenizer(model.config))
    except (DataError, ConfigError):
        return "the prepared data is not there, or is damaged, or lacks a domain"
    if not its or model.data_hash not in (None, data.manifest.content_hash):
        return "the prepared data at hand is not what the model was trained on"
    return data.manifest


def _use(model: StoredModel) -> str:
    first = model.config.domains[0]
    tagged = [domain.name for domain in model.config.domains if domain.format != "text"]
    tags = f" The tokenizer puts the tag of the language before a text in {', '.join(tagged)}." if tagged else ""
    return _USE.format(first=first.name, tags=tags, ours=version("pangu-sigma"))


_USE = """\
## Use

Written by pangu-sigma {ours}. The code in this folder runs with transformers 5 (tried: 5.0 and 5.24, torch 2.13, peft 0.21,
lm_eval 0.4.13), torch, sentencepiece and jieba, and without pangu-sigma:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER", trust_remote_code=True)
tokenizer.domain = model.config.domain = "{first}"  # the domain of what follows; {first} unless set
inputs = tokenizer("TEXT", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```

`tokenizer(text, domain=…)`, `model(…, domain=…)` and `model.generate(…, domain=…)` take a domain for one call; the model also
a tensor with the number of each sequence's domain. An id that the domain's slot has no row for is refused; its logit is the
lowest number.{tags} A text that is trained on ends with `<eot>`, which you add: `text + tokenizer.eos_token`, or the id. Names of
special tokens in a text are these tokens, unless the tokenizer is called with `split_special_tokens=True`. What follows `<eot>`
in a sequence is another text: it begins at position 0 and does not see the first, so several texts can be packed. Not there:
`position_ids`, `inputs_embeds`, `output_attentions`, caches other than `DynamicCache`, flash and flex attention, `add_tokens`,
`resize_token_embeddings`, pairs of texts, a chat template and `torch.export`.

LoRA: `LoraConfig(target_modules=["query", "key", "value", "output", "up", "down"])`, where `up` and `down` are those of dense
FFNs and experts alike; an expert learns only from the tokens that it meets. lm_eval needs the domain twice:
`AutoTokenizer.from_pretrained("THIS_FOLDER", trust_remote_code=True, domain="{first}").save_pretrained("TOKENIZER")`, then
`lm_eval run --model hf --model_args pretrained=THIS_FOLDER,tokenizer=TOKENIZER,domain={first},trust_remote_code=True`.

Back to pangu-sigma, which verifies every file by `seal.json` first:

```sh
pangu-sigma export THIS_FOLDER --format run --output runs/mine
```

It also takes what `model.save_pretrained` and `tokenizer.save_pretrained` wrote into one other folder, in float32 and with
LoRA merged.

The files `model-*.safetensors` have the weights by the names of torch's parameters; an expert's are
`layers.<layer>.ffn.experts.<number>.<up|down>.<weight|bias>`; where a layer has several segments, those of segments 1, 2, …
are `layers.<layer>.ffn.segments.<segment>.experts.<number>.…`, without `down.bias`. `tid2row` [slots, vocabulary] has each
id's row in the word table of a slot, or -1. This card may be edited: it is the one file that is not sealed."""
